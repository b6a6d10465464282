"""How fast the links between hosts are, measured once, before the first step."""

from __future__ import annotations

import math
import time

from ..payload import Payload
from .base import Communicator

_FIRST, _MOST = 1 << 17, 1 << 25  # bytes of a message
_LONG_ENOUGH_S = 0.04  # beside what a token bucket lets pass at once
_TIMES = 3  # of which the fastest counts: somebody may not get a core at once


def link_speed(comm: Communicator) -> float:
    """Return how many bits per second the slowest link between two hosts carries; inf within one.

    All ranks have to call it, and get the same. Every rank sends to the next one around a ring in
    which those of a host are neighbors, all at once, as in a step, and receives as much: ever more,
    until that takes long enough. A second at 10 Mbit/s, .1 to .4 s from 100 Mbit/s on.
    """
    if len(set(comm.hosts)) == 1:
        return math.inf
    around = sorted(range(comm.size), key=lambda r: (comm.hosts[r], r))
    place = around.index(comm.rank)
    left, right = around[place - 1], around[(place + 1) % comm.size]
    nbytes, _ = _FIRST, _shift(comm, 1, left, right)  # connects them
    while True:
        seconds = min(_shift(comm, nbytes, left, right) for _ in range(_TIMES))
        if seconds > _LONG_ENOUGH_S or nbytes >= _MOST:
            return 8 * nbytes / seconds
        nbytes *= 4


def _shift(comm: Communicator, nbytes: int, left: int, right: int) -> float:
    """Return the seconds that the slowest rank needs for a message to the right."""
    message, received = Payload.empty(nbytes), Payload.empty(nbytes)
    comm.barrier()
    start = time.perf_counter()
    comm.exchange({right: message}, {left: received}, 0).wait()
    return comm.all_reduce_max(time.perf_counter() - start)
