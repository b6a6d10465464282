"""Averages over ranks: which gradients have one, and the model that is evaluated."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
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


def _average_all(comm: Communicator, tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their means over ranks, in one message."""
    if not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1).float().cpu() for t in tensors])
    parts = _mean(comm, flat).split([t.numel() for t in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def running_statistics(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs (mean, variance) among names of buffers: BatchNorm's and its kin's."""
    known = set(names)
    pairs = [(n.removesuffix("running_var") + "running_mean", n) for n in sorted(known)]
    return [(m, v) for m, v in pairs if v.endswith("running_var") and m in known]


def _average_buffers(comm: Communicator, model: nn.Module) -> None:
    """Average what is floating-point; counters are rank 0's.

    A variance is then that of all ranks' data: the mean of their variances, and the variance of
    their means, which counts where shards differ.
    """
    buffers = {name: b for name, b in model.named_buffers() if b.numel()}
    pairs = running_statistics(buffers)
    own = [buffers[m].detach().clone() for m, _ in pairs]
    _average_all(comm, [b for b in buffers.values() if b.is_floating_point()])
    spread = [(x - buffers[m]).square_() for x, (m, _) in zip(own, pairs, strict=True)]
    _average_all(comm, spread)
    for part, (_, v) in zip(spread, pairs, strict=True):
        buffers[v].add_(part)
    broadcast_tensors(comm, [b for b in buffers.values() if not b.is_floating_point()])


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
