"""An all-reduce of our own: reduce-scatter, then all-gather, around a ring of ranks.

Every rank sends 2 (n - 1) / n of the vector, the least there is (Patarasuk and Yuan, 2009), to one
neighbor, and every rank gets the same bits, since each shard is added up by one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

_TAG = 32767  # exchanges use the tags below


class RingSum:
    """The sum of a vector over the ranks of an mpi4py communicator, in place.

    Nothing moves before wait(). `wait_for(test)` returns when test() is true; `landed()` is called
    at the end.
    """

    def __init__(
        self,
        comm: Any,
        vector: Any,
        wait_for: Callable[[Callable[[], bool]], None],
        landed: Callable[[], None] = lambda: None,
    ) -> None:
        self._comm, self._vector, self._wait_for, self._landed = comm, vector, wait_for, landed
        self._done = False

    def wait(self) -> None:
        """Return when the vector holds the sum."""
        if self._done:
            return
        self._done = True
        n, rank = self._comm.Get_size(), self._comm.Get_rank()
        edges = [len(self._vector) * i // n for i in range(n + 1)]
        shards = [self._vector[a:b] for a, b in itertools.pairwise(edges)]
        received = np.empty(max(map(len, shards)), self._vector.dtype)
        for step in range(n - 1):  # after it, this rank has the sum of shard rank + 1
            mine, theirs = shards[(rank - step) % n], shards[(rank - step - 1) % n]
            part = received[: len(theirs)]
            self._shift(mine, part)
            np.add(theirs, part, out=theirs)
        for step in range(n - 1):
            self._shift(shards[(rank + 1 - step) % n], shards[(rank - step) % n])
        self._landed()

    def _shift(self, outgoing: Any, incoming: Any) -> None:
        n, rank = self._comm.Get_size(), self._comm.Get_rank()
        receive = self._comm.Irecv(incoming, (rank - 1) % n, _TAG)
        send = self._comm.Isend(outgoing, (rank + 1) % n, _TAG)
        self._wait_for(receive.Test)
        self._wait_for(send.Test)
