"""Steps that exchange what became of the parameters: gossip, and means after local steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decentral_kernels.elementwise import Applied

from .algorithms import GossipAlgorithm, GradientAlgorithm
from .averaging import average_parameters
from .buckets import Buckets, Flat, copy_all_from, copy_all_into, copy_into, same_memory
from .communicators.base import Communicator
from .communicators.watch import RankLostError
from .compressors import NotFiniteError
from .compressors.checks import is_whole
from .engine import Engine, Task
from .local_step import LocalStep
from .payload import keep_array
from .reducer import complaint, located
from .streams import Side


class Every(NamedTuple):
    """After how many steps ranks do what; 0 is never.

    Raises:
        ValueError: check() finds what is no such number.
    """

    local_steps: int
    average_every: int
    consensus_every: int
    check_every: int

    def check(self) -> Every:
        """Return this one, whose numbers are as they should be."""
        for name, value in self._asdict().items():
            least = 1 if name == "local_steps" else 0
            if not is_whole(value) or value < least:
                never = "" if least else "; 0 is never"
                raise ValueError(
                    f"{name} must be an integer of at least {least}, got {value!r}{never}"
                )
        return self

    def averages(self, step: int) -> bool:
        """Return whether all parameters are averaged after a step."""
        return self.average_every > 0 and step % self.average_every == 0

    def looks(self, step: int) -> bool:
        """Return whether the distance between ranks is estimated after a step."""
        return self.consensus_every > 0 and step % self.consensus_every == 0

    def checks(self, step: int) -> bool:
        """Return whether ranks are compared after a step: the first exchange after so many."""
        k, h = self.check_every, self.local_steps
        return k > 0 and step % h == 0 and step // k > (step - h) // k


class Rounds(ABC):
    """Rounds of `local_steps` steps of an optimizer, with an exchange at the end of each.

    Parameters that are float32 and dense are moved into one flat vector, where they are changed in
    place; `flat` is another, for the parameters at the beginning of a round. Exchanges count from
    1, and are what an algorithm calls a step.
    """

    def __init__(
        self, buckets: Buckets, flat: Flat, comm: Communicator, engine: Engine, local_steps: int
    ) -> None:
        self._buckets, self._comm, self._engine = buckets, comm, engine
        self._local_steps, self._side = local_steps, Side()
        self._new, self._old = buckets.empty(), flat
        buckets.adopt(self._new)
        self._views = buckets.views(self._new)
        self._x_new, self._x = (
            [keep_array(b.of(v)) for b in buckets] for v in (self._new, self._old)
        )

    def step(self, number: int, local_step: LocalStep | None) -> Any:
        """Take a local step, which changes the parameters, and exchange at the end of a round.

        Raises:
            NotFiniteError: a parameter is NaN or inf; names rank, step and parameter.
        """
        if (number - 1) % self._local_steps == 0:
            self._begin()
        result = self._take(local_step, number) if local_step is not None else None
        if number % self._local_steps == 0:
            self._gather()
            self._exchange(number // self._local_steps)
            copy_all_from(self._views, self._buckets.parameters)
        return result

    def _take(self, local_step: LocalStep, number: int) -> Any:
        return local_step()

    def _gather(self) -> None:
        """Copy the parameters that do not live in the flat vector into it."""
        copy_all_into(self._views, self._buckets.parameters)

    def _begin(self) -> None:
        """Keep the parameters of the beginning of a round."""
        self._gather()
        for old, new in zip(self._old, self._new, strict=True):
            old.copy_(new)

    @abstractmethod
    def _exchange(self, t: int) -> None:
        """Make the parameters of the next round of those of the last one, and what was reached."""

    def restart(self) -> None:
        """Begin anew from the parameters, in the middle of a round or not."""
        self._begin()

    def settle(self) -> None:
        """Return when all messages under way have arrived."""
        self._engine.drain()
        self._side.join()

    def state_dict(self, number: int) -> dict[str, Any]:
        """Return what is to be kept after so many steps: a round may have begun."""
        begun = number % self._local_steps != 0
        return {"beginning": [old.clone() for old in self._old]} if begun else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict() returned."""
        for old, saved in zip(self._old, state.get("beginning", ()), strict=False):
            old.copy_(saved)


