"""What CUDA kernels do to one coordinate: the code of a value, the value of a code, their bytes.

`how` are a quantizer's constants, as the kernels have them; layout.py says how codes are packed.
"""

from __future__ import annotations

import numpy as np

from .cuda_parts import ABS, add, bits_of, device, div, f32, float_of, mul, u32
from .rng import DRAW_BITS, GOLDEN, ROUND_1, ROUND_2

_HALF, _ONE_BITS = u32(1 << (DRAW_BITS - 1)), u32(127 << DRAW_BITS)


@device
def code(i, v, inverse, k0, k1, how):
    """Return the code of coordinate i, whose bits are v."""
    exponential, zero_level, bits, factor, least, below = how
    h = u32(u32(i * u32(GOLDEN)) ^ k0)
    h = u32(u32(u32(h ^ u32(h >> u32(16))) * u32(ROUND_1)) + k1)
    h = u32(u32(h ^ u32(h >> u32(15))) * u32(ROUND_2))
    random_bits = u32(h >> u32(32 - DRAW_BITS))
    r = mul(float_of(u32(v & ABS)), inverse)  # not above 1: see cpu.py
    flip = u32(0)
    if exponential and zero_level:
        w = u32(bits_of(add(r, max(r, least))) + random_bits)
        level = u32(u32(w >> u32(DRAW_BITS)) - below)
    elif exponential:
        t = mul(r, factor)
        keep = mul(add(min(t, f32(1)), f32(1)), f32(_HALF))
        flip = u32(random_bits >= u32(np.int32(keep)))
        w = u32(bits_of(max(t, f32(1))) + random_bits)
        level = u32(u32(w - _ONE_BITS) >> u32(DRAW_BITS))
    elif zero_level:
        level = u32(u32(u32(np.int32(mul(r, factor))) + random_bits) >> u32(DRAW_BITS))
    else:
        steps = u32(u32(np.int32(mul(r, factor))) + _HALF)
        n = u32(u32(steps + random_bits) >> u32(DRAW_BITS))
        flip = u32(n == u32(0))
        level = u32(u32(n + flip) - u32(1))
    sign = u32(u32(v >> u32(31)) ^ flip)
    return u32(level | u32(sign << u32(bits - 1)))


@device
def column_bytes(w0, w1, w2, w3, shift):
    """Return the bytes at `shift` of four columns' words as one word."""
    b0, b1 = u32(u32(w0 >> shift) & u32(255)), u32(u32(w1 >> shift) & u32(255))
    b2, b3 = u32(u32(w2 >> shift) & u32(255)), u32(u32(w3 >> shift) & u32(255))
    return u32(u32(b0 | u32(b1 << u32(8))) | u32(u32(b2 | u32(b3 << u32(8))) << u32(16)))


@device
def value_of(code, step, how):
    """Return step * (what a code stands for)."""
    exponential, zero_level, bits, bias, level_mask = how
    level = u32(code & level_mask)
    if exponential:
        h = u32(u32(level + bias) << u32(DRAW_BITS))
        if zero_level:
            h = h if level > u32(0) else u32(0)
    elif zero_level:
        h = bits_of(f32(np.int32(level)))
    else:
        h = bits_of(f32(np.int32(u32(u32(level + level) + u32(1)))))
    return mul(step, float_of(u32(h | u32(u32(code >> u32(bits - 1)) << u32(31)))))


@device
def put(before, code, step, is_sum, how):
    """Return the bits of what a coordinate becomes, whose bits are `before`."""
    v = value_of(code, step, how)
    return bits_of(add(float_of(before), v) if is_sum else v)


@device
def field(w, v, at, shift):
    """Return the code, and what is above it, in one column's two bytes, of two planes."""
    low, high = u32(u32(w >> at) & u32(255)), u32(u32(v >> at) & u32(255))
    return u32(u32(low | u32(high << u32(8))) >> shift)


@device
def step_of(scales, weight, block, s, exponential):
    """Return what a block's least step is worth."""
    return mul(scales[block] if exponential else div(scales[block], s), weight)
