"""The kernels in NumPy, written like the formulas: what the fast ones must equal bit for bit.

Q(v)_i = ||v|| sign(v_i) h_i, where h_i rounds r_i = |v_i| / ||v|| stochastically to one of its two
neighboring levels so that E[h_i] = r_i (QSGD, NeurIPS 2017, eq. 3; NUQSGD, JMLR 2021, section 3.1).
Float32 throughout, no fused multiply-add; layout.py says how codes are packed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import rng
from .layout import (
    SCALE_LIMIT,
    SCALE_MIN,
    SUM_MAX,
    SUM_MIN,
    UNIT,
    Quantizer,
    lanes_and_planes,
    norm_width,
)

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

_ONE = np.uint32(127 << rng.DRAW_BITS)  # the bit pattern of 1.0


def _blocks(x: Floats, block_size: int, multiple: int = 1) -> Floats:
    """Return x as [blocks, length], zero-padded; length is a multiple of `multiple`."""
    count = -(-x.size // block_size)
    padded = np.zeros(count * block_size, np.float32)
    padded[: x.size] = x
    length = -(-block_size // multiple) * multiple
    return np.pad(padded.reshape(count, block_size), ((0, 0), (0, length - block_size)))


def _sum_of_squares(blocks: npt.NDArray[np.floating], width: int) -> npt.NDArray[np.floating]:
    """Add the squares of each row: `width` running sums first, then those by halving."""
    rows = blocks.reshape(len(blocks), blocks.shape[1] // width, width)
    sums = np.zeros_like(rows[:, 0])
    for r in range(rows.shape[1]):
        sums = sums + rows[:, r] * rows[:, r]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def block_scales(x: Floats, q: Quantizer) -> Floats:
    """Return the norm of every block; NaN marks a block that cannot be encoded."""
    with np.errstate(all="ignore"):
        if q.norm == "max":
            scales = np.abs(_blocks(x, q.block_size)).max(axis=1)
        else:
            width = norm_width(q.block_size)
            blocks = _blocks(x, q.block_size, width)
            single = _sum_of_squares(blocks, width)
            double = _sum_of_squares(blocks.astype(np.float64), width)
            safe = (single >= SUM_MIN) & (single <= SUM_MAX)
            scales = np.where(safe, np.sqrt(single), np.sqrt(double).astype(np.float32))
    scales = np.where(scales < SCALE_MIN, np.float32(0), scales)
    return np.where(scales < SCALE_LIMIT, scales, np.float32(np.nan)).astype(np.float32)


def _exponent_steps(u: Floats, random_bits: Words) -> Words:
    """Return how often 1 was doubled to get u >= 1, rounded stochastically.

    The mantissa of a float is the probability to round up, and a carry out of it is the rounding.
    """
    return (u.view(np.uint32) + random_bits - _ONE) >> np.uint32(rng.DRAW_BITS)


def _with_zero(r: Floats, random_bits: Words, q: Quantizer) -> Words:
    """Return the index of the level that r in [0, 1] is rounded to; level 0 is 0."""
    if q.levels == "uniform":
        fixed_point = (r * np.float32(q.s << rng.DRAW_BITS)).astype(np.uint32)
        return (fixed_point + random_bits) >> np.uint32(rng.DRAW_BITS)
    # In units of the least level, and with [0, 1) moved to [1, 2), a level is an exponent.
    u = r * np.float32(2.0**q.s)
    return _exponent_steps(np.where(u < 1, u + np.float32(1), u + u), random_bits)


def _without_zero(r: Floats, random_bits: Words, q: Quantizer) -> tuple[Words, Words]:
    """Return (index of the level, 1 where the sign flips); level 0 is the least one."""
    one = np.uint32(1)
    if q.levels == "uniform":
        # Levels are 2/s apart and the least is 1/s: from the level -1/s on, r is n steps away.
        half = np.uint32(1 << (rng.DRAW_BITS - 1))
        steps = (r * np.float32(q.s << (rng.DRAW_BITS - 1))).astype(np.uint32) + half
        n = (steps + random_bits) >> np.uint32(rng.DRAW_BITS)
        flip = (n == 0).astype(np.uint32)
        return n + flip - one, flip
    u = r * np.float32(2.0**q.s)
    # below the least level: to +1 with probability (1 + u) / 2, else to -1
    keep = (np.minimum(u, np.float32(1)) + np.float32(1)) * np.float32(2.0 ** (rng.DRAW_BITS - 1))
    flip = (random_bits >= keep.astype(np.uint32)).astype(np.uint32)
    return _exponent_steps(np.maximum(u, np.float32(1)), random_bits), flip


def quantize(x: Floats, scales: Floats, key: tuple[int, int], q: Quantizer) -> Bytes:
    """Return the codes of x as uint8[n], one per coordinate, not packed."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0)).astype(np.float32)
    per_coordinate = np.repeat(inverse, q.block_size)[: x.size]
    r = np.minimum(np.abs(x) * per_coordinate, np.float32(1))
    random_bits = rng.draw(key, 0, x.size)
    sign = x.view(np.uint32) >> np.uint32(31)
    if q.zero_level:
        level = _with_zero(r, random_bits, q)
    else:
        level, flip = _without_zero(r, random_bits, q)
        sign = sign ^ flip
    return (level | sign << np.uint32(q.bits - 1)).astype(np.uint8)


