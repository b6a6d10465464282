"""The kernels of EF-SignSGD and natural compression for the CPU: one sign bit apart from the rest.

Signs are packed like codes of one bit (layout.py). reference_signs.py has the same in NumPy; what
cpu.py says of casts and of the disk cache holds here too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint32
from numba.extending import intrinsic

from .cpu_parts import ABS, bits_of, counter, draw, float_of, pack_rest, unpack_rest, wide
from .layout import EF_WIDTH, INF, SIGN_LIMIT_BITS, STAMP, UNIT
from .rng import DRAW_BITS, GOLDEN

u8, u32, u64, f32 = np.uint8, np.uint32, np.uint64, np.float32
_LANES = 8  # codes of one bit: eight share a byte
_NATURAL_LIMIT = u32(254 << DRAW_BITS)  # 2^127: what is above it may round up to inf

_floats, _bytes = types.float32[::1], types.uint8[::1]
_read_floats = types.Array(types.float32, 1, "C", readonly=True)
_read_bytes = types.Array(types.uint8, 1, "C", readonly=True)
_int = types.int64


@njit
def _pack_signs(signs, low, high, packed):
    """Pack the uint8 signs of coordinates low..high, of one unit."""
    wide()
    columns = (high - low) // _LANES
    out = packed[low // _LANES : (high + 7) // _LANES]  # plain indices vectorize, sums do not
    for k in range(columns):
        w = u32(0)
        for j in range(_LANES):
            w = u32(w | u32(u32(signs[j * columns + k]) << u32(j)))
        out[k] = u8(w)
    pack_rest(signs[_LANES * columns : high - low], 1, out[columns:])


@njit
def _unpack_signs(packed, low, high, signs):
    wide()
    columns = (high - low) // _LANES
    mine = packed[low // _LANES : (high + 7) // _LANES]
    for k in range(columns):
        w = u32(mine[k])
        for j in range(_LANES):
            signs[j * columns + k] = u8(u32(w >> u32(j)) & u32(1))
    unpack_rest(mine[columns:], 1, signs[_LANES * columns : high - low])


@lru_cache(maxsize=None)
def natural_encoder() -> Callable[..., int]:
    """Return the kernel that writes exponents and signs; it returns the first bad unit or -1."""
    stamp = STAMP

    @njit(_int(_read_floats, uint32, uint32, _bytes, _bytes, _int, _int), nogil=True, cache=True)
    def natural_encode(x, k0, k1, exponents, packed, first, last):
        wide()
        if stamp < 0:  # never; see STAMP
            return -1
        signs = np.empty(UNIT, u8)
        bad = -1
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, x.size)
            top, h = u32(0), counter(low)
            part, out = x[low:high], exponents[low:high]
            for j in range(part.size):
                v = bits_of(part[j])
                magnitude = u32(v & ABS)
                top = max(top, magnitude)
                out[j] = u8(u32(u32(magnitude + draw(h, k0, k1)) >> u32(DRAW_BITS)))
                signs[j] = u8(v >> u32(31))
                h = u32(h + u32(GOLDEN))
            if top > _NATURAL_LIMIT and bad < 0:
                bad = unit
            _pack_signs(signs, low, high, packed)
        return bad

    return natural_encode


@lru_cache(maxsize=None)
def natural_decoder(add: bool) -> Callable[..., None]:
    """Return the kernel that writes, or adds, weight * (decoded values)."""
    stamp = STAMP
    signature = types.void(_read_bytes, _read_bytes, float32, _floats, _int, _int)

    @njit(signature, nogil=True, cache=True)
    def natural_decode(exponents, packed, weight, out, first, last):
        wide()
        if stamp < 0:  # never; see STAMP
            return
        signs = np.empty(UNIT, u8)
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, out.size)
            _unpack_signs(packed, low, high, signs)
            part, values = out[low:high], exponents[low:high]
            for j in range(part.size):
                v = u32(u32(u32(signs[j]) << u32(31)) | u32(u32(values[j]) << u32(DRAW_BITS)))
                if add:
                    part[j] += f32(weight * float_of(v))
                else:
                    part[j] = f32(weight * float_of(v))

    return natural_decode


@intrinsic
def _halved(typingctx: Any, sums: Any) -> Any:
    """Return the sum of sums[:EF_WIDTH]: halves are added until one is left."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        def half(vector: Any, first: int, width: int) -> Any:
            lanes = ir.Constant(
                ir.VectorType(ir.IntType(32), width), [*range(first, first + width)]
            )
            return b.shuffle_vector(vector, vector, lanes)

        data = context.make_array(sig.args[0])(context, b, args[0]).data
        all_of_it = ir.VectorType(ir.FloatType(), EF_WIDTH).as_pointer()
        vector, width = b.load(b.bitcast(data, all_of_it), align=4), EF_WIDTH
        while width > 1:
            width //= 2
            vector = b.fadd(half(vector, 0, width), half(vector, width, width))
        return b.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return types.float32(sums), generate


