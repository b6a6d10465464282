"""Small collective operations as messages from each rank to each, for jobs that survive a death.

When a rank dies, Open MPI 5.0's non-blocking ones give up the messages that they have under way,
and a message that fails after it was given up ends its process ("Send error after request freed").
With these, and nothing revoked, no process was ended so any more; which of the two it takes was not
tried apart. n - 1 small messages a rank travel in one hop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .requests import Landed, Operation, Requests
from .ring import TAGS


def survives() -> bool:
    """Return whether the job was started so that it may survive a death: `--with-ft ulfm`."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "0").lower() in ("1", "true")


class Direct:
    """These operations over an mpi4py communicator that nothing else uses."""

    def __init__(self, comm: Any, requests: Requests) -> None:
        self.comm, self._requests, self._tag = comm, requests, 0
        self._rank, self._size = comm.Get_rank(), comm.Get_size()

    def gather(
        self, mine: Any, like: Iterable[Any], then: Callable[[list[Any]], None]
    ) -> Operation:
        """Send a vector to all; call then(all vectors, by rank), which are as large as `like`."""
        parts = [mine if r == self._rank else np.empty_like(v) for r, v in enumerate(like)]
        others = [r for r in range(self._size) if r != self._rank]
        return self._exchange(mine, others, {r: parts[r] for r in others}, lambda: then(parts))

    def sum(self, vector: Any, then: Callable[[], None]) -> Operation:
        """Replace a vector by the sum over ranks, added in their order, and call then()."""

        def add(parts: list[Any]) -> None:
            vector[:] = sum(parts[1:], parts[0])
            then()

        return self.gather(vector, [vector] * self._size, add)

    def broadcast(self, vector: Any, root: int) -> Operation:
        """Replace a vector by the root's."""
        if self._rank != root:
            return self._exchange(vector, [], {root: vector}, lambda: None)
        others = [r for r in range(self._size) if r != root]
        return self._exchange(vector, others, {}, lambda: None)

    def _exchange(
        self, send: Any, targets: list[int], receive: dict[int, Any], then: Callable[[], None]
    ) -> Operation:
        tag, self._tag = self._tag, (self._tag + 1) % TAGS
        missing = set(receive)

        def landed(r: int) -> Landed:
            return lambda _: missing.discard(r)

        requests: list[tuple[Any, Landed | None]] = [
            (self.comm.Irecv(part, r, tag), landed(r)) for r, part in receive.items()
        ]
        requests += [(self.comm.Isend(send, r, tag), None) for r in targets]
        return Operation(self._requests, requests, (send, receive), then, missing)
