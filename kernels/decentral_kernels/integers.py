"""The door to IntSGD's kernels: NumPy arrays only, so far; as signs.py otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .threads import GRAIN, share


class Rounded(NamedTuple):
    """What round_to_integers() saw: coordinates clipped, the largest |integer| before that."""

    clipped: int
    largest: float


def round_to_integers(
    x: Any,
    alpha: float,
    key: tuple[int, int],
    start: int,
    random: bool,
    limits: tuple[float, float],
    out: Any,
) -> Rounded:
    """Write Int(alpha x) of finite float32[n] x, clipped to limits, to int8[n] or int32[n] out.

    The draw of coordinate i has the index start + i; `limits` are floats that out's dtype holds.
    """
    from . import cpu_integer

    kernel = cpu_integer.rounder(8 * out.dtype.itemsize, random)
    k0, k1, a = np.uint32(key[0]), np.uint32(key[1]), np.float32(alpha)
    low, high = np.float32(limits[0]), np.float32(limits[1])
    parts = share(lambda f, t: kernel(x, a, k0, k1, start, low, high, out, f, t), x.size, GRAIN)
    clipped, largest = zip(*parts, strict=True)
    return Rounded(sum(clipped), float(max(largest)))


def expand_integers(integers: Any, scale: float, out: Any, add: bool) -> None:
    """Write, or add, scale * integers (int8[n] or int32[n]) to float32[n] out."""
    from . import cpu_integer

    kernel, s = cpu_integer.expander(8 * integers.dtype.itemsize, add), np.float32(scale)
    share(lambda first, last: kernel(integers, s, out, first, last), out.size, GRAIN)


def sum_of_squares(x: Any) -> float:
    """Return the sum of squares of float32[n] in float64, the same bits on every machine."""
    from . import cpu_integer

    return float(cpu_integer.square_adder()(x))


def compile_integer(bits: int, random: bool) -> None:
    """Compile, or load from the disk cache, the kernels of IntSGD."""
    from . import cpu_integer

    cpu_integer.rounder(bits, random)
    cpu_integer.square_adder()
    for add in (False, True):
        cpu_integer.expander(bits, add)
