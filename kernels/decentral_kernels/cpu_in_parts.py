"""Vectors made, quantized and added on the CPU part by part, while a part is near.

One compiled loop does it all, so parts may be as small as suits a core's own caches, and no other
thread's Python waits for the GIL meanwhile. The kernels come as addresses: one loop per formula,
or one for all, whatever the quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import float32, njit, types, uint8, uint32

from .cpu import DECODE, ENCODE
from .cpu_calls import address_of, array_at, caller, place_of
from .elementwise import NOT_FINITE, Elementwise
from .layout import INF, STAMP, UNIT

_floats, _bytes, _int = types.float32[::1], types.uint8[::1], types.int64
_AROUND = (
    *(_floats, _floats, _floats),
    *(uint32, uint32, _int, _int, _floats, _bytes),
    *(_floats, float32, _int, _int),
    *(_int, _int, _int),
)
_encode, _decode = caller(ENCODE), caller(DECODE)
_floats_at, _bytes_at = array_at(float32), array_at(uint8)
_IN_CACHE = 32  # units; with some messages' codes they stay in the caches of a core
AHEAD = 8 * UNIT  # how far what is added to is fetched
_TEMPLATE = """
def {name}(
    {arguments}, z, source, target, k0, k1, block_size, width, scales, codes,
    out, weight, encoder, decoder, size, first, last
):
    for a in range(first, last, size):
        b = min(a + size, last)
        low, high = a * UNIT, min(b * UNIT, z.size)
        if loop({parts}) >= INF:
            return NOT_FINITE
        bad = encode(encoder, (z, k0, k1, block_size, width, scales, codes, a, b))
        if bad >= 0:
            return bad
        decode(decoder, (scales, codes, block_size, weight, out, size * UNIT, a, b))
        here, there = source[low:high], target[low:high]
        for i in range(there.size):  # numba's own assignment of slices takes longer
            there[i] = here[i]
    return -1
"""


def compile_in_parts(formula: Elementwise) -> Any:
    """Return the loop over parts, of `size` units each, of the units first..last.

    It applies the formula to each part, encodes z, which that writes, adds weight * (the decoded
    values) to `out`, and copies `source` to `target`, which may both be empty. Returns the first
    block that cannot be encoded, or NOT_FINITE, of which nothing is added; else -1.
    """
    vectors = [f"v{i}" for i in range(formula.num_vectors)]
    numbers = [f"n{i}" for i in range(formula.num_numbers)]
    parts = ", ".join([*(f"{v}[low:high]" for v in vectors), *numbers])
    name = f"{formula.function.__name__}_in_parts_{STAMP:08x}"
    arguments = ", ".join([*vectors, *numbers])
    text = _TEMPLATE.format(name=name, arguments=arguments, parts=parts)
    scope = {"loop": formula.loop, "UNIT": UNIT, "INF": INF, "NOT_FINITE": NOT_FINITE}
    scope |= {"min": min, "range": range, "__name__": formula.function.__module__}
    # Numba's disk cache is the formula's file's, and so made anew when that changes; of what else
    # it is made of, the name tells.
    scope |= {"encode": _encode, "decode": _decode}
    exec(compile(text, formula.function.__code__.co_filename, "exec"), scope)
    given = [*[_floats] * len(vectors), *[float32] * len(numbers)]
    return njit(_int(*given, *_AROUND), nogil=True, cache=True)(scope[name])


@lru_cache(maxsize=None)
def adder() -> Callable[..., None]:
    """Return the loop that adds messages to parts of the units first..last of a vector.

    `decoder` is the address of one that adds; `places` has a row per message, which are the places
    of its scales and of its codes.
    """
    stamp = STAMP
    given = (_int, types.int64[:, ::1], _floats, _int, _floats, _int, _int)

    @njit(types.void(*given), nogil=True, cache=True)
    def add(decoder, places, weights, block_size, out, first, last):
        if stamp < 0:  # never; see STAMP
            return
        for a in range(first, last, _IN_CACHE):
            b = min(a + _IN_CACHE, last)
            for m in range(weights.size):
                scales, codes = _floats_at(places[m, :2]), _bytes_at(places[m, 2:])
                ahead = AHEAD if m == 0 else 0  # the others find it there
                _decode(decoder, (scales, codes, block_size, weights[m], out, ahead, a, b))

    return add


class Addition:
    """Messages, each (scales, codes, weight), that run(first, last) adds to units of a vector."""

    def __init__(
        self, decoder: Any, messages: Sequence[tuple[Any, Any, float]], block_size: int, out: Any
    ) -> None:
        places = [(*place_of(scales), *place_of(codes)) for scales, codes, _ in messages]
        weights = np.array([weight for *_, weight in messages], np.float32)
        self._held = messages  # whose memory the places are
        where = np.array(places, np.int64).reshape(-1, 4)  # there may be none
        self._arguments = (address_of(decoder), where, weights, block_size, out)

    def run(self, first: int, last: int) -> None:
        """Add them to the units first..last, which is up to the last but not it."""
        adder()(*self._arguments, first, last)
