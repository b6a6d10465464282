"""The kernels for the CPU: numba, vectorized by LLVM, one pass per block from cache.

A kernel is compiled per (bits, levels, norm), cached on disk, and releases the GIL; it works on a
range of units, so that threads can share a vector. Helpers that depend on `bits` stand inside the
kernels: a closure over another compiled function would never hit the disk cache.

The reference cuts r = |v| / norm at 1; here nothing does, since r cannot be more. A rounded sum of
squares is not below any rounded square in it, sqrt(v^2) is |v| in binary arithmetic, and v times
the rounded reciprocal of a number not below it is not above 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import float32, njit, types, uint32

from .cpu_lookup import look_up, lookup_width
from .cpu_parts import (
    ABS,
    bits_of,
    called,
    counter,
    draw,
    float_of,
    l2_norm,
    max_norm,
    pack_rest,
    prefetch,
    unpack_rest,
    wide,
)
from .layout import SCALE_LIMIT, SCALE_MIN, STAMP, UNIT, lanes_and_planes, papers_s
from .rng import DRAW_BITS, GOLDEN

u8, u32, f32 = np.uint8, np.uint32, np.float32
_HALF = u32(1 << (DRAW_BITS - 1))
# Where a block has no more coordinates, the next one is fetched while it is quantized.
_MOST_AHEAD = 64 * UNIT
_PIECES = 4  # of a unit: fetching one costs nothing while a piece is quantized

_floats, _bytes = types.float32[::1], types.uint8[::1]
_read_floats = types.Array(types.float32, 1, "C", readonly=True)
_read_bytes = types.Array(types.uint8, 1, "C", readonly=True)
_int = types.int64
ENCODE = _int(_read_floats, uint32, uint32, _int, _int, _floats, _bytes, _int, _int)
DECODE = types.void(_read_floats, _read_bytes, _int, float32, _floats, _int, _int, _int)


@lru_cache(maxsize=None)
def encoder(
    bits: int, exponential: bool, is_max: bool, zero_level: bool = True
) -> Callable[..., int]:
    """Return the kernel that writes scales and packed codes of a range of units."""
    lanes, planes = lanes_and_planes(bits)
    stamp = STAMP
    s = papers_s(bits, exponential, zero_level)
    fraction_bits = DRAW_BITS if zero_level else DRAW_BITS - 1  # levels are 1/s or 2/s apart
    factor = f32(2.0**s) if exponential else f32(s << fraction_bits)
    least = f32(2.0**-s)
    # An exponential level is an exponent less that of the least one, modulo 2^(bits - 1).
    level_mask = (1 << (bits - 1)) - 1
    missing = (s - 127 if zero_level else -127) & level_mask if exponential else 0
    at_once = planes * 8 <= 32  # codes that share bytes fit into a word of 32 bits
    ones = sum(1 << (bits * j) for j in range(lanes))
    whole = (lanes, planes, ones, UNIT // lanes) if at_once else (1, 1, 1, UNIT)
    count = whole[-1] // _PIECES
    word_type = u32 if at_once else np.uint64

    @njit(ENCODE, nogil=True, cache=True)
    @called("encode", bits, exponential, is_max, zero_level)
    def encode(x, k0, k1, block_size, width, scales, out, first, last):
        def pack(codes, columns, out):
            for k in range(columns):
                w = word_type(0)
                for j in range(lanes):
                    c = word_type(codes[j * columns + k])
                    w = word_type(w | word_type(c << word_type(j * bits)))
                for p in range(planes):
                    out[p * columns + k] = u8(w >> word_type(8 * p))

        def quantize(x, start, inverse, k0, k1, shape, skip, count, out):
            """Write `count` of the packed columns; one lane and plane are the codes themselves."""
            lanes, planes, ones, columns = shape
            h = counter(start + skip)
            for c in range(count):
                k = skip + c
                levels, signs = u32(0), u32(0)
                for j in range(lanes):
                    at = bits * j
                    v = bits_of(x[j * columns + k])
                    random_bits = draw(u32(h + counter(j * columns)), k0, k1)
                    r = f32(float_of(u32(v & ABS)) * inverse)
                    sign = v
                    if exponential and zero_level:
                        w = u32(bits_of(f32(r + max(r, least))) + random_bits)
                    elif exponential:
                        t = f32(r * factor)
                        keep = f32(f32(min(t, f32(1)) + f32(1)) * f32(_HALF))
                        flip = u32(1) if random_bits >= u32(np.int32(keep)) else u32(0)
                        sign = u32(v ^ u32(flip << u32(31)))
                        w = u32(bits_of(max(t, f32(1))) + random_bits)
                    elif zero_level:
                        w = u32(u32(np.int32(f32(r * factor))) + random_bits)
                    else:
                        steps = u32(u32(np.int32(f32(r * factor))) + _HALF)
                        n = u32(u32(steps + random_bits) >> u32(DRAW_BITS))
                        flip = u32(1) if n == u32(0) else u32(0)
                        sign = u32(v ^ u32(flip << u32(31)))
                        w = u32(u32(u32(n + flip) - u32(1)) << u32(DRAW_BITS))
                    levels = u32(
                        levels | u32(u32(w >> u32(DRAW_BITS - at)) & u32(level_mask << at))
                    )
                    signs = u32(
                        signs | u32(u32(sign >> u32(32 - bits - at)) & u32(1 << (at + bits - 1)))
                    )
                word = u32(u32(u32(levels + u32(missing * ones)) & u32(level_mask * ones)) | signs)
                out[k] = u8(word)
                if planes == 3:  # no loop: it would keep the one around it from being vectorized
                    out[columns + k] = u8(u32(word >> u32(8)))
                    out[2 * columns + k] = u8(u32(word >> u32(16)))
                h = u32(h + u32(GOLDEN))

        def block_scale(block, sums, width):
            scale = max_norm(block) if is_max else l2_norm(block, sums, width)
            if scale < f32(SCALE_MIN):
                return f32(0)
            return scale if scale < f32(SCALE_LIMIT) else f32(np.nan)

        wide()
        if stamp < 0:  # never; see STAMP
            return -1
        codes = np.empty(UNIT, u8)
        sums = np.empty(width, f32)
        ahead = min(max(block_size, 8 * UNIT), _MOST_AHEAD)
        inverse = f32(0)
        bad = -1
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, x.size)
            packed = out[low * bits // 8 : (high * bits + 7) // 8]
            i = low
            is_packed = False
            while i < high:
                b = i // block_size
                start = b * block_size
                if i == start or unit == first:  # a block that began before `first` is not ours
                    block = x[start : min(start + block_size, x.size)]
                    scale = block_scale(block, sums, width)
                    inverse = f32(f32(1) / scale) if scale > f32(0) else f32(0)
                    if i == start:
                        scales[b] = scale
                    if np.isnan(scale) and bad < 0:
                        bad = b
                end = min(start + block_size, high)
                part = x[i:end]
                if part.size == UNIT:
                    target, is_packed = packed if at_once else codes, at_once
                    for piece in range(_PIECES):
                        prefetch(x, low + ahead + piece * UNIT // _PIECES, UNIT // _PIECES)
                        quantize(part, i, inverse, k0, k1, whole, piece * count, count, target)
                else:
                    rest = codes[i - low :]
                    quantize(part, i, inverse, k0, k1, (1, 1, 1, part.size), 0, part.size, rest)
                i = end
            if is_packed:
                continue
            columns = (high - low) // lanes
            pack(codes, columns, packed)
            pack_rest(codes[lanes * columns : high - low], bits, packed[planes * columns :])
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
    at_once = lookup_width(bits)

    @njit(DECODE, nogil=True, cache=True)
    @called("decode", bits, exponential, add, zero_level)
    def decode(scales, packed, block_size, weight, out, ahead, first, last):
        def unpack(packed, columns, codes):
            for k in range(columns):
                w = word_type(0)
                for p in range(planes):
                    byte = word_type(packed[p * columns + k])
                    w = word_type(w | word_type(byte << word_type(8 * p)))
                for j in range(lanes):
                    codes[j * columns + k] = u8(word_type(w >> word_type(j * bits)) & code_mask)

        def dequantize(codes, step, out, add):
            for j in range(out.size):
                c = u32(codes[j])
                level = u32(c & level_mask)
                if exponential:
                    h = u32(u32(level + bias) << u32(DRAW_BITS))
                    if zero_level:
                        h = h if level > u32(0) else u32(0)
                elif zero_level:
                    h = bits_of(f32(np.int32(level)))
                else:
                    h = bits_of(f32(np.int32(u32(u32(level + level) + u32(1)))))
                signed = float_of(u32(h | u32(u32(c >> u32(bits - 1)) << u32(31))))
                if add:
                    out[j] += f32(step * signed)
                else:
                    out[j] = f32(step * signed)

        def step_of(block):
            step = scales[block] if exponential else f32(scales[block] / f32(s))
            return f32(step * weight)

        wide()
        if stamp < 0:  # never; see STAMP
            return
        codes = np.empty(UNIT, u8)
        table, made_for = np.empty(at_once, f32), -1
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, out.size)
            mine = packed[low * bits // 8 : (high * bits + 7) // 8]
            b = low // block_size
            if at_once and high - low == UNIT and high <= (b + 1) * block_size:
                if b != made_for:
                    for c in range(at_once):
                        codes[c] = u8(c & code_mask)
                    dequantize(codes[:at_once], step_of(b), table, False)
                    made_for = b
                here = out[low:high]
                for k in range(0, UNIT // lanes, at_once):
                    if ahead > 0:  # in small pieces, or it would be waited for
                        prefetch(out, low + ahead + k * lanes, at_once * lanes)
                    look_up(bits, add, table, mine, k, here)
                continue
            if high - low == UNIT:
                unpack(mine, UNIT // lanes, codes)
            else:
                columns = (high - low) // lanes
                unpack(mine, columns, codes)
                unpack_rest(mine[planes * columns :], bits, codes[lanes * columns : high - low])
            if ahead > 0:  # not before: 5 to 8 bits would take 10 to 20 % more
                prefetch(out, low + ahead, UNIT)
            i = low
            while i < high:
                b = i // block_size
                end = min((b + 1) * block_size, high)
                dequantize(codes[i - low : end - low], step_of(b), out[i:end], add)
                i = end

    return decode
