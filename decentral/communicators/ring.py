"""An all-reduce of our own: reduce-scatter, then all-gather, around a ring of ranks.

Every rank sends 2 (n - 1) / n of the vector, the least there is (Patarasuk and Yuan, 2009), to one
neighbor, and every rank gets the same bits, since each shard is added up by one of them. A vector
goes in segments that go around at the same time, so that the wire is busy while one is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

# Small enough that adding one overlaps with sending the next, and large enough for the overhead.
SEGMENT_NBYTES = 1 << 20
TAGS = 1 << 15


def num_segments(nbytes: int, n: int) -> int:
    """Return in how many segments a vector of so many bytes goes around n ranks."""
    return max(1, round(nbytes / (SEGMENT_NBYTES * min(n, 4))))


class RingSum:
    """The sum of a vector over the ranks of an mpi4py communicator, in place.

    `order` are the ranks around the ring; those of a host should be neighbors. Segment i uses tag
    `tag` + i. With `mean` the sum is divided by the number of ranks. `landed()` is called at the
    end.
    """

    def __init__(
        self,
        comm: Any,
        vector: Any,
        wait_for: Callable[[Callable[[], bool]], None],
        order: Sequence[int] = (),
        tag: int = 0,
        mean: bool = False,
        landed: Callable[[], None] = lambda: None,
    ) -> None:
        self._comm, self._wait_for, self._mean, self._landed = comm, wait_for, mean, landed
        self.moves = 0
        self._n = n = comm.Get_size()
        ring = list(order) or list(range(n))
        self._place = ring.index(comm.Get_rank())
        self._left, self._right = ring[self._place - 1], ring[(self._place + 1) % n]
        count = num_segments(vector.nbytes, n)
        edges = [len(vector) * i // count for i in range(count + 1)]
        segments = [
            self._around(vector[a:b], (tag + i) % TAGS) for i, (a, b) in enumerate(pairwise(edges))
        ]
        # A segment and what it waits for.
        self._under_way = [(segment, next(segment, None)) for segment in segments]

    @property
    def complete(self) -> bool:
        """Whether the vector holds the sum."""
        return not self._under_way

    def test(self) -> bool:
        """Let every segment go on whose messages are there; return whether the sum is complete."""
        if not self._under_way:
            return True
        waiting = []
        for segment, request in self._under_way:
            while request is not None and request.Test():
                request = next(segment, None)
                self.moves += 1
            if request is not None:
                waiting.append((segment, request))
        self._under_way = waiting
        if not waiting:
            self._landed()
        return not waiting

    def wait(self) -> None:
        """Return when the vector holds the sum."""
        self._wait_for(self.test)

    def _around(self, vector: Any, tag: int) -> Iterator[Any]:
        """Yield the requests of a segment, each of which must complete before the next."""
        n, place = self._n, self._place
        edges = [len(vector) * i // n for i in range(n + 1)]
        shards = [vector[a:b] for a, b in pairwise(edges)]
        received = np.empty(max(map(len, shards)), vector.dtype)
        sends = []
        for step in range(n - 1):  # after it, this rank has the sum of shard place + 1
            mine, theirs = shards[(place - step) % n], shards[(place - step - 1) % n]
            part = received[: len(theirs)]
            receive = self._comm.Irecv(part, self._left, tag)
            sends.append(self._comm.Isend(mine, self._right, tag))
            yield receive
            np.add(theirs, part, out=theirs)
        yield from sends  # before what they send is overwritten
        if self._mean:
            own = shards[(place + 1) % n]
            np.divide(own, n, out=own)
        sends = []
        for step in range(n - 1):
            receive = self._comm.Irecv(shards[(place - step) % n], self._left, tag)
            sends.append(self._comm.Isend(shards[(place + 1 - step) % n], self._right, tag))
            yield receive
        yield from sends
