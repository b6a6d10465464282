"""Gradients on their way to the mean: bucket after bucket, while backward() goes on.

As PyTorch's DDP: a hook on every parameter brings its gradient into its buckets; one that is full
is handed to the engine, in the order of the buckets, which all ranks have in common; at the end of
backward() the rest follows, and all means are waited for.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .algorithms import GradientAlgorithm
from .averaging import unused_by_all
from .buckets import Buckets, copy_into
from .communicators.base import Communicator
from .compressors import NotFiniteError
from .engine import Engine, Task, run_now
from .gradients import Gradients, hook, unhook
from .streams import Side


class Reducer:
    """Averages the gradients of one optimizer's parameters once per backward().

    `begin(again)` is called before the first bucket of each, and returns the number of the step;
    `again` counts the means of this step that there were before.
    """

    def __init__(
        self,
        algorithm: GradientAlgorithm,
        buckets: Buckets,
        comm: Communicator,
        engine: Engine,
        begin: Callable[[int], int],
    ) -> None:
        self._algorithm, self._buckets, self._comm = algorithm, buckets, comm
        self._engine, self._begin, self._side = engine, begin, Side()
        self._gradients = Gradients(buckets)
        self.sync, self.averaged = True, False
        self._lock = threading.RLock()  # autograd has a thread per device
        self.not_finite: NotFiniteError | None = None
        self._queued: weakref.ref[Any] | None = None  # what is called at the end of a backward()
        self._last_step = 0
        self.new_step()
        self._reset()
        for i, p in enumerate(buckets.parameters):
            hook(p, _hook(weakref.ref(self), i))

    def new_step(self) -> None:
        """What comes next belongs to another step."""
        self._means_before = 0  # in this step
        self._unused = self._evaluated = False  # no step has used the means; a closure made them

    def _reset(self) -> None:
        self._step = 0  # not begun
        self._missing = [len(b.indices) for b in self._buckets]
        self._seen = [False] * len(self._buckets.parameters)
        self._gradients.forget()
        self._tasks: list[Task] = []

    def forget(self) -> None:
        """Gradients were cleared, and so was what a mean has changed that no step has used."""
        if self._unused and not self._evaluated:
            self._algorithm.retract(self._last_step)
            self.new_step()
        self._clear()

    def _clear(self) -> None:
        self.averaged, self._queued = False, None
        self.not_finite = None
        self._abandon()

    def _abandon(self) -> None:
        """Forget what a backward() has begun that an exception ended; all ranks meet it alike."""
        if any(self._seen):
            self._engine.drain()
            self._side.join()
            if self._step:
                self._algorithm.retract(self._step)
            self._reset()

    # ---- during backward ----------------------------------------------------------------------

    def ready(self, index: int) -> None:
        """Take the gradient of a parameter, which is there; at the end of backward(), average."""
        self.averaged = False
        if self.sync:
            with self._lock, torch.no_grad():
                self._take(index)

    def _take(self, index: int) -> None:
        if self._queued is None or self._queued() is None:
            self._abandon()
            # The way DDP and FSDP learn of the end of backward(); torch has no public one. What is
            # queued is torch's alone, and so gone with a backward() that an exception ends.
            average = functools.partial(self.average)
            self._queued = weakref.ref(average)
            torch.autograd.Variable._execution_engine.queue_callback(average)
        if self._seen[index]:
            self._again(index)
        self._collect(index)
        self._launch()

    def _again(self, index: int) -> None:
        """A gradient changed after it was taken: reentrant checkpointing does that."""
        if any(b < len(self._tasks) for b in self._buckets.holding[index]):
            name = self._buckets[self._buckets.holding[index][0]].names[0]
            raise RuntimeError(
                f"the gradient of a parameter in the bucket of {name!r} changed in backward() "
                "after it was sent; expected one gradient per parameter and backward(). Use "
                "torch.utils.checkpoint with use_reentrant=False, or call backward() inside "
                "no_sync(), so that step() averages"
            )
        for b in self._buckets.holding[index]:
            self._missing[b] += 1

    def _collect(self, index: int) -> None:
        """Bring a gradient into its buckets."""
        self._gradients.collect(index)
        self._seen[index] = True
        for b in self._buckets.holding[index]:
            self._missing[b] -= 1

    def _launch(self) -> None:
        """Hand over the buckets that are full, none before the one in front of it."""
        while len(self._tasks) < len(self._buckets) and not self._missing[len(self._tasks)]:
            if not self._step:
                self._step = self._last_step = self._begin(self._means_before)
            b = len(self._tasks)
            g = self._gradients.vector(b)
            steps = self._side.task(self._algorithm.average(b, g, self._step), g, turns=True)
            self._tasks.append(self._engine.submit(steps, f"step {self._step}, {self._buckets[b]}"))

    # ---- step() -------------------------------------------------------------------------------

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None) -> Any:
        """Perform the optimizer's step with the means, and return what the closure does.

        Raises:
            NotFiniteError: a mean is NaN; on all ranks.
        """
        try:
            if closure is None:
                self._means()  # if backward() was inside no_sync(), or not called at all
                result: Any = optimizer.step()
            else:
                result = optimizer.step(self._averaging(closure))
        finally:
            self.new_step()
        self._clear()
        return result

    def follow(self, step: int) -> None:
        """Average for a step that other ranks take, which use the means."""
        if step != self._last_step:
            self.new_step()
        self.average()
        self._unused = False

    def _averaging(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def averaging_closure() -> Any:
            self.forget()
            self._evaluated = True
            with torch.enable_grad():
                loss = closure()
            self._means()
            return loss

        return averaging_closure

    def _means(self) -> None:
        self.average()
        if (error := self.not_finite) is not None:
            self._clear()
            raise error

    # ---- at its end ---------------------------------------------------------------------------

    @torch.no_grad()
    def average(self) -> None:
        """Let every parameter's grad be the mean; ranks do so equally often, whichever they used.

        At the end of backward(), or in step() if that was inside no_sync(), or not called at all.
        """
        self._queued = None
        if self.averaged:
            return
        for i, seen in enumerate(self._seen):
            if not seen:
                self._collect(i)
        self._launch()
        self._engine.wait(*self._tasks)
        self._side.join()
        self._hand_out()
        results = [task.result for task in self._tasks]
        self.not_finite = complaint(results, self._comm, self._step, self._buckets)
        if self.not_finite is not None:
            self._algorithm.retract(self._step)
        self.averaged = True
        self._means_before, self._unused = self._means_before + 1, True
        self._reset()

    def _hand_out(self) -> None:
        """Set grad where it is no view; momentum must not move what no rank has used."""
        parameters = self._buckets.parameters
        means = [self._gradients.mean(i) for i in range(len(parameters))]
        used = [p.grad is not None for p in parameters]
        unused = run_now(unused_by_all(self._comm, zip(used, means, strict=True)))
        for i, (p, view) in enumerate(zip(parameters, means, strict=True)):
            if p.grad is not None:
                copy_into(p.grad, view)
            elif i not in unused:
                p.grad = view if p.dtype == view.dtype else view.to(p.dtype)


def _hook(reducer: weakref.ref[Reducer], index: int) -> Callable[[Tensor], None]:
    """Return a hook that is no reason to keep the reducer: Python cannot see cycles through it."""

    def ready(p: Tensor) -> None:
        if (alive := reducer()) is not None:
            alive.ready(index)
        else:
            unhook(p)

    return ready


def complaint(
    results: Sequence[NotFiniteError | None], comm: Communicator, step: int, buckets: Buckets
) -> NotFiniteError | None:
    """Return what made a mean NaN, in the words of the rank that knows; all ranks have one.

    `results` are those of Averaging, by bucket.
    """
    found = [(b, error) for b, error in enumerate(results) if error is not None]
    if not found:
        return None
    b, error = min(found, key=lambda pair: pair[1].index < 0)  # its own mistake, if there is
    mine = located(error, comm.rank, step, b, buckets)
    everyone = comm.all_gather_object(mine)
    error = next((e for e in everyone if e.index >= 0), mine)
    error.on_all_ranks = True  # so that rank 0 says it, and no other
    return error


def located(
    error: NotFiniteError, rank: int, step: int, b: int, buckets: Buckets
) -> NotFiniteError:
    """Return an error of a bucket with rank, step and parameter."""
    if error.index < 0:
        return NotFiniteError(f"rank {rank}, step {step}, bucket {b}: {error}", error.index)
    name = buckets[b].name_at(error.index)
    return NotFiniteError(
        f"rank {rank}, step {step}, bucket {b}: {error}, which belongs to parameter {name!r}: its "
        "gradient, or the step taken with it, is not finite. Lower the learning rate, clip "
        "gradients, or look at this rank's batch",
        error.index,
    )
