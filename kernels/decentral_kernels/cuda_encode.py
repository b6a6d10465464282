"""The CUDA kernels that encode: norms, then levels, packed, of one reading of the vector.

A tile is a scale block of at most MAX_FUSED coordinates, or several small ones. A thread block
reads it into shared memory, in vectors of four, and takes from there all that is to be written.
Blocks that fill no whole units (100), or that are larger, get their norms from cuda_norms.py and
are read twice.

Indices are 32-bit, hence the casts: numba widens integers without a word, and 64-bit indices would
take as much time as all else. Helpers are device functions; what depends on the quantizer is
constant in the kernels, and so in helpers, too, once they are inlined.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import cuda

from .cuda_codes import code, column_bytes
from .cuda_norms import is_safe, reciprocal, squares, top, wide_squares
from .cuda_parts import (
    ALIGNMENT,
    CUDA_STAMP,
    SOURCES,
    add,
    device,
    f32,
    float_of,
    load4,
    sqrt,
    store4,
    store_word,
    u8,
    u32,
    u64,
    widened,
)
from .layout import SCALE_LIMIT, SCALE_MIN, UNIT, Quantizer, lanes_and_planes
from .rng import DRAW_BITS

MAX_FUSED = 8192  # coordinates; 32 KiB of shared memory, so that a multiprocessor has several tiles
_SMALL_TILE = 2 * UNIT
_FOUR = 4  # coordinates that a thread reads, or whose codes it writes, at once


def is_fused(block_size: int) -> bool:
    """Return whether a tile is made of whole blocks, and blocks add up as many numbers as 2^k."""
    return _FOUR <= block_size <= MAX_FUSED and (block_size % UNIT == 0 or UNIT % block_size == 0)


def tile_size(block_size: int) -> int:
    """Return how many coordinates a thread block encodes at once."""
    return block_size if is_fused(block_size) and block_size >= UNIT else _SMALL_TILE


@device
def read(x, low, size, wide, source, values, tile):
    """Bring a tile into shared memory; what is behind the vector's end counts as zeros."""
    me, threads = u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
    if wide and size == tile:
        i, step, last = u32(me * u32(4)), u32(threads * u32(4)), u32(tile - u32(4))
        while i < tile:
            # Four loads are under way before the first is used; some may read the same.
            i1 = min(u32(i + step), last)
            i2 = min(u32(i1 + step), last)
            i3 = min(u32(i2 + step), last)
            a = load4(x, u32(low + i))
            b = load4(x, u32(low + i1))
            c = load4(x, u32(low + i2))
            d = load4(x, u32(low + i3))
            keep4(values, i, a, source)
            keep4(values, i1, b, source)
            keep4(values, i2, c, source)
            keep4(values, i3, d, source)
            i = u32(i + u32(step * u32(4)))
    else:
        i = me
        while i < tile:
            values[i] = widened(u32(x[u32(low + i)]), source) if i < size else u32(0)
            i = u32(i + threads)


@device
def keep4(values, i, four, source):
    """Keep four values of x."""
    a, b, c, d = four
    store4(
        values, i, widened(a, source), widened(b, source), widened(c, source), widened(d, source)
    )


