"""How many test images a model gets right: the averaged one, or every rank's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import datasets
import decentral


class Evaluation:
    """Test accuracies of a model that `opt` trains, on a device."""

    def __init__(
        self, opt: decentral.DistributedOptimizer, model: nn.Module, test: datasets.Split
    ) -> None:
        self._opt, self._model, self._test = opt, model, test
        self._device = next(model.parameters()).device

    def averaged(self) -> float:
        """Return the accuracy of the averaged model; the ranks share the images.

        BatchNorm's running statistics are then those of all ranks' data, seen by their own models.
        """
        comm = self._opt.communicator
        mine = torch.arange(comm.rank, len(self._test), comm.size)
        with self._opt.averaged():
            correct = self._correct(mine)
        return sum(comm.all_gather_object(correct)) / len(self._test)

    def each(self) -> list[float]:
        """Return the accuracy of every rank's own model, on all images, by rank."""
        correct = self._correct(torch.arange(len(self._test)))
        everyone = self._opt.communicator.all_gather_object(correct)
        return [c / len(self._test) for c in everyone]

    @torch.no_grad()
    def _correct(self, indices: Tensor) -> int:
        """Return how many of these images the model, as it is, gets right."""
        self._model.eval()
        correct = 0
        for images, labels in datasets.batches(self._test, indices, batch_size=256):
            guess = self._model(images.to(self._device)).argmax(1).cpu()
            correct += int((guess == labels).sum())
        return correct