def dequantize(codes: Bytes, scales: Floats, q: Quantizer, weight: float = 1.0) -> Floats:
    """Return weight * (the values that uint8[n] codes stand for), float32[n]."""
    word = codes.astype(np.uint32)
    level = word & np.uint32((1 << (q.bits - 1)) - 1)
    sign = word >> np.uint32(q.bits - 1) << np.uint32(31)
    if q.levels == "uniform":
        step = scales / np.float32(q.s)
        h = (level if q.zero_level else 2 * level + np.uint32(1)).astype(np.float32)
    else:
        step = scales
        # level l > 0 stands for 2^(l - 1 - s), or without a zero level l for 2^(l - s)
        bias = np.uint32((126 if q.zero_level else 127) - q.s)
        h = ((level + bias) << np.uint32(rng.DRAW_BITS)).view(np.float32)
        if q.zero_level:
            h = np.where(level > 0, h, np.float32(0))
    signed = (h.view(np.uint32) | sign).view(np.float32)
    return np.repeat(step * np.float32(weight), q.block_size)[: codes.size] * signed


def _bit_stream(codes: Bytes, bits: int) -> Bytes:
    """Return codes as a little-endian bit stream, filled up to whole bytes."""
    each = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(each.ravel(), bitorder="little")


def pack(codes: Bytes, bits: int) -> Bytes:
    """Return uint8[n] codes packed as layout.py describes, uint8[ceil(n * bits / 8)]."""
    lanes, planes = lanes_and_planes(bits)
    out = []
    for start in range(0, codes.size, UNIT):
        unit = codes[start : start + UNIT]
        columns = unit.size // lanes
        runs = unit[: lanes * columns].reshape(lanes, columns).astype(np.uint64)
        word = np.zeros(columns, np.uint64)
        for j in range(lanes):
            word |= runs[j] << np.uint64(j * bits)
        out += [(word >> np.uint64(8 * p)).astype(np.uint8) for p in range(planes)]
        out.append(_bit_stream(unit[lanes * columns :], bits))
    return np.concatenate(out) if out else np.zeros(0, np.uint8)


def unpack(packed: Bytes, numel: int, bits: int) -> Bytes:
    """Return the uint8[numel] codes that pack() was given."""
    lanes, planes = lanes_and_planes(bits)
    out = []
    for start in range(0, numel, UNIT):
        m = min(UNIT, numel - start)
        columns = m // lanes
        bytes_ = packed[start * bits // 8 :][: (m * bits + 7) // 8]
        word = np.zeros(columns, np.uint64)
        for p in range(planes):
            word |= bytes_[p * columns : (p + 1) * columns].astype(np.uint64) << np.uint64(8 * p)
        for j in range(lanes):
            out.append((word >> np.uint64(j * bits) & np.uint64((1 << bits) - 1)).astype(np.uint8))
        left_over = m - lanes * columns
        stream = np.unpackbits(bytes_[planes * columns :], bitorder="little")
        each = stream[: left_over * bits].reshape(left_over, bits)
        out.append(np.packbits(each, axis=1, bitorder="little").ravel())
    return np.concatenate(out) if out else np.zeros(0, np.uint8)


def encode(x: Floats, key: tuple[int, int], q: Quantizer, scales: Floats, codes: Bytes) -> int:
    """Write scales and packed codes of x; return the first block that cannot be encoded or -1."""
    scales[:] = block_scales(x, q)
    bad = np.flatnonzero(np.isnan(scales))
    if bad.size:
        return int(bad[0])
    codes[:] = pack(quantize(x, scales, key, q), q.bits)
    return -1


def decode(scales: Floats, codes: Bytes, q: Quantizer, out: Floats) -> None:
    """Write the decoded values to out."""
    out[:] = dequantize(unpack(codes, out.size, q.bits), scales, q)


def accumulate(scales: Floats, codes: Bytes, q: Quantizer, out: Floats, weight: float) -> None:
    """Add weight * (the decoded values) to out."""
    out += dequantize(unpack(codes, out.size, q.bits), scales, q, weight)