class Mixer(Rounds):
    """Mix parameters with what has arrived, and let the next messages go meanwhile."""

    def __init__(self, algorithm: GossipAlgorithm, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._algorithm = algorithm
        self._tasks: list[Task] = []
        self._before = self._buckets.views(self._old)
        self._rest: dict[int, Applied] = {}  # of the local step, by bucket
        self._anew = True  # whether the next round begins from the parameters

    def _begin(self) -> None:
        """See Rounds._begin; in the flat vector is what the algorithm has left there."""
        if self._anew:
            super()._begin()
            self._anew = False

    def step(self, number: int, local_step: LocalStep | None) -> Any:
        """See Rounds.step."""
        result = super().step(number, local_step)
        if number % self._local_steps == 0:
            self._round()
        return result

    def _take(self, local_step: LocalStep, number: int) -> Any:
        """Take a local step but for what update() does of it."""
        if number % self._local_steps or self._algorithm.x_new_at is None:
            return local_step()
        result, self._rest = local_step.but_for_rest(self._buckets, self._views, self._x_new)
        return result

    def _round(self) -> None:
        """Let the algorithm, too, have what parameters of other dtypes have made of the iterate.

        Unless the neighbors know it: then what they have made is a part of the next update.
        """
        if self._algorithm.shares_x:
            return
        for p, new, old in zip(self._buckets.parameters, self._views, self._before, strict=True):
            if not same_memory(new, p):
                copy_into(old, p)

    def restart(self) -> None:
        """See Rounds.restart."""
        self._anew = True
        super().restart()

    def state_dict(self, number: int) -> dict[str, Any]:
        """See Rounds.state_dict; also what a script that changes parameters has made of them."""
        if self._algorithm.keeps_x and not self._anew:
            pairs = zip(self._old, self.parameters(), strict=True)
            if any(not torch.equal(old, new) for old, new in pairs):
                return {"beginning": [old.clone() for old in self._old]}
        return super().state_dict(number)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Rounds.load_state_dict."""
        super().load_state_dict(state)
        self._anew = "beginning" not in state

    def _exchange(self, t: int) -> None:
        """See Rounds._exchange.

        A bucket's messages are waited for just before it is mixed, so that the wire has those of
        the last buckets while the optimizer runs, and of the first ones soon again.
        """
        try:
            self._mix(t)
        finally:
            for rest in self._rest.values():  # an error costs no other bucket its step
                rest()
            self._rest = {}
        algorithm = self._algorithm
        if algorithm.synchronous:
            for b in range(len(self._buckets)):
                self._engine.wait(self._tasks[b])
                self._side.join()
                algorithm.finish(b, self._x[b], self._x_new[b], t)

    def _mix(self, t: int) -> None:
        algorithm = self._algorithm
        before, self._tasks = self._tasks, []
        for b, bucket in enumerate(self._buckets):
            self._engine.wait(*before[b : b + 1])  # none in the first step
            self._side.join()
            algorithm.rest = self._rest.pop(b, None)
            try:
                algorithm.update(b, self._x[b], self._x_new[b], t)
            except NotFiniteError as error:
                self._anew = True
                self._tasks += before[b:]  # whose messages are still under way
                raise located(error, self._comm.rank, t, b, self._buckets) from error
            what = f"step {t}, {bucket}"
            steps = self._side.task(algorithm.publish(b, t), self._x_new[b])
            self._tasks.append(self._engine.submit(steps, what))

    def iterate(self) -> list[Tensor]:
        """Return what the algorithm has left of the iterate, a vector per bucket; see keeps_x."""
        return self._x

    def parameters(self) -> Flat:
        """Return this rank's parameters, which are not to be changed."""
        self._gather()
        return self._new

    def average(self) -> float:
        """Give all ranks the mean of their parameters, and return how far they were from it."""
        self.settle()
        self._tasks = []
        with torch.no_grad():
            distance = average_parameters(self._comm, self._buckets)
        self._gather()
        self._algorithm.reset(self._x_new)
        self.restart()
        return distance


class PeriodicMean(Rounds):
    """Average what the parameters moved by in a round, as if that were a gradient.

    Stich: "Local SGD Converges Fast and Communicates Little", ICLR 2019, arXiv:1805.09767, with
    the differences compressed as in Reisizadeh et al.: "FedPAQ", AISTATS 2020, arXiv:1909.13014.
    After it all ranks have the same parameters, bit for bit.
    """

    def __init__(self, algorithm: GradientAlgorithm, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._algorithm = algorithm
        # What an exchange that fails has left behind, or is still writing to, is no parameter.
        self._moved = self._buckets.empty()

    def _exchange(self, t: int) -> None:
        """See Rounds._exchange."""
        for moved, old, new in zip(self._moved, self._old, self._new, strict=True):
            torch.sub(old, new, out=moved)
        self._algorithm.begin_step(t, [[1.0] * len(b.indices) for b in self._buckets])
        tasks = []
        for b, bucket in enumerate(self._buckets):
            g = bucket.of(self._moved)
            steps = self._side.task(self._algorithm.average(b, g, t), g)
            tasks.append(self._engine.submit(steps, f"step {t}, {bucket}"))
        try:
            self._engine.wait(*tasks)
        except RankLostError:  # what the parameters moved by is lost, and with it the round
            for old, new in zip(self._old, self._new, strict=True):
                new.copy_(old)
            raise
        self._side.join()
        error = complaint([task.result for task in tasks], self._comm, t, self._buckets)
        if error is not None:
            raise error
        for moved, old, new in zip(self._moved, self._old, self._new, strict=True):
            torch.sub(old, moved, out=new)
