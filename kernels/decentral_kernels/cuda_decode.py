"""The CUDA kernel that decodes: writes, or adds several messages in one pass over the result."""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda

from .cuda_parts import (
    CUDA_STAMP,
    add,
    bits_of,
    div,
    f32,
    float_of,
    load4,
    load_word,
    mul,
    store4,
    u32,
    u64,
)
from .layout import UNIT, Quantizer, lanes_and_planes
from .rng import DRAW_BITS

_FOUR = 4  # coordinates that a thread writes at once


def decode_kernel(q: Quantizer, is_sum: bool, messages: int = 1) -> Callable[..., None]:
    """Return the kernel body that writes, or adds, weight * (the decoded values), in order.

    It takes tuples of so many `messages`; out are bit patterns, uint32.
    """
    bits, zero_level, exponential = q.bits, q.zero_level, q.levels == "exponential"
    lanes, planes = lanes_and_planes(bits)
    block_size = q.block_size
    stamp = CUDA_STAMP
    s = f32(q.s)
    bias = u32((126 if zero_level else 127) - q.s if exponential else 0)
    code_mask, level_mask = u32((1 << bits) - 1), u32((1 << (bits - 1)) - 1)
    columns, per_unit = UNIT // lanes, UNIT // lanes // _FOUR
    one_scale = block_size % _FOUR == 0  # for four coordinates that lie side by side

    def kernel(scales, packed, weights, wide, out):
        if stamp < 0:  # never; see layout.STAMP
            return

        def step_of(m, i):
            scale = scales[m][i // block_size]
            return mul(scale if exponential else div(scale, s), weights[m])

        def value(c, step):
            level = u32(c & level_mask)
            if exponential:
                h = u32(u32(level + bias) << u32(DRAW_BITS))
                if zero_level:
                    h = h if level > u32(0) else u32(0)
            elif zero_level:
                h = bits_of(f32(level))
            else:
                h = bits_of(f32(u32(u32(level + level) + u32(1))))
            return mul(step, float_of(u32(h | u32(u32(c >> u32(bits - 1)) << u32(31)))))

        def put(before, c, step):
            """Return the bits of what coordinate becomes, whose bits are `before`."""
            v = value(c, step)
            return bits_of(add(float_of(before), v) if is_sum else v)

        def field(w, v, at):
            """Return one column's two bytes, of two planes."""
            return u32(u32(u32(w >> at) & u32(255)) | u32(u32(u32(v >> at) & u32(255)) << u32(8)))

        def unpack_four(unit, k):
            """Decode columns k .. k + 3 of a whole unit."""
            low = unit * UNIT
            base = low * bits // 8 + k
            for j in range(lanes):
                i = low + j * columns + k
                first, last = j * bits // 8, (j * bits + bits - 1) // 8  # planes with the code
                shift = u32(j * bits - 8 * first)
                a, b, c, d = u32(0), u32(0), u32(0), u32(0)
                if is_sum:
                    a, b, c, d = load4(out, i)
                for m in range(messages):
                    w = load_word(packed[m], base + first * columns)
                    v = u32(0)
                    if last > first:
                        v = load_word(packed[m], base + last * columns)
                    s0 = step_of(m, i)
                    s1, s2, s3 = s0, s0, s0
                    if not one_scale:
                        s1, s2, s3 = step_of(m, i + 1), step_of(m, i + 2), step_of(m, i + 3)
                    a = put(a, u32(field(w, v, u32(0)) >> shift) & code_mask, s0)
                    b = put(b, u32(field(w, v, u32(8)) >> shift) & code_mask, s1)
                    c = put(c, u32(field(w, v, u32(16)) >> shift) & code_mask, s2)
                    d = put(d, u32(field(w, v, u32(24)) >> shift) & code_mask, s3)
                store4(out, i, a, b, c, d)

        def unpack_some(m, low, first, step, count, base, stride, nbytes):
            """Decode the codes of coordinates first, first + step, ... from bytes base, ... ."""
            word = u64(0)
            for p in range(nbytes):
                word |= u64(packed[m][base + p * stride]) << u64(8 * p)
            for j in range(count):
                i = low + first + j * step
                c = u32(u32(word >> u64(j * bits)) & code_mask)
                out[i] = put(out[i], c, step_of(m, i))

        def unpack_unit(unit):
            """Decode any unit; the last column is the codes that fill no whole one."""
            low = unit * UNIT
            size = min(UNIT, out.size - low)
            full = size // lanes
            base = low * bits // 8
            rest = size - lanes * full
            for k in range(cuda.threadIdx.x, full + 1, cuda.blockDim.x):
                for m in range(messages):
                    if k < full:
                        unpack_some(m, low, k, full, lanes, base + k, full, planes)
                    else:
                        at, nbytes = base + planes * full, (rest * bits + 7) // 8
                        unpack_some(m, low, lanes * full, 1, rest, at, 1, nbytes)

        units = (out.size + UNIT - 1) // UNIT
        whole = out.size // UNIT if wide else 0
        for item in range(cuda.grid(1), whole * per_unit, cuda.gridsize(1)):
            unpack_four(item // per_unit, item % per_unit * _FOUR)
        for unit in range(whole + cuda.blockIdx.x, units, cuda.gridDim.x):
            unpack_unit(unit)

    return kernel