@device
def halve(values, sums, size, segment, rows, kind):
    """Let the first of each segment of sums be its sum (kind 0, 1 in float64) or maximum (2)."""
    me, threads = u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
    p = me
    while p < size:
        at = u32(p + u32(p & u32(~u32(segment - u32(1)))))  # segments are as wide as the gaps
        behind = u32(at + segment)
        if kind == 0:
            sums[p] = add(squares(values, at, rows), squares(values, behind, rows))
        elif kind == 1:
            sums[p] = wide_squares(values, at, rows) + wide_squares(values, behind, rows)
        else:
            sums[p] = max(top(values, at, rows), top(values, behind, rows))
        p = u32(p + threads)
    cuda.syncthreads()
    width, shift = segment, u32(0)  # 2^shift of the numbers are left
    while u32(u32(1) << shift) < segment:
        shift = u32(shift + u32(1))
    while shift > u32(0):
        shift = u32(shift - u32(1))
        width = u32(u32(1) << shift)
        p = me
        while p < u32(u32(size // segment) << shift):
            at = u32(u32(u32(p >> shift) * segment) + u32(p & u32(width - u32(1))))
            if kind == 2:
                sums[at] = max(sums[at], sums[u32(at + width)])
            else:
                sums[at] += sums[u32(at + width)]
            p = u32(p + threads)
        cuda.syncthreads()


@device
def written(scale, block, scales, first_bad):
    """Write a block's scale and return its reciprocal."""
    if scale < f32(SCALE_MIN):
        scale = f32(0)
    if not scale < f32(SCALE_LIMIT):
        scale = f32(np.nan)
        cuda.atomic.min(first_bad, 0, np.int32(block))
    scales[block] = scale
    return reciprocal(scale)


def encode_kernel(q: Quantizer, source: str = "float32") -> Callable[..., None]:
    """Return the kernel body that quantizes and packs, a tile per thread block.

    It writes the scales, too, if is_fused(); else it reads them.
    """
    bits, zero_level, exponential = q.bits, q.zero_level, q.levels == "exponential"
    lanes, planes = lanes_and_planes(bits)
    stamp, kind = CUDA_STAMP, SOURCES.index(source)
    fraction_bits = DRAW_BITS if zero_level else DRAW_BITS - 1  # levels are 1/s or 2/s apart
    factor = f32(2.0**q.s) if exponential else f32(q.s << fraction_bits)
    least, below = f32(2.0**-q.s), u32(127 - q.s if exponential else 0)
    fused, max_norm = is_fused(q.block_size), q.norm == "max"
    block_size, tile = u32(q.block_size), u32(tile_size(q.block_size))
    unit, one, four = u32(UNIT), u32(1), u32(_FOUR)
    values_size, inverses_size = int(tile), int(tile // block_size) + 2
    one_block = fused and block_size == tile
    one_scale = q.block_size % _FOUR == 0  # for four coordinates that lie side by side
    # In each of the tile's segments, a block's, half as many numbers are left of which to add two.
    segment, rows = u32(min(UNIT, q.block_size) // 2), max(1, q.block_size // UNIT)
    sums_size = (UNIT if one_block else int(tile)) // 2
    columns, per_unit = u32(UNIT // lanes), u32(UNIT // lanes // _FOUR)
    alignment = ALIGNMENT
    word_type = u32 if lanes * bits <= 32 else u64

    def kernel(x, k0, k1, wide_loads, wide_stores, scales, out, first_bad):
        if stamp < 0:  # never; see layout.STAMP
            return
        values = cuda.shared.array(values_size, np.uint32, alignment)
        inverses = cuda.shared.array(inverses_size, dtype=np.float32)
        tops = cuda.shared.array(sums_size, dtype=np.uint32)
        sums = cuda.shared.array(sums_size, dtype=np.float32)
        wide_sums = cuda.shared.array(sums_size, dtype=np.float64)
        me, threads = u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
        how = (exponential, zero_level, bits, factor, least, below)
        size_of_sums = u32(sums_size)
        numel = u32(x.size)
        low = u32(u32(cuda.blockIdx.x) * tile)
        while low < numel:
            size = min(tile, u32(numel - low))
            read(x, low, size, wide_loads, kind, values, tile)
            first = u32(low // block_size)
            phase = u32(low - u32(first * block_size))
            count = u32(u32(u32(phase + size) - one) // block_size + one)
            cuda.syncthreads()
            if not fused:
                k = me
                while k < count:
                    inverses[k] = reciprocal(scales[u32(first + k)])
                    k = u32(k + threads)
            elif max_norm:
                halve(values, tops, size_of_sums, segment, rows, 2)
                k = me
                while k < count:
                    scale = float_of(tops[u32(k * segment)])
                    inverses[k] = written(scale, u32(first + k), scales, first_bad)
                    k = u32(k + threads)
            else:
                halve(values, sums, size_of_sums, segment, rows, 0)
                unsafe = False
                k = me
                while k < count:
                    unsafe = unsafe or not is_safe(sums[u32(k * segment)])
                    k = u32(k + threads)
                if cuda.syncthreads_or(np.int32(unsafe)):
                    halve(values, wide_sums, size_of_sums, segment, rows, 1)
                k = me
                while k < count:
                    total = sums[u32(k * segment)]
                    scale = sqrt(total)
                    if not is_safe(total):
                        scale = f32(math.sqrt(wide_sums[u32(k * segment)]))
                    inverses[k] = written(scale, u32(first + k), scales, first_bad)
                    k = u32(k + threads)
            cuda.syncthreads()
            whole = u32(size // unit) if wide_stores else u32(0)
            # Four columns of a whole unit at a time.
            item = me
            while item < u32(whole * per_unit):
                at = u32(u32(item // per_unit) * unit)
                k = u32(u32(item % per_unit) * four)
                w0, w1, w2, w3 = word_type(0), word_type(0), word_type(0), word_type(0)
                i = u32(at + k)
                for j in range(lanes):
                    shift = word_type(j * bits)
                    a, b, c, d = load4(values, i)
                    s0 = inverses[u32(0) if one_block else u32(u32(phase + i) // block_size)]
                    s1, s2, s3 = s0, s0, s0
                    if not one_scale:
                        s1 = inverses[u32(u32(u32(phase + i) + u32(1)) // block_size)]
                        s2 = inverses[u32(u32(u32(phase + i) + u32(2)) // block_size)]
                        s3 = inverses[u32(u32(u32(phase + i) + u32(3)) // block_size)]
                    n = u32(low + i)
                    w0 |= word_type(code(n, a, s0, k0, k1, how)) << shift
                    w1 |= word_type(code(u32(n + u32(1)), b, s1, k0, k1, how)) << shift
                    w2 |= word_type(code(u32(n + u32(2)), c, s2, k0, k1, how)) << shift
                    w3 |= word_type(code(u32(n + u32(3)), d, s3, k0, k1, how)) << shift
                    i = u32(i + columns)
                to = u32(u32(u32(u32(low + at) // u32(8)) * u32(bits)) + k)
                for p in range(planes):
                    store_word(out, to, column_bytes(w0, w1, w2, w3, word_type(8 * p)))
                    to = u32(to + columns)
                item = u32(item + threads)
            # Any unit; its last column is the codes that fill no whole one.
            at = u32(whole * unit)
            while at < size:
                full = u32(min(unit, u32(size - at)) // u32(lanes))
                base = u32(u32(u32(low + at) // u32(8)) * u32(bits))
                k = me
                while k <= full:
                    i, step, codes, to, nbytes = u32(at + k), full, lanes, u32(base + k), planes
                    if k == full:
                        done = u32(full * u32(lanes))
                        codes = int(u32(min(unit, u32(size - at)) - done))
                        i, step = u32(at + done), one
                        to, nbytes = u32(base + u32(full * u32(planes))), (codes * bits + 7) // 8
                    word = u64(0)
                    for j in range(codes):
                        inverse = inverses[u32(u32(phase + i) // block_size)]
                        c = code(u32(low + i), values[i], inverse, k0, k1, how)
                        word |= u64(c) << u64(j * bits)
                        i = u32(i + step)
                    for p in range(nbytes):
                        out[to] = u8((word >> u64(8 * p)) & u64(255))
                        to = u32(to + step)
                    k = u32(k + threads)
                at = u32(at + unit)
            cuda.syncthreads()
            low = u32(low + u32(u32(cuda.gridDim.x) * tile))

    return kernel
