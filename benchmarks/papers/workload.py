"""A net that plain SGD trains, and its gradients: what the experiments on gradients look at."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from runner import Experiment  # puts examples/ on the path, where datasets and resnet lie
from torch import Tensor
from torch.nn import functional

import datasets
import resnet

MODELS = {"resnet8": partial(resnet.cifar_resnet, 1), **resnet.MODELS}


def workload_flags(experiment: Experiment, model: str) -> None:
    """Add the flags of `Training`."""
    experiment.flag("--dataset", default="digits", help=", ".join(datasets.DATASETS))
    experiment.flag("--data-dir", default="data", help="where cifar10 or the image folders lie")
    experiment.flag("--model", default=model, choices=MODELS)
    experiment.flag("--batch-size", type=int, default=128)
    experiment.flag("--lr", type=float, default=0.1)
    experiment.flag("--momentum", type=float, default=0.9)
    experiment.flag("--weight-decay", type=float, default=1e-4)
    experiment.flag("--seed", type=int, default=0)


class Training:
    """Plain SGD on one machine, which can be stopped to look at gradients."""

    def __init__(self, args: Any, total_steps: int) -> None:
        self.args, self.device = args, "cuda" if torch.cuda.is_available() else "cpu"
        self.data = datasets.load(args.dataset, args.data_dir)
        torch.manual_seed(args.seed)
        net = MODELS[args.model](self.data.in_channels, self.data.num_classes)
        self.model = net.to(self.device)
        self.sgd = torch.optim.SGD(
            self.model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay
        )
        # as He et al. train these nets: a warm-up, and a tenth of the rate at 1/2 and at 3/4
        warmup = max(1, total_steps // 40)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.sgd,
            lambda k: (
                min(1, 0.1 + k / warmup)
                * 0.1 ** ((2 * k >= total_steps) + (4 * k >= 3 * total_steps))
            ),
        )
        self._training, self._looking = self.batches(0), self.batches(1)

    def batches(self, stream: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches of equal size, epoch after epoch; streams draw independently."""
        count, size = len(self.data.train), self.args.batch_size
        if count < size:
            raise ValueError(f"{self.args.dataset} has {count} images: --batch-size is too large")
        epoch = 0
        while True:
            key = (self.args.seed, epoch, stream)
            order = np.random.default_rng(key).permutation(count)[: count // size * size]
            yield from datasets.batches(self.data.train, order, size, key)
            epoch += 1

    def _backward(self, batch: tuple[Tensor, Tensor]) -> float:
        images, labels = (part.to(self.device) for part in batch)
        self.sgd.zero_grad()
        loss = functional.cross_entropy(self.model(images), labels)
        loss.backward()
        return loss.item()

    def _flat(self) -> np.ndarray:
        grads = [p.grad.reshape(-1) for p in self.model.parameters()]
        return torch.cat(grads).cpu().numpy()

    def gradients(self, count: int) -> np.ndarray:
        """Return gradients of `count` fresh batches at the present weights, float32[count, d]."""
        flats = []
        for _ in range(count):
            self._backward(next(self._looking))
            flats.append(self._flat())
        return np.stack(flats)

    def step(self) -> tuple[float, np.ndarray]:
        """Take one step; return the loss and the gradient, float32[d]."""
        loss = self._backward(next(self._training))
        gradient = self._flat()
        self.sgd.step()
        self.schedule.step()
        return loss, gradient
