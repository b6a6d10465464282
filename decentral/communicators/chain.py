"""A broadcast of our own along a chain of ranks, in segments: every link carries the vector once.

MPI libraries send large vectors from the root to several ranks, which share its link: 10 s for 42
MB to three hosts at 100 Mbit/s, where the chain takes 3.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .requests import Requests
from .ring import TAGS, Segments

_SEGMENT_NBYTES = 1 << 18  # the last of n ranks has the vector n - 2 segments later than the first


def chain_segments(nbytes: int) -> int:
    """Return in how many segments a vector of so many bytes travels, each with a tag of its own."""
    return max(1, -(-nbytes // _SEGMENT_NBYTES))


class Chain(Segments):
    """uint8[n] of rank `root` on its way to all others, each from the one before it in `ring`.

    Segment i uses tag `tag` + i. `sends_nbytes` is what this rank sends.
    """

    def __init__(
        self,
        comm: Any,
        vector: Any,
        requests: Requests,
        ring: Sequence[int],
        root: int,
        tag: int,
    ) -> None:
        super().__init__(comm, requests, lambda: None)
        first = ring.index(root)
        chain = [*ring[first:], *ring[:first]]
        place = chain.index(comm.Get_rank())
        self._sources = tuple(chain[max(0, place - 1) : place])
        self._targets = chain[place + 1 : place + 2]
        self.sends_nbytes = len(self._targets) * vector.nbytes
        starts = range(0, len(vector), _SEGMENT_NBYTES)
        parts = [vector[at : at + _SEGMENT_NBYTES] for at in starts]
        self._start([self._along(part, (tag + i) % TAGS) for i, part in enumerate(parts)])

    def _along(self, part: Any, tag: int) -> Iterator[Any]:
        """Yield the requests of a segment, and their bytes."""
        for source in self._sources:
            yield self._comm.Irecv(part, source, tag), part.nbytes
        for target in self._targets:
            yield self._comm.Isend(part, target, tag), part.nbytes
