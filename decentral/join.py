"""Ranks with fewer batches: who leaves the loop early goes on answering the others.

After torch.distributed.algorithms.join, with DDP's divide_by_initial_world_size=True: a mean is
over all ranks, also those that have no batch left, whose gradients count as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .communicators.base import Communicator
from .engine import Steps
from .startup import MismatchError, broadcast_tensors


class Joining:
    """Lets ranks agree on what comes next, before they do it together, while inside().

    `acts` are, by name, what a rank that has left the loop does when the others announce it, with
    the details that the first of those gives: one small all-reduce, and the details only as soon
    as a rank has left. `following` says that this one has; `last` is the first rank of those that
    announced most.
    """

    def __init__(self, comm: Communicator, **acts: Callable[[Any], object]) -> None:
        self._comm, self._acts, self._names = comm, acts, ["", *acts]
        self._inside = self._active = self.following = False
        self.last: int | None = None

    @contextmanager
    def inside(self, steps: int) -> Iterator[None]:
        """Announce inside; at the end do what others announce, until all have come to theirs.

        An exception leaves at once. `steps` are those that this rank has taken before.
        """
        self.refuse("join()")
        self.last = None
        several = self._comm.size > 1
        if several:
            self._check(steps)
        self._inside, self._active = True, several
        try:
            yield
            self._active, self.following = False, several
            while self.following:
                act = self._agree("", None)
                self.following = act is not None
                if act is not None:
                    act()
        finally:
            self._inside = self._active = self.following = False

    def _check(self, steps: int) -> None:
        everyone = self._comm.all_gather_object(steps)
        odd = [rank for rank, count in enumerate(everyone) if count != everyone[0]]
        if odd:
            raise MismatchError(
                f"join(): rank {odd[0]} has taken {everyone[odd[0]]} steps before, rank 0 "
                f"{everyone[0]}; expected equally many. Let the loop before it end after as many "
                "batches on all ranks, or put it into join(), too"
            )

    def refuse(self, what: str) -> None:
        """Raise RuntimeError inside: ranks that have left the loop would not take part."""
        if self._inside:
            raise RuntimeError(
                f"{what} inside join(), where ranks may have no batch left; expected it outside. "
                "Call it before or after the block"
            )

    def announce(self, what: str, details: Any = None) -> None:
        """Tell the ranks that have left what to do with this one; outside do nothing."""
        if self._active:
            self._agree(what, details)

    def announcing(self, what: str, details: Any) -> Steps | None:
        """Return announce() as a task (engine.py); None outside."""
        return self._announcing(what, details) if self._active else None

    def _announcing(self, what: str, details: Any) -> Steps:
        self._agree(what, details)  # here and now: what follows on all ranks are collectives, too
        yield from ()

    def _agree(self, what: str, details: Any) -> Callable[[], object] | None:
        """Say what this rank does next, "" for nothing; return what it is to do with the others."""
        said = np.zeros(self._comm.size, np.int32)
        said[self._comm.rank] = self._names.index(what)
        self._comm.all_reduce(said).wait()
        active = np.flatnonzero(said)
        if not len(active):
            return None
        self.last = int(active[0])
        names = sorted({self._names[code] for code in said[active]})
        if len(names) > 1:
            raise RuntimeError(
                f"ranks do different things inside join(): {' and '.join(names)}; expected every "
                "rank that has a batch to do the same in each step"
            )
        if len(active) < len(said):
            mine = details if self._comm.rank == self.last else None
            details = self._comm.all_gather_object(mine)[self.last]
        return lambda: self._acts[names[0]](details)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the groups' learning rates."""
    return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]


def set_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    """Set what rates_of() returned."""
    groups = [group for group in optimizer.param_groups if "lr" in group]
    for group, rate in zip(groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class _Hole(NamedTuple):
    """What stands for a tensor in a state that travels without its tensors."""

    shape: torch.Size
    dtype: torch.dtype


def take_over(
    comm: Communicator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    root: int,
    counts: tuple[int, int],
) -> tuple[int, int]:
    """Replace parameters, buffers, the optimizer's groups and state by those of rank `root`.

    Returns that one's counts.
    """
    broadcast_tensors(comm, [*model.parameters(), *model.buffers()], root)
    state, tensors = None, list[Tensor]()

    def hole(t: Tensor) -> _Hole:
        tensors.append(t)
        return _Hole(t.shape, t.dtype)

    def filled(hole: _Hole) -> Tensor:
        tensors.append(torch.empty(hole.shape, dtype=hole.dtype))
        return tensors[-1]

    if comm.rank == root:
        state = _replaced(optimizer.state_dict(), Tensor, hole)
    state, counts = comm.all_gather_object((state, counts))[root]
    if comm.rank != root:
        state = _replaced(state, _Hole, filled)
    broadcast_tensors(comm, tensors, root)
    if comm.rank != root:
        optimizer.load_state_dict(state)
    return counts


def _replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """Return nested dicts, lists and tuples with by(v) for every v of a kind, in their order."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, dict):
        return {k: _replaced(v, kind, by) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(v, kind, by) for v in value)
    return value
