"""How far ranks are apart that gossip: estimated from a sample, and said when it is too far."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from .buckets import Buckets, Flat
from .communicators.base import Communicator

_SAMPLE = (
    1 << 14
)  # coordinates: 64 KiB an estimate, and a standard error of 1 % where all vary alike
_FAR = 0.5  # of the mean's norm, from where on the average of models says little of any of them


class Consensus:
    """Estimates sqrt(mean over ranks ||x_i - mean||^2) from coordinates that all ranks draw alike.

    Ours: an all-reduce of the whole model would cost more than the gossip that it is to judge.
    """

    def __init__(self, comm: Communicator, buckets: Buckets, seed: int) -> None:
        self.comm, self._warned = comm, False
        rng = np.random.default_rng(seed)
        sizes = [len(part) for part in buckets.empty()]
        self._numel = sum(sizes)
        self._indices = [_sample(rng, n, _SAMPLE * n // self._numel) for n in sizes]

    def measure(self, flat: Flat) -> float:
        """Return the estimate for this rank's parameters, equal on all ranks; all must call it."""
        parts = [x[i.to(x.device)].cpu() for x, i in zip(flat, self._indices, strict=True)]
        own = torch.cat(parts)
        mean = own.clone()
        self.comm.all_reduce(mean, mean=True).wait()
        square = (own - mean).square().sum().reshape(1)
        self.comm.all_reduce(square, mean=True).wait()
        scale = math.sqrt(self._numel / max(1, len(own)))
        distance = scale * math.sqrt(square.item())
        self._say(distance, scale * float(mean.norm()))
        return distance

    def _say(self, distance: float, norm: float) -> None:
        """Warn once, on rank 0."""
        if distance <= _FAR * norm or self._warned or self.comm.rank != 0:
            return
        self._warned = True
        logging.getLogger("decentral").warning(
            f"decentral: the ranks' parameters have drifted apart: they are {distance:.3g} from "
            f"their mean, whose norm is {norm:.3g}, expected at most {_FAR} of it. Lower the "
            "learning rate, take a topology with a larger spectral gap (exponential, torus), more "
            "bits or fewer local_steps, or average_every=K"
        )


def _sample(rng: np.random.Generator, numel: int, count: int) -> Tensor:
    """Return about `count` distinct coordinates, or all, sorted, int64."""
    if numel <= _SAMPLE:
        return torch.arange(numel)
    return torch.from_numpy(np.unique(rng.integers(0, numel, max(1, count))))
