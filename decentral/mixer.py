"""Gossip steps: mix parameters with what has arrived, and let the next messages go meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .algorithms import GossipAlgorithm
from .buckets import Buckets, Flat
from .communicators.base import Communicator
from .compressors import NotFiniteError
from .engine import Engine, Task
from .gradients import hold
from .reducer import located


class Mixer:
    """Does the steps of one optimizer whose ranks gossip.

    Parameters that are float32 and dense are moved into one flat vector, where the algorithm
    changes them in place; `flat` is another, for the parameters before a step.
    """

    def __init__(
        self,
        algorithm: GossipAlgorithm,
        buckets: Buckets,
        flat: Flat,
        comm: Communicator,
        engine: Engine,
    ) -> None:
        self._algorithm, self._buckets, self._comm = algorithm, buckets, comm
        self._engine = engine
        self._new, self._old = buckets.empty(), flat
        buckets.adopt(self._new)
        hold(buckets.parameters)
        self._tasks: list[Task] = []

    def step(self, number: int, local_step: Callable[[], Any] | None) -> Any:
        """Do local_step(), which changes the parameters, mix them, and post the next messages.

        A bucket's messages are waited for just before it is mixed, so that the wire has those of
        the last buckets while local_step() runs, and of the first ones soon again.

        Raises:
            NotFiniteError: a parameter is NaN or inf; names rank, step and parameter.
        """
        buckets, algorithm = self._buckets, self._algorithm
        self._engine.wait_for_begin()  # until then messages are made of the old parameters' buffer
        buckets.gather(buckets.parameters, self._new)
        for old, new in zip(self._old, self._new, strict=True):
            old.copy_(new)
        result = local_step() if local_step is not None else None
        buckets.gather(buckets.parameters, self._new)
        before, self._tasks = self._tasks, []
        for b, bucket in enumerate(buckets):
            self._engine.wait(*before[b : b + 1])  # none in the first step
            try:
                algorithm.update(b, bucket.of(self._old), bucket.of(self._new), number)
            except NotFiniteError as error:
                raise located(error, self._comm.rank, number, b, buckets) from error
            what = f"step {number}, bucket {b}"
            self._tasks.append(self._engine.submit(algorithm.publish(b, number), what))
        buckets.scatter(self._new)
        return result

    def settle(self) -> None:
        """Return when all messages under way have arrived."""
        self._engine.drain()
