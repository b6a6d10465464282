"""What a quantizer is, and where its codes and scales lie in memory.

Codes have `bits` bits: the level index in the low bits, the sign in the highest. They are packed
without gaps, in units of UNIT coordinates, planar: the coordinates of a unit are cut into `lanes`
runs of equal length, and one coordinate of each run shares its byte(s) with its peers of the other
runs. Every loop over a run is then contiguous, so that it vectorizes on a CPU and coalesces on a
GPU, which the usual interleaving (neighbors share a byte) does not. For a unit of m codes c:

    lanes = 8 / gcd(bits, 8), planes = bits / gcd(bits, 8), columns = m // lanes
    w_k = sum_j c[j * columns + k] << (j * bits)            one word of 8 * planes bits per column
    byte[p * columns + k] = (w_k >> 8 p) & 255              plane p of column k

and the m % lanes codes that are left over follow as one little-endian bit stream, filled up with
zero bits. A unit takes ceil(m * bits / 8) bytes; only the last unit of a vector may be short.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

# Compiled kernels are cached on disk, and the cache looks at their own file only. They take this
# checksum of what else they are made of as a constant, so that a change here makes them anew.
_SOURCES = "layout rng elementwise cpu_parts cpu_lookup cpu_calls cpu cpu_in_parts".split()
STAMP = zlib.crc32(b"".join(Path(__file__).with_name(f"{f}.py").read_bytes() for f in _SOURCES))

UNIT = 1024
MAX_NUMEL = 2**31 - 1  # indices are 32-bit in the kernels
MIN_BITS, MAX_BITS = 2, 8
NORMS = ("l2", "max")
LEVELS = ("uniform", "exponential")

# The L2 norm adds squares in a fixed order, so that every implementation gets the same bits.
NORM_WIDTH = 1024
# Outside this range of the float32 sum of squares the norm is computed again in float64.
SUM_MIN, SUM_MAX = 2.0**-60, 3.4e38
# A scale below the first is written as 0 (its reciprocal would overflow), one from the second on is
# refused (its reciprocal would be subnormal).
SCALE_MIN, SCALE_LIMIT = 2.0**-126, 2.0**126

INF = 0x7F800000  # float32's, as an integer; what is larger is NaN

# EF-SignSGD: a block's means add up that many running sums; values from 2^126 on are refused, and
# blocks whose sums overflow.
EF_WIDTH = 16
SIGN_LIMIT_BITS = 253 << 23


def norm_width(block_size: int) -> int:
    """Return how many partial sums the L2 norm of a block keeps: a power of two, at most 1024."""
    return min(NORM_WIDTH, 1 << (block_size - 1).bit_length())


def lanes_and_planes(bits: int) -> tuple[int, int]:
    """Return (lanes, planes): how many codes share how many bytes."""
    shared = math.gcd(bits, 8)
    return 8 // shared, bits // shared


def papers_s(bits: int, exponential: bool, zero_level: bool) -> int:
    """Return s of the levels that `bits` bits hold, one of them the sign."""
    magnitudes = 1 << (bits - 1)
    if exponential:
        return magnitudes - (2 if zero_level else 1)
    return magnitudes - 1 if zero_level else 2 * magnitudes - 1


@dataclass(frozen=True)
class Quantizer:
    """Fixed levels on [0, 1], one norm per block, `bits` bits per coordinate (one is the sign).

    `norm` is "l2" or "max" (max-abs), `levels` is "uniform" (0, 1/s, ..., 1, QSGD) or "exponential"
    (0, 2^-s, ..., 1/2, 1, NUQSGD). Without a zero level all 2^bits codes are levels: +-1/s, +-3/s,
    ..., +-1 or +-2^-s, ..., +-1, and what is nearer to zero than the least one goes to either sign.
    """

    bits: int
    block_size: int
    norm: str
    levels: str
    zero_level: bool = True

    @property
    def s(self) -> int:
        """The papers' s: uniform levels are multiples of 1/s, the least exponential one is 2^-s."""
        return papers_s(self.bits, self.levels == "exponential", self.zero_level)

    def num_blocks(self, numel: int) -> int:
        """Return the number of blocks, and so of float32 scales, of `numel` coordinates."""
        return -(-numel // self.block_size)

    def codes_nbytes(self, numel: int) -> int:
        """Return the number of bytes of the packed codes of `numel` coordinates."""
        return (numel * self.bits + 7) // 8
