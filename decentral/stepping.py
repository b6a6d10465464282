"""One step: whether it is taken, what it is made of, and what all ranks do after it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .algorithms import Algorithm
from .buckets import Buckets
from .communicators import Communicator
from .consistency import Replicas
from .engine import Engine
from .join import Joining, rates_of, set_rates, take_over
from .ledger import Ledger
from .local_step import LocalStep
from .mixer import Rounds
from .reducer import Reducer
from .scaling import check_averaged, unscale
from .skipping import Skips
from .startup import check_trained, learning_rates
from .upkeep import Upkeep
from .wrapper import Wrapper


class Stepping(Wrapper):
    """What DistributedOptimizer does in a step, of the parts that it is made of.

    One of `_rounds` and `_reducer`, or neither where there is one rank.
    """

    _algorithm: Algorithm
    _buckets: Buckets
    _comm: Communicator
    _engine: Engine
    _inside: int  # how many averaged() deep
    _joining: Joining
    _ledger: Ledger
    _model: nn.Module
    _reducer: Reducer | None
    _replicas: Replicas
    _rounds: Rounds | None
    _skips: Skips
    _steps: int
    _trained: Container[int]  # id() of the parameters that ranks have agreed on
    _upkeep: Upkeep

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward() only accumulates gradients; the next one outside averages the sum."""
        reducer = self._reducer
        if reducer is None:
            yield
            return
        before, reducer.sync = reducer.sync, False
        try:
            yield
        finally:
            reducer.sync = before

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Perform one step of the wrapped optimizer, and of the algorithm.

        Under GradScaler, a rank (with gossip), or all (otherwise), may skip the optimizer's part.
        With not_finite="skip" all ranks leave out the step where a gradient is not finite, and None
        is returned; what an optimizer makes infinite of finite gradients is an error all the same.

        Raises:
            NotFiniteError: a gradient, or parameter, is NaN or inf; names rank, step and parameter.
            InconsistentError: check_every is due, and ranks differ; on all ranks.
            RuntimeError: inside averaged(), or ranks do not average a parameter with a gradient.
        """
        self._refuse_inside("step()")
        check_trained(self.optimizer, self._model, self._trained)
        overflow = unscale(self, self.optimizer)
        reducer = self._reducer
        if self._rounds is not None:
            self._joining.announce("step")
        check_averaged(overflow, reducer is None or reducer.averaged)
        skip, closure = self._skips.decide(overflow, closure)
        if skip and self._skips.together:
            if reducer is not None:
                reducer.forget()
            return None
        local = None if skip else LocalStep(self.optimizer, closure)
        if reducer is None:
            return self._finish(self._take(local))
        skip, result = self._skips.attempt(lambda: reducer.step(self.optimizer, closure))
        return None if skip else self._finish(result)

    def _refuse_inside(self, what: str) -> None:
        """Raise RuntimeError inside averaged(): its end would undo one half of what is done."""
        if self._inside:
            raise RuntimeError(
                f"{what} inside averaged(), at whose end every rank has its own parameters again; "
                "expected it outside. Leave the block first"
            )

    def _take(self, local: LocalStep | None) -> Any:
        if self._rounds is not None:
            return self._rounds.step(self._steps + 1, local)
        return None if local is None else local()

    def _finish(self, result: Any) -> Any:
        self._steps += 1
        self._upkeep.after(self._steps)
        return result

    def _compare(self, step: int) -> None:
        """Compare replicas; inside join() a rank without a batch is behind."""
        ahead = self._reducer is None or not self._joining.following
        if self._reducer is not None:
            self._joining.announce("compare", step)
        with self._ledger.counting("averaging"):
            self._replicas.check(step, compared=ahead)

    def _begin_averaging(self, again: int) -> int:
        step = self._steps + 1
        said = self._joining.announcing("average", (step, rates_of(self.optimizer)))
        if said is not None:
            self._engine.submit(said, f"step {step}, join()")
        rates = learning_rates(self.optimizer, self._buckets)
        self._algorithm.begin_step(step, rates, again)  # type: ignore[attr-defined]
        return step

    # ---- ranks with fewer batches -----------------------------------------------------------

    @contextmanager
    def join(self) -> Iterator[None]:
        """Inside, ranks may take different numbers of steps: for a loop over uneven batches.

        A rank that comes to the end early goes on answering the others until all are there. With a
        gradient algorithm it adds zeros to each mean, which remains one over all ranks, and in the
        end has the parameters, buffers, optimizer's state and steps of the first rank of those that
        took most. With gossip, or local_steps, it takes their steps without an update of its own.
        All ranks must enter, after equally many steps. An exception leaves at once.

        A scheduler that steps per batch, and a GradScaler, are the script's: give those of a rank
        that was early the state of another one's, or their rates and scales part. Gradients that
        were only accumulated when the loop ended are cleared.

        Raises:
            RuntimeError: already inside; also what involves all ranks, such as averaged(), inside.
            MismatchError: ranks have taken different numbers of steps before.
        """
        with self._joining.inside(self._steps):
            yield
        if self._reducer is not None and (last := self._joining.last) is not None:
            self._reducer.new_step()
            with self._ledger.counting("averaging"):
                counts = (self._steps, self._skips.count)
                counts = take_over(self._comm, self._model, self.optimizer, last, counts)
            self._steps, self._skips.count = counts

    def _follow_mean(self, details: tuple[int, list[float]]) -> None:
        """Average zeros; `details` are the number and learning rates of the others' step."""
        assert self._reducer is not None
        self._steps = details[0] - 1
        set_rates(self.optimizer, details[1])
        self.zero_grad()
        self._reducer.follow(details[0])
        self.zero_grad()

    @torch.no_grad()
    def _follow_step(self, _: Any) -> None:
        self.zero_grad()
        skip, _ = self._skips.decide(None, None)
        if not skip:
            self._finish(self._take(None))
