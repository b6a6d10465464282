"""The CUDA kernel that decodes: writes, or adds several messages in one pass over the result.

cuda_encode.py says what the casts and the helpers are about.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda

from .cuda_codes import field, put, step_of
from .cuda_parts import CUDA_STAMP, f32, load4, load_word, store4, u32, u64
from .layout import UNIT, Quantizer, lanes_and_planes

_FOUR = 4  # coordinates that a thread writes at once


def decode_kernel(q: Quantizer, is_sum: bool, messages: int = 1) -> Callable[..., None]:
    """Return the kernel body that writes, or adds, weight * (the decoded values), in order.

    It takes tuples of so many `messages`; out are bit patterns, uint32.
    """
    bits, zero_level, exponential = q.bits, q.zero_level, q.levels == "exponential"
    lanes, planes = lanes_and_planes(bits)
    stamp = CUDA_STAMP
    block_size, unit, one, four = u32(q.block_size), u32(UNIT), u32(1), u32(_FOUR)
    s = f32(q.s)
    bias = u32((126 if zero_level else 127) - q.s if exponential else 0)
    code_mask, level_mask = u32((1 << bits) - 1), u32((1 << (bits - 1)) - 1)
    columns, per_unit = u32(UNIT // lanes), u32(UNIT // lanes // _FOUR)
    one_scale = q.block_size % _FOUR == 0  # for four coordinates that lie side by side

    def kernel(scales, packed, weights, wide, out):
        if stamp < 0:  # never; see layout.STAMP
            return
        me, threads = u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
        how = (exponential, zero_level, bits, bias, level_mask)
        numel = u32(out.size)
        whole = u32(numel // unit) if wide else u32(0)
        # Four columns of a whole unit at a time.
        item = u32(cuda.grid(1))
        while item < u32(whole * per_unit):
            low = u32(u32(item // per_unit) * unit)
            k = u32(u32(item % per_unit) * four)
            base = u32(u32(u32(low // u32(8)) * u32(bits)) + k)
            i = u32(low + k)
            for j in range(lanes):
                first, last = j * bits // 8, (j * bits + bits - 1) // 8  # planes with the code
                shift = u32(j * bits - 8 * first)
                a, b, c, d = u32(0), u32(0), u32(0), u32(0)
                if is_sum:
                    a, b, c, d = load4(out, i)
                for m in range(messages):
                    w = load_word(packed[m], u32(base + u32(u32(first) * columns)))
                    v = u32(0)
                    if last > first:
                        v = load_word(packed[m], u32(base + u32(u32(last) * columns)))
                    s0 = step_of(scales[m], weights[m], u32(i // block_size), s, exponential)
                    s1, s2, s3 = s0, s0, s0
                    if not one_scale:
                        i1, i2, i3 = u32(i + u32(1)), u32(i + u32(2)), u32(i + u32(3))
                        s1 = step_of(scales[m], weights[m], u32(i1 // block_size), s, exponential)
                        s2 = step_of(scales[m], weights[m], u32(i2 // block_size), s, exponential)
                        s3 = step_of(scales[m], weights[m], u32(i3 // block_size), s, exponential)
                    a = put(a, u32(field(w, v, u32(0), shift) & code_mask), s0, is_sum, how)
                    b = put(b, u32(field(w, v, u32(8), shift) & code_mask), s1, is_sum, how)
                    c = put(c, u32(field(w, v, u32(16), shift) & code_mask), s2, is_sum, how)
                    d = put(d, u32(field(w, v, u32(24), shift) & code_mask), s3, is_sum, how)
                store4(out, i, a, b, c, d)
                i = u32(i + columns)
            item = u32(item + u32(cuda.gridsize(1)))
        # Any unit; its last column is the codes that fill no whole one.
        low = u32(u32(whole + u32(cuda.blockIdx.x)) * unit)
        while low < numel:
            size = min(unit, u32(numel - low))
            full = u32(size // u32(lanes))
            base = u32(u32(low // u32(8)) * u32(bits))
            k = me
            while k <= full:
                for m in range(messages):
                    i, step, codes, at, nbytes = u32(low + k), full, lanes, u32(base + k), planes
                    if k == full:
                        done = u32(full * u32(lanes))
                        codes = int(u32(size - done))
                        i, step = u32(low + done), one
                        at, nbytes = u32(base + u32(full * u32(planes))), (codes * bits + 7) // 8
                    word = u64(0)
                    for p in range(nbytes):
                        word |= u64(packed[m][at]) << u64(8 * p)
                        at = u32(at + step)
                    for j in range(codes):
                        c = u32(u32(word >> u64(j * bits)) & code_mask)
                        worth = step_of(scales[m], weights[m], u32(i // block_size), s, exponential)
                        out[i] = put(out[i], c, worth, is_sum, how)
                        i = u32(i + step)
                k = u32(k + threads)
            low = u32(low + u32(u32(cuda.gridDim.x) * unit))

    return kernel
