"""What happens once, before the first step: ranks compare what must agree, and start equal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .communicators.base import Communicator

_CHUNK = 1 << 26  # bytes of parameters that are broadcast together


class MismatchError(ValueError):
    """Ranks were started with different models or options."""


def check_agreement(comm: Communicator, items: Iterable[tuple[str, Any]]) -> None:
    """Compare (what, value) pairs over all ranks.

    Raises:
        MismatchError: on every rank, naming the ranks that differ from rank 0 and the first item.
    """
    mine = [(what, repr(value)) for what, value in items]
    lists = comm.all_gather_object(mine)
    for i in range(max(map(len, lists))):
        values = [
            ranks[i] if i < len(ranks) else ("nothing more", "nothing more") for ranks in lists
        ]
        odd = [r for r, value in enumerate(values) if value != values[0]]
        if odd:
            what, theirs = values[odd[0]]
            expected = values[0][1]
            if what != values[0][0]:
                theirs, expected, what = what, values[0][0], "the next item"
            who = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
            raise MismatchError(
                f"ranks do not agree on {what}: {who} got {theirs}, rank 0 has {expected}; all "
                "ranks must construct the same model, algorithm and options"
            )


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def broadcast_tensors(comm: Communicator, tensors: Iterable[Tensor], root: int = 0) -> None:
    """Replace tensors of any dtype, on any device, by those of rank `root`, bit for bit."""
    batch: list[Tensor] = []
    size = 0
    for tensor in tensors:
        batch.append(tensor)
        size += tensor.nbytes
        if size >= _CHUNK:
            _broadcast_batch(comm, batch, root)
            batch, size = [], 0
    if batch:
        _broadcast_batch(comm, batch, root)


def _broadcast_batch(comm: Communicator, tensors: list[Tensor], root: int) -> None:
    data = torch.cat([_as_bytes(t) for t in tensors]) if tensors else torch.empty(0)
    comm.broadcast(data.numpy().view(np.uint8), root)
    with torch.no_grad():
        for tensor, part in zip(tensors, data.split([t.nbytes for t in tensors]), strict=True):
            # clone: a slice may start where the dtype could not be read from
            tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))
