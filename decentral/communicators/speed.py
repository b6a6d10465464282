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
_TRIES = 3  # of which the fastest counts


def measure(comm: Communicator) -> float:
    """Return what Communicator.link_speed() says.

    Every rank sends to the next one around a ring in which those of a host are neighbors, all at
    once, as in a step, and receives as much: ever more, until that takes long enough. 1.5 s at 10
    Mbit/s, .3 to .7 s from 100 Mbit/s on.
    """
    if len(set(comm.hosts)) == 1:
        return math.inf
    _shift(comm, 1)  # connects them
    empty, nbytes = _fastest(comm, 1), _FIRST
    while True:
        seconds = _fastest(comm, nbytes)
        if seconds > max(_LEAST_S, _LEAST_TIMES * empty) or nbytes >= _MOST:
            return 8 * nbytes / (seconds - empty) if seconds > empty else math.inf
        nbytes *= 4


def _fastest(comm: Communicator, nbytes: int) -> float:
    return min(_shift(comm, nbytes) for _ in range(_TRIES))


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
