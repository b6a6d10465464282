"""IntSGD's rounding in NumPy: the oracle of its kernels."""

from __future__ import annotations

import numpy as np

from . import rng
from .layout import NORM_WIDTH
from .reference import Floats, _blocks, _sum_of_squares


def round_to_integers(
    x: Floats, alpha: float, key: tuple[int, int], start: int, random: bool
) -> Floats:
    """Return Int(alpha x), not clipped, as floats: floor + Bernoulli(fraction), or half to even.

    IntSGD (ICLR 2022), section 2; `start` is the index of the first draw.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        t = x * np.float32(alpha)
        if not random:
            return np.rint(t)
        q = np.floor(t)
        up = (t - q) * np.float32(1 << rng.DRAW_BITS)
        return q + (rng.draw(key, start, x.size).astype(np.float32) < up).astype(np.float32)


def sum_of_squares(x: Floats) -> float:
    """Return the sum of squares in float64, in a fixed order."""
    row = _blocks(x, max(1, x.size), NORM_WIDTH).astype(np.float64)
    return float(_sum_of_squares(row, NORM_WIDTH)[0]) if x.size else 0.0
