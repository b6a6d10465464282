"""IntSGD's rounding for the CPU: float32 -> integers that MPI may add, and back.

reference_integers.py has the same in NumPy; what cpu.py says of casts and cache holds here too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import float32, float64, njit, types, uint32

from .cpu_parts import ABS, bits_of, counter, draw, float_of, sum_of_squares, wide
from .layout import NORM_WIDTH, STAMP, UNIT
from .rng import DRAW_BITS, GOLDEN

u32, f32 = np.uint32, np.float32

_read_floats = types.Array(types.float32, 1, "C", readonly=True)
_int = types.int64
_WIRE = {8: (types.int8, np.int8), 32: (types.int32, np.int32)}


@lru_cache(maxsize=None)
def rounder(bits: int, random: bool) -> Callable[..., tuple[int, float]]:
    """Return the kernel that writes Int(alpha x), clipped to low..high, of a range of coordinates.

    It returns (how many were clipped, the largest |integer| that was to be written, as a float);
    coordinates are finite.
    """
    stamp = STAMP
    wire, kind = _WIRE[bits]
    signature = types.Tuple((_int, float32))(
        _read_floats, float32, uint32, uint32, _int, float32, float32, wire[::1], _int, _int
    )

    @njit(signature, nogil=True, cache=True)
    def round_(x, alpha, k0, k1, start, low, high, out, first, last):
        wide()
        clipped, largest = 0, u32(0)
        if stamp < 0:  # never; see STAMP
            return clipped, f32(0)
        for begin in range(first, last, UNIT):  # pieces, for counters of 32 bits and plain indices
            part = x[begin : min(begin + UNIT, last)]
            integers = out[begin : min(begin + UNIT, last)]
            outside, h = u32(0), counter(start + begin)
            for i in range(part.size):
                t = f32(part[i] * alpha)
                if random:
                    q = f32(np.floor(t))
                    up = f32(f32(t - q) * f32(1 << DRAW_BITS))  # exact: probability times 2^23
                    random_bits = draw(h, k0, k1)
                    h = u32(h + u32(GOLDEN))
                    q = f32(q + f32(1)) if f32(np.int32(random_bits)) < up else q
                else:
                    q = f32(np.rint(t))
                largest = max(largest, u32(bits_of(q) & ABS))
                inside = min(max(q, low), high)
                outside = u32(outside + (u32(1) if inside != q else u32(0)))
                integers[i] = kind(np.int32(inside))
            clipped += outside
        return clipped, float_of(largest)

    return round_


@lru_cache(maxsize=None)
def expander(bits: int, add: bool) -> Callable[..., None]:
    """Return the kernel that writes, or adds, scale * (integers)."""
    stamp = STAMP
    read_wire = types.Array(_WIRE[bits][0], 1, "C", readonly=True)

    @njit(types.void(read_wire, float32, types.float32[::1], _int, _int), nogil=True, cache=True)
    def expand(integers, scale, out, first, last):
        wide()
        if stamp < 0:  # never; see STAMP
            return
        target, source = out[first:last], integers[first:last]
        for i in range(target.size):
            value = f32(f32(source[i]) * scale)
            if add:
                target[i] += value
            else:
                target[i] = value

    return expand


@lru_cache(maxsize=None)
def square_adder() -> Callable[..., float]:
    """Return the kernel that adds squares in float64, as reference._sum_of_squares does."""
    stamp = STAMP

    @njit(float64(_read_floats), nogil=True, cache=True)
    def add_squares(x):
        wide()
        if stamp < 0:  # never; see STAMP
            return 0.0
        return sum_of_squares(x, np.empty(NORM_WIDTH, np.float64), NORM_WIDTH, False)

    return add_squares
