"""An all-reduce of our own: reduce-scatter, then all-gather, around a ring of ranks.

Every rank sends 2 (n - 1) / n of the vector, the least there is (Patarasuk and Yuan, 2009), to one
neighbor, and every rank gets the same bits, since each shard is added up by one of them. A vector
goes in segments that go around at the same time, so that the wire is busy while one is added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .base import messages_of
from .requests import Requests

# Small enough that adding one overlaps with sending the next, and large enough for the overhead.
SEGMENT_NBYTES = 1 << 20
TAGS = 1 << 15


def num_segments(nbytes: int, n: int) -> int:
    """Return in how many segments a vector of so many bytes goes around n ranks."""
    return max(1, round(nbytes / (SEGMENT_NBYTES * min(n, 4))))


class Segments:
    """Segments of a vector on their way among the ranks of an mpi4py communicator; see Pending.

    `missing` are the ranks that messages come from. `landed()` is called at the end.
    """

    def __init__(self, comm: Any, requests: Requests, landed: Callable[[], None]) -> None:
        self._comm, self._requests, self._landed = comm, requests, landed
        self._under_way, self._sources = 0, tuple[int, ...]()
        self.poll, self.owner = requests.poll, requests

    @property
    def complete(self) -> bool:
        """See Pending."""
        return self._under_way == 0

    @property
    def missing(self) -> tuple[int, ...]:
        """See Pending."""
        return () if self.complete else self._sources

    def wait(self) -> None:
        """See Pending."""
        self._requests.wait_for(lambda: self.complete, lambda: messages_of(self.missing))

    def _start(self, segments: Sequence[Iterator[Any]]) -> None:
        """Let all go; each yields a request, which must complete before the next, and its bytes."""
        self._under_way = len(segments)
        for segment in segments:
            self._go_on(segment)

    def _go_on(self, segment: Iterator[Any], _: Any = None) -> None:
        """Let a segment go on as far as its next request."""
        with self._requests.lock:
            request, nbytes = next(segment, (None, 0))
            if request is not None:
                self._requests.add(request, functools.partial(self._go_on, segment), nbytes)
                return
            if self._under_way == 1:
                self._landed()
            self._under_way -= 1


class RingSum(Segments):
    """The sum of a vector over the ranks of an mpi4py communicator, in place; see Pending.

    `order` are the ranks around the ring; those of a host should be neighbors. Segment i uses tag
    `tag` + i. With `mean` the sum is divided by the number of ranks. `landed()` is called at the
    end.
    """

    def __init__(
        self,
        comm: Any,
        vector: Any,
        requests: Requests,
        order: Sequence[int] = (),
        tag: int = 0,
        mean: bool = False,
        landed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(comm, requests, landed)
        self._mean, self._n = mean, comm.Get_size()
        ring = list(order) or list(range(self._n))
        self._place = ring.index(comm.Get_rank())
        self._left, self._right = ring[self._place - 1], ring[(self._place + 1) % self._n]
        self._sources = (self._left,)
        count = num_segments(vector.nbytes, self._n)
        edges = [len(vector) * i // count for i in range(count + 1)]
        parts = [vector[a:b] for a, b in pairwise(edges)]
        self._start([self._around(part, (tag + i) % TAGS) for i, part in enumerate(parts)])

    def _around(self, vector: Any, tag: int) -> Iterator[Any]:
        """Yield the requests of a segment, and their bytes."""
        n, place = self._n, self._place
        edges = [len(vector) * i // n for i in range(n + 1)]
        shards = [vector[a:b] for a, b in pairwise(edges)]
        received = np.empty(max(map(len, shards)), vector.dtype)
        sends = []
        for step in range(n - 1):  # after it, this rank has the sum of shard place + 1
            mine, theirs = shards[(place - step) % n], shards[(place - step - 1) % n]
            part = received[: len(theirs)]
            receive = self._comm.Irecv(part, self._left, tag)
            sends.append((self._comm.Isend(mine, self._right, tag), mine.nbytes))
            yield receive, part.nbytes
            with np.errstate(over="ignore", invalid="ignore"):  # who asks looks at the sum
                np.add(theirs, part, out=theirs)
        yield from sends  # before what they send is overwritten
        if self._mean:
            own = shards[(place + 1) % n]
            np.divide(own, n, out=own)
        sends = []
        for step in range(n - 1):
            theirs, mine = shards[(place - step) % n], shards[(place + 1 - step) % n]
            receive = self._comm.Irecv(theirs, self._left, tag)
            sends.append((self._comm.Isend(mine, self._right, tag), mine.nbytes))
            yield receive, theirs.nbytes
        yield from sends
