"""Counter-based random draws: a number is a hash of (key, index), so no generator has a state.

Ours. Philox and Threefry (Salmon et al., SC 2011) are the known counter-based generators, but they
cost more than the quantizer that wants the draw. Stochastic rounding needs 23 bits per coordinate
and no cryptography: two multiply-xorshift rounds (the constants are those of the "lowbias32" search
by C. Wellons) with half of the key going in before each round. tests/kernels/test_rng.py holds the
statistics they have to pass.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

GOLDEN = (
    0x9E3779B9  # 2^32 / golden ratio: consecutive indices land far apart before the first round
)
ROUND_1 = 0x7FEB352D
ROUND_2 = 0x846CA68B
DRAW_BITS = 23  # as many as a float32 has mantissa bits: the exponential levels need exactly these

_MASK64 = (1 << 64) - 1


@lru_cache(maxsize=1024)  # seed, rank and bucket come again, and step with each bucket
def _splitmix64(z: int) -> int:
    """Return SplitMix64's output for a 64-bit state (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def fold_key(*parts: int) -> tuple[int, int]:
    """Fold integers such as (seed, step, rank, bucket) into a key of two 32-bit halves.

    The order matters: fold_key(1, 2) and fold_key(2, 1) differ. Python integers, no overflow; each
    part is taken modulo 2^64.
    """
    state = len(parts)
    for part in parts:
        state = _splitmix64(state ^ _splitmix64(int(part) & _MASK64))
    return state & 0xFFFFFFFF, state >> 32


def draw(key: tuple[int, int], start: int, n: int) -> npt.NDArray[np.uint32]:
    """Return the draws of indices start..start+n-1 as uint32[n], uniform on 0 .. 2^23 - 1."""
    k0, k1 = np.uint32(key[0]), np.uint32(key[1])
    h = (np.arange(start, start + n, dtype=np.uint64) & 0xFFFFFFFF).astype(np.uint32)
    h = h * np.uint32(GOLDEN) ^ k0
    h = (h ^ (h >> np.uint32(16))) * np.uint32(ROUND_1) + k1
    h = (h ^ (h >> np.uint32(15))) * np.uint32(ROUND_2)
    return h >> np.uint32(32 - DRAW_BITS)
