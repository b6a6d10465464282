"""The kernels of EF-SignSGD and natural compression for the CPU: one sign bit apart from the rest.

Signs are packed like codes of one bit (layout.py). reference_signs.py has the same in NumPy; what
cpu.py says of casts and of the disk cache holds here too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import float32, njit, types, uint32

from .cpu_parts import ABS, bits_of, counter, draw, float_of, pack_rest, unpack_rest
from .layout import EF_WIDTH, SIGN_LIMIT_BITS, STAMP, UNIT
from .rng import DRAW_BITS

u8, u32, f32 = np.uint8, np.uint32, np.float32
_LANES = 8  # codes of one bit: eight share a byte
_NATURAL_LIMIT = u32(254 << DRAW_BITS)  # 2^127: what is above it may round up to inf

_floats, _bytes = types.float32[::1], types.uint8[::1]
_read_floats = types.Array(types.float32, 1, "C", readonly=True)
_read_bytes = types.Array(types.uint8, 1, "C", readonly=True)
_int = types.int64


@njit
def _pack_signs(signs, low, high, out):
    """Pack the uint8 signs of coordinates low..high, of one unit."""
    columns = (high - low) // _LANES
    for k in range(columns):
        w = u32(0)
        for j in range(_LANES):
            w = u32(w | u32(u32(signs[j * columns + k]) << u32(j)))
        out[low // _LANES + k] = u8(w)
    rest = signs[_LANES * columns : high - low]
    pack_rest(rest, 1, out[low // _LANES + columns : (high + 7) // _LANES])


@njit
def _unpack_signs(packed, low, high, signs):
    columns = (high - low) // _LANES
    for k in range(columns):
        w = u32(packed[low // _LANES + k])
        for j in range(_LANES):
            signs[j * columns + k] = u8(u32(w >> u32(j)) & u32(1))
    rest = packed[low // _LANES + columns : (high + 7) // _LANES]
    unpack_rest(rest, 1, signs[_LANES * columns : high - low])


@lru_cache(maxsize=None)
def natural_encoder() -> Callable[..., int]:
    """Return the kernel that writes exponents and signs; it returns the first bad unit or -1."""
    stamp = STAMP

    @njit(_int(_read_floats, uint32, uint32, _bytes, _bytes, _int, _int), nogil=True, cache=True)
    def natural_encode(x, k0, k1, exponents, packed, first, last):
        if stamp < 0:  # never; see STAMP
            return -1
        signs = np.empty(UNIT, u8)
        bad = -1
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, x.size)
            top = u32(0)
            part, out = x[low:high], exponents[low:high]
            for j in range(part.size):
                v = bits_of(part[j])
                magnitude = u32(v & ABS)
                top = max(top, magnitude)
                rounded = u32(magnitude + draw(counter(u32(u32(low) + u32(j))), k0, k1))
                out[j] = u8(rounded >> u32(DRAW_BITS))
                signs[j] = u8(v >> u32(31))
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


@njit
def _side_mean(sums, count):
    width = EF_WIDTH
    while width > 1:
        width //= 2
        for j in range(width):
            sums[j] += sums[width + j]
    return f32(sums[0] / f32(count)) if count > 0 else f32(0)


@lru_cache(maxsize=None)
def sign_scaler() -> Callable[..., int]:
    """Return the kernel that writes both means of every block; the first bad block or -1."""
    stamp = STAMP

    @njit(_int(_read_floats, _read_floats, _int, _floats, _int, _int), nogil=True, cache=True)
    def sign_scale(x, residual, block_size, scales, first, last):
        if stamp < 0:  # never; see STAMP
            return -1
        plus, minus, counts = (
            np.empty(EF_WIDTH, f32),
            np.empty(EF_WIDTH, f32),
            np.empty(EF_WIDTH, u32),
        )
        bad = -1
        for b in range(first, last):
            start, end = b * block_size, min((b + 1) * block_size, x.size)
            plus[:], minus[:], counts[:] = f32(0), f32(0), u32(0)
            whole = start + (end - start) // EF_WIDTH * EF_WIDTH
            top = u32(0)
            for row in range(start, whole, EF_WIDTH):  # the width is a constant, so that it unrolls
                g, e = x[row : row + EF_WIDTH], residual[row : row + EF_WIDTH]
                for j in range(EF_WIDTH):
                    p = f32(g[j] + e[j])
                    top = max(top, u32(bits_of(p) & ABS))
                    plus[j] += f32(0) if p < f32(0) else p
                    minus[j] += f32(-p) if p < f32(0) else f32(0)
                    counts[j] += u32(1) if p < f32(0) else u32(0)
            for j in range(end - whole):
                p = f32(x[whole + j] + residual[whole + j])
                top = max(top, u32(bits_of(p) & ABS))
                plus[j] += f32(0) if p < f32(0) else p
                minus[j] += f32(-p) if p < f32(0) else f32(0)
                counts[j] += u32(1) if p < f32(0) else u32(0)
            negative = 0
            for j in range(EF_WIDTH):
                negative += np.int64(counts[j])
            scales[2 * b] = _side_mean(plus, end - start - negative)
            scales[2 * b + 1] = _side_mean(minus, negative)
            if top >= u32(SIGN_LIMIT_BITS) and bad < 0:
                bad = b
        return bad

    return sign_scale


@lru_cache(maxsize=None)
def sign_encoder() -> Callable[..., None]:
    """Return the kernel that packs the signs of p = x + residual and writes the new residual."""
    stamp = STAMP
    signature = types.void(_read_floats, _floats, _int, _read_floats, _bytes, _int, _int)

    @njit(signature, nogil=True, cache=True)
    def sign_encode(x, residual, block_size, scales, packed, first, last):
        if stamp < 0:  # never; see STAMP
            return
        signs = np.empty(UNIT, u8)
        for unit in range(first, last):
            low, high = unit * UNIT, min((unit + 1) * UNIT, x.size)
            i = low
            while i < high:
                b = i // block_size
                end = min((b + 1) * block_size, high)
                plus, minus = scales[2 * b], f32(-scales[2 * b + 1])
                g, e, codes = x[i:end], residual[i:end], signs[i - low : end - low]
                for j in range(g.size):
                    p = f32(g[j] + e[j])
                    below = p < f32(0)
                    codes[j] = u8(1) if below else u8(0)
                    e[j] = f32(p - (minus if below else plus))
                i = end
            _pack_signs(signs, low, high, packed)

    return sign_encode


@lru_cache(maxsize=None)
def sign_decoder(add: bool) -> Callable[..., None]:
    """Return the kernel that writes, or adds, weight * (decoded values)."""
    stamp = STAMP
    signature = types.void(_read_floats, _read_bytes, _int, float32, _floats, _int, _int)

    @njit(signature, nogil=True, cache=True)
    def sign_decode(scales, packed, block_size, weight, out, first, last):
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