@njit
def _largest(x, residual):
    """Return the bits of the largest |x + residual|."""
    top = u32(0)
    for i in range(x.size):
        top = max(top, u32(bits_of(f32(x[i] + residual[i])) & ABS))
    return top


@lru_cache(maxsize=None)
def sign_encoder() -> Callable[..., int]:
    """Return the kernel that writes both means of every block, signs, and what is left of p.

    It returns the first block that cannot be encoded, or -1. p = x + residual is read again when a
    block's means are known, from the cache. One function does it all: with the
    means in a compiled function of their own it took twice the time at blocks of 64.
    """
    stamp = STAMP
    signature = _int(_read_floats, _read_floats, _floats, _int, _floats, _bytes, _int, _int)

    @njit(signature, nogil=True, cache=True)
    def sign_encode(x, residual, left, block_size, scales, packed, first, last):
        def add(x, residual, at, rows, width, plus, minus, negative):
            for j in range(width):
                above, below, count = plus[j], minus[j], negative[j]
                for r in range(rows):
                    i = u64(at + u64(r * EF_WIDTH + j))  # unsigned: numba lets others be negative
                    p = f32(x[i] + residual[i])
                    above += f32(0) if p < f32(0) else p
                    below += f32(-p) if p < f32(0) else f32(0)
                    count = u32(count + (u32(1) if p < f32(0) else u32(0)))
                plus[j], minus[j], negative[j] = above, below, count

        wide()
        if stamp < 0:  # never; see STAMP
            return -1
        signs = np.empty(UNIT, u8)
        plus, minus = np.empty(EF_WIDTH, f32), np.empty(EF_WIDTH, f32)
        negative = np.empty(EF_WIDTH, u32)
        bad = -1
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, x.size)
            i = low
            while i < high:
                b = i // block_size
                start, end = b * block_size, min((b + 1) * block_size, x.size)
                if i == start or unit == first:  # a block that began before `first` is not ours
                    plus[:], minus[:], negative[:] = f32(0), f32(0), u32(0)
                    at = start
                    while at + 4 * EF_WIDTH <= end:  # counts are constants, so that loops unroll
                        add(x, residual, u64(at), 4, EF_WIDTH, plus, minus, negative)
                        at += 4 * EF_WIDTH
                    while at < end:
                        width = min(EF_WIDTH, end - at)
                        add(x, residual, u64(at), 1, width, plus, minus, negative)
                        at += EF_WIDTH
                    total_minus = u32(0)
                    for j in range(EF_WIDTH):
                        total_minus = u32(total_minus + negative[j])
                    total_plus = u32(u32(end - start) - total_minus)
                    above, below = _halved(plus), _halved(minus)
                    mean_plus = f32(above / f32(total_plus)) if total_plus > u32(0) else f32(0)
                    mean_minus = f32(below / f32(total_minus)) if total_minus > u32(0) else f32(0)
                    if i == start:
                        scales[2 * b], scales[2 * b + 1] = mean_plus, mean_minus
                    # A value is part of a sum of non-negatives: where both are in range, so is
                    # every value. Where one is not finite, nor is its mean.
                    most = max(u32(bits_of(above) & ABS), u32(bits_of(below) & ABS))
                    if most >= u32(SIGN_LIMIT_BITS) and bad < 0:
                        if most < u32(INF):
                            most = _largest(x[start:end], residual[start:end])
                        if most >= u32(SIGN_LIMIT_BITS):
                            bad = b
                end = min(end, high)
                g, e, rest = x[i:end], residual[i:end], left[i:end]
                codes = signs[i - low : end - low]
                for j in range(g.size):
                    p = f32(g[j] + e[j])
                    below_zero = p < f32(0)
                    codes[j] = u8(1) if below_zero else u8(0)
                    rest[j] = f32(p - (f32(-mean_minus) if below_zero else mean_plus))
                i = end
            _pack_signs(signs, low, high, packed)
        return bad

    return sign_encode


@lru_cache(maxsize=None)
def sign_decoder(add: bool) -> Callable[..., None]:
    """Return the kernel that writes, or adds, weight * (decoded values)."""
    stamp = STAMP
    signature = types.void(_read_floats, _read_bytes, _int, float32, _floats, _int, _int)

    @njit(signature, nogil=True, cache=True)
    def sign_decode(scales, packed, block_size, weight, out, first, last):
        wide()
        if stamp < 0:  # never; see STAMP
            return
        signs = np.empty(UNIT, u8)
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, out.size)
            _unpack_signs(packed, low, high, signs)
            i = low
            while i < high:
                b = i // block_size
                end = min((b + 1) * block_size, high)
                plus = f32(scales[2 * b] * weight)
                minus = f32(f32(-scales[2 * b + 1]) * weight)
                part, codes = out[i:end], signs[i - low : end - low]
                for j in range(part.size):
                    value = minus if codes[j] else plus
                    if add:
                        part[j] += value
                    else:
                        part[j] = value
                i = end

    return sign_decode
