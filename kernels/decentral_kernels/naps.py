"""Waits for MPI's requests in one compiled call, of libc's and MPI's functions by address.

A rank that waits wakes up a hundred times a step. In Python each of them takes 45 to 120 us of
processor time, most of it for code that others have driven out of the caches meanwhile.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

COMPLETE, RUNG, LATE = 0, 1, 2  # a request is, or cannot be told of; the bell, or a signal; enough
_LIBC = ("clock_gettime", "ppoll", "read")
_CLOCK_MONOTONIC, _POLLIN = 1, 1
# Places of 8 bytes in a scratch: pollfd, how long to sleep and what the clock says (two each), a
# flag, and a status, which no MPI makes larger than 64 bytes.
_POLLFD, _SLEEP, _NOW, _FLAG, _STATUS, _PLACES = 0, 1, 3, 5, 6, 16
_CALL_S = 500e-6  # a longer sleep is followed by more calls of MPI's; see Requests


@intrinsic
def _foreign(typingctx: Any, address: Any, arguments: Any) -> Any:
    """Call a C function of integers and addresses, a tuple, that returns an int."""

    def generate(context: Any, b: Any, sig: Any, values: Any) -> Any:
        given = cgutils.unpack_tuple(b, values[1])
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)] * len(given))
        return b.call(b.inttoptr(values[0], kind.as_pointer()), given)

    return types.int32(types.intp, arguments), generate


def _nap(functions, handles, bell, seconds, calls, scratch):
    clock_gettime, ppoll, read, get_status = functions
    since, least, part, most, limit = seconds
    place, begin, k = scratch.ctypes.data, -1.0, 0
    while True:
        _foreign(clock_gettime, (_CLOCK_MONOTONIC, place + 8 * _NOW))
        now = scratch[_NOW] + scratch[_NOW + 1] * 1e-9
        begin = now if begin < 0.0 else begin
        if now - begin > limit:
            return LATE
        pause = min(max((now - since) * part, least), most)
        scratch[_SLEEP], scratch[_SLEEP + 1] = 0, np.int64(pause * 1e9)
        scratch[_POLLFD] = bell | (_POLLIN << 32)
        if _foreign(ppoll, (place + 8 * _POLLFD, 1, place + 8 * _SLEEP, 0)) != 0:
            _foreign(read, (bell, place + 8 * _FLAG, 8))
            return RUNG
        for _ in range(max(handles.size, min(calls, np.int64(pause / _CALL_S)))):
            scratch[_FLAG] = 0
            arguments = (handles[k], place + 8 * _FLAG, place + 8 * _STATUS)
            if _foreign(get_status, arguments) != 0 or (scratch[_FLAG] & 0xFFFFFFFF) != 0:
                return COMPLETE
            k = k + 1 if k + 1 < handles.size else 0


Nap = Callable[[Sequence[int], int, tuple[float, ...], int], int]


def address_in(library: str | None, name: str) -> int | None:
    """Return where a function of a shared library, or of what it needs, is; None if it has none.

    Without a library, of what the process has loaded.
    """
    function = getattr(ctypes.CDLL(library), name, None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


def napper(get_status: int | None) -> Nap | None:
    """Return nap(handles, bell, seconds, calls), compiled; None where the system cannot.

    `get_status` is where MPI_Request_get_status is, which lets MPI go on. nap() sleeps until one of
    the handles, of 64 bits at most, is of a complete request, until the file descriptor `bell` (-1
    is none) can be read, which it does, or for long enough; returns COMPLETE, RUNG or LATE.
    `seconds` are since when, by time.perf_counter(), somebody waits; the shortest sleep; how long
    one is as a part of the wait; the longest, below one second; and how long it may take in all.
    After a sleep every handle is asked about, and up to `calls` times in all if that was long.
    """
    if sys.platform != "linux" or sys.byteorder != "little":
        return None
    functions = [address_in(None, name) for name in _LIBC] + [get_status]
    if None in functions:
        return None
    pointers = types.UniTuple(types.intp, len(functions))
    vector, seconds = types.int64[::1], types.UniTuple(types.float64, 5)
    signature = types.intp(pointers, vector, types.int64, seconds, types.int64, vector)
    compiled, addresses = njit(signature, nogil=True, cache=True)(_nap), tuple(functions)

    def nap(handles: Sequence[int], bell: int, seconds: tuple[float, ...], calls: int) -> int:
        vector, scratch = np.array(handles, np.uint64).view(np.int64), np.empty(_PLACES, np.int64)
        return int(compiled(addresses, vector, bell, seconds, calls, scratch))

    return nap
