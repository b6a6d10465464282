"""What a step exchanges: the buckets of a model, and when backward has filled each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from ..buckets import Buckets


class Workload(NamedTuple):
    """The coordinates of every bucket, in the order of backward, and when they are complete.

    `ready[b]` is the share of backward after which bucket b is complete, 0 to 1.
    """

    numels: tuple[int, ...]
    ready: tuple[float, ...]

    @property
    def numel(self) -> int:
        """The coordinates of all buckets."""
        return sum(self.numels)

    @classmethod
    def of(
        cls, model: int | nn.Module | Iterable[nn.Parameter], bucket_cap_mb: float = 8.0
    ) -> Workload:
        """Return the buckets that DistributedOptimizer makes, of a model or a number of parameters.

        Backward is taken to need time in proportion to parameters; a bucket is complete with the
        last of its tensors. A number stands for layers that fill a bucket each.

        Raises:
            ValueError: there is nothing to exchange, or bucket_cap_mb is not positive.
        """
        if isinstance(model, int):
            return _even(model, bucket_cap_mb)
        parameters = model.parameters() if isinstance(model, nn.Module) else model
        named = [(str(i), p) for i, p in enumerate(parameters) if p.requires_grad]
        buckets = Buckets(named, bucket_cap_mb)
        return cls._checked([b.numel for b in buckets], _complete(buckets))

    @classmethod
    def _checked(cls, numels: Iterable[int], ready: Iterable[float]) -> Workload:
        found = cls(tuple(numels), tuple(ready))
        if not found.numel > 0:
            raise ValueError(
                f"predict: expected a model with trained parameters, got {found.numel} "
                "coordinates; pass a model, or a number of parameters of at least 1"
            )
        return found


def _even(numel: int, bucket_cap_mb: float) -> Workload:
    meta = nn.Parameter(torch.empty(max(0, numel), device="meta"))
    numels = [b.numel for b in Buckets([("", meta)], bucket_cap_mb)]
    total, done, ready = sum(numels), 0, []
    for part in numels:
        done += part
        ready.append(done / max(1, total))
    return Workload._checked(numels, ready)


def _complete(buckets: Buckets) -> list[float]:
    """Return the share of all coordinates whose gradients are there when a bucket is complete."""
    numels = [p.numel() for p in buckets.parameters]  # in the order of backward
    total = max(1, sum(numels))
    return [sum(numels[: max(b.indices) + 1]) / total for b in buckets]
