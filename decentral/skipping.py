"""Steps that are skipped because something is not finite: on all ranks alike, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .communicators.base import Communicator
from .compressors import NotFiniteError

Closure = Callable[[], Any] | None
CHOICES = ("stop", "skip")
_LARGEST_NORM = 2.0**63  # its square is about what float32 holds


def check_choice(not_finite: str) -> str:
    """Return the choice.

    Raises:
        ValueError: there is no such.
    """
    if not_finite not in CHOICES:
        raise ValueError(f"not_finite must be one of {', '.join(CHOICES)}, got {not_finite!r}")
    return not_finite


class Skips:
    """Decides whether a step is skipped; `count` says how many were.

    Where gradients are averaged (`means`), the means tell all ranks alike. Else they are each
    rank's own, and with "skip" ranks ask each other before every update: an all-reduce of 4 bytes,
    which is waited for. A gradient whose norm is 2^63 or more counts as not finite then.
    """

    def __init__(
        self, how: str, comm: Communicator, optimizer: torch.optim.Optimizer, means: bool
    ) -> None:
        self._skips, self._comm, self._optimizer = how == "skip", comm, optimizer
        self._asks = self._skips and not means
        self.together = means or self._skips or comm.size == 1  # all ranks skip, or none
        self.count = 0

    def decide(self, overflow: bool | None, closure: Closure) -> tuple[bool, Closure]:
        """Return whether this step is skipped, and the closure, which may have been called.

        `overflow` is what GradScaler has found on this rank.
        """
        skip = bool(overflow)
        if self._asks:
            closure = _called(closure) if closure is not None else None
            mine = float(skip or not self._finite())
            skip = (self._comm.all_reduce_max(mine) if self._comm.size > 1 else mine) > 0
        self.count += skip
        return skip, closure

    def attempt(self, step: Callable[[], Any]) -> tuple[bool, Any]:
        """Take a step with means; return whether it was skipped, and what it returned.

        Raises:
            NotFiniteError: a mean is not finite, and steps are not skipped.
        """
        try:
            return False, step()
        except NotFiniteError:
            if not self._skips:
                raise
        self.count += 1
        return True, None

    def _finite(self) -> bool:
        """Return whether the gradients of this rank are."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norms = [_norm(p.grad) for p in parameters if p.grad is not None]
        return not norms or bool((torch.stack(norms) < _LARGEST_NORM).all())  # NaN is not


def _norm(g: torch.Tensor) -> torch.Tensor:
    values = g.coalesce().values() if g.is_sparse else g
    return torch.linalg.vector_norm(values, dtype=torch.float32).cpu()


def _called(closure: Callable[[], Any]) -> Callable[[], Any]:
    """Call a closure, and return one that gives that result first, before it is called again."""
    with torch.enable_grad():
        results = [closure()]
    return lambda: results.pop() if results else closure()
