"""Averages over ranks: which gradients have one, and the model that is evaluated."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .buckets import Buckets
from .communicators.base import Communicator, Pending
from .startup import broadcast_tensors


def _mean(comm: Communicator, flat: Tensor) -> Tensor:
    comm.all_reduce(flat, mean=True).wait()
    return flat


def average_parameters(comm: Communicator, buckets: Buckets) -> float:
    """Average the parameters, and return sqrt(mean over ranks ||x_i - mean||^2)."""
    square = torch.zeros(1)
    x = buckets.gather(buckets.parameters, buckets.empty())
    for bucket in buckets:
        own = bucket.of(x).clone()
        mean = _mean(comm, bucket.of(x))
        square += float((own - mean).square().sum())
    buckets.scatter(x)
    return math.sqrt(_mean(comm, square).item())


def _average_buffers(comm: Communicator, model: nn.Module) -> None:
    """Average what is floating-point (BatchNorm's statistics); counters are rank 0's."""
    buffers = [b for b in model.buffers() if b.numel()]
    floating = [b for b in buffers if b.is_floating_point()]
    if floating:
        flat = torch.cat([b.detach().reshape(-1).float().cpu() for b in floating])
        parts = _mean(comm, flat).split([b.numel() for b in floating])
        for buffer, part in zip(floating, parts, strict=True):
            buffer.copy_(part.view(buffer.shape))
    broadcast_tensors(comm, [b for b in buffers if not b.is_floating_point()])


def unused_by_all(
    comm: Communicator, pairs: Iterable[tuple[bool, Tensor]]
) -> Generator[Pending, None, set[int]]:
    """Return the numbers of those (has a gradient here, mean gradient) of which no rank has one.

    Momentum and weight decay must not move those. A mean of zero does not tell whether somebody
    used the parameter; but it is zero on all ranks alike, so all of them ask, in most steps none.
    A task (engine.py), which yields what it waits for.
    """
    silent = {i: used for i, (used, mean) in enumerate(pairs) if _all_zero(mean)}
    if not silent:
        return set()
    users = torch.tensor([float(used) for used in silent.values()])
    yield comm.all_reduce(users)
    return {i for i, count in zip(silent, users.tolist(), strict=True) if count == 0}


def _all_zero(mean: Tensor) -> bool:
    start = mean[:1] if mean.dim() else mean  # a quantizer makes zeros, but not a row of them
    return not start.any() and not mean.any()


@contextmanager
def average_of_model(comm: Communicator, model: nn.Module, buckets: Buckets) -> Iterator[float]:
    """Let the model hold the average over ranks; yields the consensus distance.

    Parameters that no bucket holds are not trained, and so equal already.
    """
    tensors = [*model.parameters(), *model.buffers()]
    saved = [t.detach().clone() for t in tensors]
    try:
        with torch.no_grad():
            distance = 0.0
            if comm.size > 1:
                distance = average_parameters(comm, buckets)
                _average_buffers(comm, model)
        yield distance
    finally:
        with torch.no_grad():
            for tensor, own in zip(tensors, saved, strict=True):
                tensor.copy_(own)
