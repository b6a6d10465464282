"""How fast the links between hosts are, measured once, before the first step."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from ..payload import Payload

if TYPE_CHECKING:
    from .base import Communicator

_FIRST, _MOST = 1 << 17, 1 << 25  # bytes of a message
# How long a message has to take: beside what a token bucket lets pass at once, and beside what one
# of a byte takes, of which the most may be ranks that wait for a core.
_LEAST_S, _LEAST_TIMES = 0.04, 4
# Of which the fastest counts: what else the machine does only slows them down, and connections that
# have just begun, or lost something, are slow for a while. The last size is tried for longer.
_TRIES, _LONGER_S = 3, 0.4


def measure(comm: Communicator) -> float:
    """Return what Communicator.link_speed() says.

    Every rank sends to the next one around a ring in which those of a host are neighbors, all at
    once, as in a step, and receives as much: ever more, until that takes long enough. 1 to 2 s from
    100 Mbit/s on, 3 s at 10 Mbit/s.
    """
    if len(set(comm.hosts)) == 1:
        return math.inf
    _shift(comm, 1)  # connects them
    empty, nbytes = _fastest(comm, 1, _TRIES), _FIRST
    enough = max(_LEAST_S, _LEAST_TIMES * empty)
    while True:
        seconds = _fastest(comm, nbytes, _TRIES)
        if seconds > enough or nbytes >= _MOST:
            tries = 1 + int(_LONGER_S / seconds)  # as many on all ranks
            seconds = min(seconds, _fastest(comm, nbytes, tries))
            if seconds > enough or nbytes >= _MOST:
                return 8 * nbytes / (seconds - empty) if seconds > empty else math.inf
        nbytes *= 4


def _fastest(comm: Communicator, nbytes: int, tries: int) -> float:
    return min(_shift(comm, nbytes) for _ in range(tries))


def _shift(comm: Communicator, nbytes: int) -> float:
    """Return the seconds in which every rank has sent so much to the next, by the slowest rank."""
    ring = comm.around()
    place = ring.index(comm.rank)
    left, right = ring[place - 1], ring[(place + 1) % comm.size]
    message, received = Payload.empty(nbytes), Payload.empty(nbytes)
    comm.barrier()
    start = time.perf_counter()
    comm.exchange({right: message}, {left: received}, 0).wait()
    return comm.all_reduce_max(time.perf_counter() - start)
