"""Small collective operations, with MPI's own or as messages from each rank to each.

When a rank dies, Open MPI 5.0's non-blocking ones give up the messages that they have under way,
and a message that fails after it was given up ends its process ("Send error after request freed").
With messages of our own, and nothing revoked, no process was ended so any more; which of the two it
takes was not tried apart. n - 1 small messages a rank travel in one hop.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .base import Backoff
from .requests import Landed, Operation, Requests
from .ring import TAGS

CHUNK = 1 << 28  # counts of older MPI libraries are 32-bit
_OPERATORS: dict[str, Any] = {"sum": np.add, "max": np.maximum}


def survives() -> bool:
    """Return whether the job was started so that it may survive a death: `--with-ft ulfm`."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "0").lower() in ("1", "true")


def duplicate(comm: Any) -> Any:
    """Return Dup() of an mpi4py communicator, in which ranks would spin until the last has come.

    They come at different times, and may share cores; so they sleep first until all are here.
    """
    all_are_here, backoff = comm.Ibarrier(), Backoff()
    while not all_are_here.Test():
        backoff.pause()
    return comm.Dup()


def chunks(vector: Any) -> list[Any]:
    """Return the vector in parts that one call of MPI's takes."""
    return [vector[at : at + CHUNK] for at in range(0, len(vector), CHUNK)]


class Collectives(Protocol):
    """What both are; all ranks begin them in the same order."""

    def gather(
        self, mine: Any, sizes: Sequence[int], then: Callable[[list[Any]], None]
    ) -> Operation:
        """Send a vector to all, and call then(everybody's, by rank), of these sizes."""

    def reduce(self, vector: Any, how: str, then: Callable[[], None] = lambda: None) -> Operation:
        """Replace a vector by the "sum" or "max" over ranks, and call then()."""

    def broadcast(self, vector: Any, root: int) -> Operation:
        """Replace a vector of no more than CHUNK coordinates by the root's."""

    def barrier(self) -> Operation:
        """Complete when all ranks have begun it."""


class Own:
    """MPI's own, non-blocking, on an mpi4py communicator; `operators` are MPI's by name."""

    def __init__(
        self, comm: Any, requests: Requests, operators: Mapping[str, Any], in_place: Any
    ) -> None:
        self._comm, self._requests = comm, requests
        self._operators, self._in_place = operators, in_place

    def gather(
        self, mine: Any, sizes: Sequence[int], then: Callable[[list[Any]], None]
    ) -> Operation:
        """See Collectives.gather."""
        everything = np.empty(sum(sizes), mine.dtype)
        request = self._comm.Iallgatherv(mine, [everything, list(sizes)])

        def split() -> None:
            then(np.split(everything, np.cumsum(sizes)[:-1]))

        held = (mine, everything)
        return Operation(
            self._requests, [(request, None)], held, split, nbytes=mine.nbytes + everything.nbytes
        )

    def reduce(self, vector: Any, how: str, then: Callable[[], None] = lambda: None) -> Operation:
        """See Collectives.reduce."""
        begin = functools.partial(self._comm.Iallreduce, self._in_place, op=self._operators[how])
        requests = [(begin(part), None) for part in chunks(vector)]
        return Operation(self._requests, requests, vector, then, nbytes=2 * vector.nbytes)

    def broadcast(self, vector: Any, root: int) -> Operation:
        """See Collectives.broadcast."""
        request = self._comm.Ibcast(vector, root)
        return Operation(self._requests, [(request, None)], vector, nbytes=2 * vector.nbytes)

    def barrier(self) -> Operation:
        """See Collectives.barrier."""
        return Operation(self._requests, [(self._comm.Ibarrier(), None)], None, nbytes=0)


class Direct:
    """Messages from each to each, over an mpi4py communicator that nothing else uses."""

    def __init__(self, comm: Any, requests: Requests) -> None:
        self._comm, self._requests, self._tag = comm, requests, 0
        self._rank, self._size = comm.Get_rank(), comm.Get_size()

    def gather(
        self, mine: Any, sizes: Sequence[int], then: Callable[[list[Any]], None]
    ) -> Operation:
        """See Collectives.gather."""
        parts = [mine if r == self._rank else np.empty(n, mine.dtype) for r, n in enumerate(sizes)]
        others = [r for r in range(self._size) if r != self._rank]
        return self._exchange(mine, others, {r: parts[r] for r in others}, lambda: then(parts))

    def reduce(self, vector: Any, how: str, then: Callable[[], None] = lambda: None) -> Operation:
        """See Collectives.reduce; in the order of ranks, so that all get the same bits."""

        def combine(parts: list[Any]) -> None:
            vector[:] = functools.reduce(_OPERATORS[how], parts)
            then()

        return self.gather(vector, [vector.size] * self._size, combine)

    def broadcast(self, vector: Any, root: int) -> Operation:
        """See Collectives.broadcast."""
        if self._rank != root:
            return self._exchange(vector, [], {root: vector}, lambda: None)
        others = [r for r in range(self._size) if r != root]
        return self._exchange(vector, others, {}, lambda: None)

    def barrier(self) -> Operation:
        """See Collectives.barrier."""
        return self.gather(np.empty(0, np.uint8), [0] * self._size, lambda _: None)

    def _exchange(
        self, send: Any, targets: list[int], receive: dict[int, Any], then: Callable[[], None]
    ) -> Operation:
        tag, self._tag = self._tag, (self._tag + 1) % TAGS
        missing = set(receive)

        def landed(r: int) -> Landed:
            return lambda _: missing.discard(r)

        requests: list[tuple[Any, Landed | None]] = [
            (self._comm.Irecv(part, r, tag), landed(r)) for r, part in receive.items()
        ]
        requests += [(self._comm.Isend(send, r, tag), None) for r in targets]
        nbytes = max(part.nbytes for part in [send, *receive.values()])
        return Operation(self._requests, requests, (send, receive), then, missing, nbytes=nbytes)
