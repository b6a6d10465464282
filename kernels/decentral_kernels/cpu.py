"""The kernels for the CPU: numba, vectorized by LLVM, one pass per block from cache.

A kernel is compiled per (bits, levels, norm), cached on disk, and releases the GIL; it works on a
range of units, so that threads can share a vector. Numba widens integers to 64 bits without a word,
which halves the vector width: hence the casts around every operation. Helpers that depend on `bits`
stand inside the kernels: a closure over another compiled function would never hit the disk cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint32
from numba.extending import intrinsic

from .layout import (
    SCALE_LIMIT,
    SCALE_MIN,
    STAMP,
    SUM_MAX,
    SUM_MIN,
    UNIT,
    lanes_and_planes,
    papers_s,
)
from .rng import DRAW_BITS, GOLDEN, ROUND_1, ROUND_2

u8, u32, f32 = np.uint8, np.uint32, np.float32
_ONE_BITS = u32(127 << DRAW_BITS)
_ABS = u32(0x7FFFFFFF)

_floats, _bytes = types.float32[::1], types.uint8[::1]
_read_floats = types.Array(types.float32, 1, "C", readonly=True)
_read_bytes = types.Array(types.uint8, 1, "C", readonly=True)
_int = types.int64
_ENCODE = _int(_read_floats, uint32, uint32, _int, _int, _floats, _bytes, _int, _int)
_DECODE = types.void(_read_floats, _read_bytes, _int, float32, _floats, _int, _int)


@intrinsic
def _bits_of(typingctx: Any, x: Any) -> Any:
    """float32 -> the uint32 of the same bits."""
    return uint32(float32), lambda context, b, sig, args: b.bitcast(args[0], ir.IntType(32))


@intrinsic
def _float_of(typingctx: Any, x: Any) -> Any:
    """uint32 -> the float32 of the same bits."""
    return float32(uint32), lambda context, b, sig, args: b.bitcast(args[0], ir.FloatType())


@njit(inline="always")
def _draw(k0, k1, i):
    h = u32(u32(i * u32(GOLDEN)) ^ k0)
    h = u32(u32(u32(h ^ u32(h >> u32(16))) * u32(ROUND_1)) + k1)
    h = u32(u32(h ^ u32(h >> u32(15))) * u32(ROUND_2))
    return u32(h >> u32(32 - DRAW_BITS))


@njit
def _sum_of_squares(x, sums, width):
    """Add squares in the order of reference._sum_of_squares, in the dtype of `sums`."""
    kind = sums.dtype.type
    n = x.size
    head = min(n, width)
    for j in range(head):
        v = kind(x[j])
        sums[j] = v * v
    for j in range(head, width):
        sums[j] = kind(0)
    for start in range(width, n, width):
        row = x[start : min(start + width, n)]
        for j in range(row.size):
            v = kind(row[j])
            sums[j] += v * v
    while width > 1:
        width //= 2
        upper = sums[width : 2 * width]
        for j in range(upper.size):
            sums[j] += upper[j]
    return sums[0]


@njit
def _l2_norm(x, sums, wide_sums, width):
    total = _sum_of_squares(x, sums, width)
    if total >= f32(SUM_MIN) and total <= f32(SUM_MAX):
        return f32(np.sqrt(total))
    return f32(np.sqrt(_sum_of_squares(x, wide_sums, width)))


@njit
def _max_norm(x):
    # As integers the bit patterns of non-negative floats are ordered, and NaN is above inf.
    top = u32(0)
    for j in range(x.size):
        v = u32(_bits_of(x[j]) & _ABS)
        top = max(top, v)
    return _float_of(top)


@njit
def _pack_rest(codes, bits, out):
    """Write the codes that fill no whole column as one little-endian bit stream."""
    out[:] = u8(0)
    for j in range(codes.size):
        at = j * bits
        word = u32(u32(codes[j]) << u32(at & 7))
        out[at >> 3] |= u8(word)
        if (at & 7) + bits > 8:
            out[(at >> 3) + 1] |= u8(word >> u32(8))


@njit
def _unpack_rest(packed, bits, codes):
    for j in range(codes.size):
        at = j * bits
        word = u32(packed[at >> 3])
        if (at & 7) + bits > 8:
            word = u32(word | u32(u32(packed[(at >> 3) + 1]) << u32(8)))
        codes[j] = u8(u32(word >> u32(at & 7)) & u32((1 << bits) - 1))


@lru_cache(maxsize=None)
def encoder(
    bits: int, exponential: bool, max_norm: bool, zero_level: bool = True
) -> Callable[..., int]:
    """Return the kernel that writes scales and packed codes of a range of units."""
    lanes, planes = lanes_and_planes(bits)
    stamp = STAMP
    s = papers_s(bits, exponential, zero_level)
    fraction_bits = DRAW_BITS if zero_level else DRAW_BITS - 1  # levels are 1/s or 2/s apart
    factor = f32(2.0**s) if exponential else f32(s << fraction_bits)
    half = u32(1 << (DRAW_BITS - 1))
    word_type = u32 if planes * 8 <= 32 else np.uint64

    @njit(_ENCODE, nogil=True, cache=True)
    def encode(x, k0, k1, block_size, width, scales, out, first, last):
        def pack(codes, columns, out):
            for k in range(columns):
                w = word_type(0)
                for j in range(lanes):
                    c = word_type(codes[j * columns + k])
                    w = word_type(w | word_type(c << word_type(j * bits)))
                for p in range(planes):
                    out[p * columns + k] = u8(w >> word_type(8 * p))

        def quantize(x, start, inverse, k0, k1, codes):
            for j in range(x.size):
                v = _bits_of(x[j])
                random_bits = _draw(k0, k1, u32(start + u32(j)))
                r = min(f32(_float_of(u32(v & _ABS)) * inverse), f32(1))
                t = f32(r * factor)
                flip = u32(0)
                if exponential and zero_level:
                    w = _bits_of(f32(t + f32(1)) if t < f32(1) else f32(t + t))
                    level = u32(u32(u32(w + random_bits) - _ONE_BITS) >> u32(DRAW_BITS))
                elif exponential:
                    keep = f32(f32(min(t, f32(1)) + f32(1)) * f32(half))
                    flip = u32(1) if random_bits >= u32(np.int32(keep)) else u32(0)
                    w = _bits_of(max(t, f32(1)))
                    level = u32(u32(u32(w + random_bits) - _ONE_BITS) >> u32(DRAW_BITS))
                elif zero_level:
                    level = u32(u32(u32(np.int32(t)) + random_bits) >> u32(DRAW_BITS))
                else:
                    steps = u32(u32(np.int32(t)) + half)
                    n = u32(u32(steps + random_bits) >> u32(DRAW_BITS))
                    flip = u32(1) if n == u32(0) else u32(0)
                    level = u32(u32(n + flip) - u32(1))
                sign = u32(u32(v >> u32(31)) ^ flip)
                codes[j] = u8(level | u32(sign << u32(bits - 1)))

        def block_scale(block, sums, wide_sums, width):
            scale = _max_norm(block) if max_norm else _l2_norm(block, sums, wide_sums, width)
            if scale < f32(SCALE_MIN):
                return f32(0)
            return scale if scale < f32(SCALE_LIMIT) else f32(np.nan)

        if stamp < 0:  # never; see STAMP
            return -1
        codes = np.empty(UNIT, u8)
        sums, wide_sums = np.empty(width, f32), np.empty(width, np.float64)
        inverse = f32(0)
        bad = -1
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, x.size)
            i = low
            while i < high:
                b = i // block_size
                start = b * block_size
                if i == start or unit == first:  # a block that began before `first` is not ours
                    block = x[start : min(start + block_size, x.size)]
                    scale = block_scale(block, sums, wide_sums, width)
                    inverse = f32(f32(1) / scale) if scale > f32(0) else f32(0)
                    if i == start:
                        scales[b] = scale
                    if np.isnan(scale) and bad < 0:
                        bad = b
                end = min(start + block_size, high)
                quantize(x[i:end], u32(i), inverse, k0, k1, codes[i - low : end - low])
                i = end
            packed = out[low * bits // 8 : (high * bits + 7) // 8]
            if high - low == UNIT:  # apart, so that the number of columns is a constant
                pack(codes, UNIT // lanes, packed)
            else:
                columns = (high - low) // lanes
                pack(codes, columns, packed)
                rest = codes[lanes * columns : high - low]
                _pack_rest(rest, bits, packed[planes * columns :])
        return bad

    return encode


@lru_cache(maxsize=None)
def decoder(
    bits: int, exponential: bool, add: bool, zero_level: bool = True
) -> Callable[..., None]:
    """Return the kernel that writes, or adds, weight * (decoded values) of a range of units."""
    lanes, planes = lanes_and_planes(bits)
    stamp = STAMP
    s = papers_s(bits, exponential, zero_level)
    bias = u32((126 if zero_level else 127) - s if exponential else 0)
    word_type = u32 if planes * 8 <= 32 else np.uint64
    code_mask, level_mask = word_type((1 << bits) - 1), u32((1 << (bits - 1)) - 1)

    @njit(_DECODE, nogil=True, cache=True)
    def decode(scales, packed, block_size, weight, out, first, last):
        def unpack(packed, columns, codes):
            for k in range(columns):
                w = word_type(0)
                for p in range(planes):
                    byte = word_type(packed[p * columns + k])
                    w = word_type(w | word_type(byte << word_type(8 * p)))
                for j in range(lanes):
                    codes[j * columns + k] = u8(word_type(w >> word_type(j * bits)) & code_mask)

        def dequantize(codes, step, out):
            for j in range(out.size):
                c = u32(codes[j])
                level = u32(c & level_mask)
                if exponential:
                    h = u32(u32(level + bias) << u32(DRAW_BITS))
                    if zero_level:
                        h = h if level > u32(0) else u32(0)
                elif zero_level:
                    h = _bits_of(f32(np.int32(level)))
                else:
                    h = _bits_of(f32(np.int32(u32(u32(level + level) + u32(1)))))
                signed = _float_of(u32(h | u32(u32(c >> u32(bits - 1)) << u32(31))))
                if add:
                    out[j] += f32(step * signed)
                else:
                    out[j] = f32(step * signed)

        if stamp < 0:  # never; see STAMP
            return
        codes = np.empty(UNIT, u8)
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, out.size)
            mine = packed[low * bits // 8 : (high * bits + 7) // 8]
            if high - low == UNIT:
                unpack(mine, UNIT // lanes, codes)
            else:
                columns = (high - low) // lanes
                unpack(mine, columns, codes)
                _unpack_rest(mine[planes * columns :], bits, codes[lanes * columns : high - low])
            i = low
            while i < high:
                b = i // block_size
                end = min((b + 1) * block_size, high)
                step = scales[b] if exponential else f32(scales[b] / f32(s))
                dequantize(codes[i - low : end - low], f32(step * weight), out[i:end])
                i = end

    return decode
