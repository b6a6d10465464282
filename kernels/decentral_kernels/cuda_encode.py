"""The CUDA kernels that encode: norms, then levels, packed, of one reading of the vector.

A tile is a scale block of at most MAX_FUSED coordinates, or several small ones. A thread block
reads it into shared memory, in vectors of four, and takes from there all that is to be written.
Blocks that fill no whole units (100), or that are larger, get their norms from cuda_norms.py and
are read twice. Helpers stand inside the kernels, since a separate device function could not be
compiled without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import cuda

from .cuda_parts import (
    ABS,
    ALIGNMENT,
    CUDA_STAMP,
    add,
    bits_of,
    div,
    f32,
    f64,
    float_of,
    load4,
    mul,
    sqrt,
    store4,
    store_word,
    u8,
    u32,
    u64,
    widened_half,
)
from .layout import (
    SCALE_LIMIT,
    SCALE_MIN,
    SUM_MAX,
    SUM_MIN,
    UNIT,
    Quantizer,
    lanes_and_planes,
)
from .rng import DRAW_BITS, GOLDEN, ROUND_1, ROUND_2

MAX_FUSED = 8192  # coordinates; 32 KiB of shared memory, so that a multiprocessor has several tiles
_SMALL_TILE = 2 * UNIT
_FOUR = 4  # coordinates that a thread reads, or whose codes it writes, at once


def is_fused(block_size: int) -> bool:
    """Return whether a tile is made of whole blocks, and blocks add up as many numbers as 2^k."""
    return _FOUR <= block_size <= MAX_FUSED and (block_size % UNIT == 0 or UNIT % block_size == 0)


def tile_size(block_size: int) -> int:
    """Return how many coordinates a thread block encodes at once."""
    return block_size if is_fused(block_size) and block_size >= UNIT else _SMALL_TILE


def encode_kernel(q: Quantizer, source: str = "float32") -> Callable[..., None]:
    """Return the kernel body that quantizes and packs, a tile per thread block.

    It writes the scales, too, if is_fused(); else it reads them.
    """
    bits, zero_level, exponential = q.bits, q.zero_level, q.levels == "exponential"
    lanes, planes = lanes_and_planes(bits)
    stamp = CUDA_STAMP
    fraction_bits = DRAW_BITS if zero_level else DRAW_BITS - 1  # levels are 1/s or 2/s apart
    factor = f32(2.0**q.s) if exponential else f32(q.s << fraction_bits)
    least, below = f32(2.0**-q.s), u32(127 - q.s)
    one_bits, half = u32(127 << DRAW_BITS), u32(1 << (DRAW_BITS - 1))
    brain, half_precision = source == "bfloat16", source == "float16"
    fused, max_norm = is_fused(q.block_size), q.norm == "max"
    block_size, tile = q.block_size, tile_size(q.block_size)
    inverses_size = tile // block_size + 2
    # In each of the tile's segments, a block's, half as many numbers are left of which to add two.
    pairs = (UNIT if block_size >= UNIT else tile) // 2
    segment = min(UNIT, block_size) // 2 if fused else 1
    levels, rows = segment.bit_length() - 1, max(1, block_size // UNIT)
    columns, per_unit = UNIT // lanes, UNIT // lanes // _FOUR
    one_scale = block_size % _FOUR == 0  # for four coordinates that lie side by side
    alignment = ALIGNMENT
    word_type = u32 if lanes * bits <= 32 else u64

    def kernel(x, k0, k1, wide_loads, wide_stores, scales, out, first_bad):
        if stamp < 0:  # never; see layout.STAMP
            return
        values = cuda.shared.array(tile, np.uint32, alignment)
        inverses = cuda.shared.array(inverses_size, dtype=np.float32)
        tops = cuda.shared.array(pairs, dtype=np.uint32)
        sums = cuda.shared.array(pairs, dtype=np.float32)
        wide_sums = cuda.shared.array(pairs, dtype=np.float64)

        def widened(v):
            if brain:
                return u32(v << u32(16))
            return widened_half(v) if half_precision else v

        def read(low, size, wide_loads):
            """Bring a tile into shared memory; what is behind the vector's end counts as zeros."""
            if wide_loads and size == tile:
                last = tile // _FOUR - 1
                for n in range(cuda.threadIdx.x, last + 1, 4 * cuda.blockDim.x):
                    # Four loads are under way before the first is used; some may read the same.
                    i0 = _FOUR * n
                    i1 = _FOUR * min(n + cuda.blockDim.x, last)
                    i2 = _FOUR * min(n + 2 * cuda.blockDim.x, last)
                    i3 = _FOUR * min(n + 3 * cuda.blockDim.x, last)
                    a0, a1, a2, a3 = load4(x, low + i0)
                    b0, b1, b2, b3 = load4(x, low + i1)
                    c0, c1, c2, c3 = load4(x, low + i2)
                    d0, d1, d2, d3 = load4(x, low + i3)
                    store4(values, i0, widened(a0), widened(a1), widened(a2), widened(a3))
                    store4(values, i1, widened(b0), widened(b1), widened(b2), widened(b3))
                    store4(values, i2, widened(c0), widened(c1), widened(c2), widened(c3))
                    store4(values, i3, widened(d0), widened(d1), widened(d2), widened(d3))
            else:
                for i in range(cuda.threadIdx.x, tile, cuda.blockDim.x):
                    values[i] = widened(u32(x[low + i])) if i < size else u32(0)

        def squares(at, kind):
            """Add the squares of a column of the block's rows."""
            total = kind(0)
            for row in range(rows):
                v = kind(float_of(values[at + row * UNIT]))
                total = total + v * v if kind is f64 else add(total, mul(v, v))
            return total

        def top(at):
            largest = u32(0)
            for row in range(rows):
                largest = max(largest, u32(values[at + row * UNIT] & ABS))
            return largest

        def halve(sums, kind):
            """Let the first of each segment of sums be its sum, or its maximum."""
            for p in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                at = p // segment * 2 * segment + p % segment
                if max_norm:
                    sums[p] = max(top(at), top(at + segment))
                else:
                    sums[p] = squares(at, kind) + squares(at + segment, kind)
            cuda.syncthreads()
            for level in range(levels):
                shift = levels - 1 - level
                width = 1 << shift
                for p in range(cuda.threadIdx.x, pairs // segment << shift, cuda.blockDim.x):
                    at = (p >> shift) * segment + (p & (width - 1))
                    if max_norm:
                        sums[at] = max(sums[at], sums[at + width])
                    else:
                        sums[at] += sums[at + width]
                cuda.syncthreads()

        def is_safe(total):
            return total >= f32(SUM_MIN) and total <= f32(SUM_MAX)

        def keep(k, scale):
            inverses[k] = div(f32(1), scale) if scale > f32(0) else f32(0)

        def take_norms(first, count):
            """Write the scales of the tile's blocks, and keep their inverses."""
            if max_norm:
                halve(tops, u32)
            else:
                halve(sums, f32)
                unsafe = False
                for k in range(cuda.threadIdx.x, count, cuda.blockDim.x):
                    unsafe = unsafe or not is_safe(sums[k * segment])
                if cuda.syncthreads_or(np.int32(unsafe)):
                    halve(wide_sums, f64)
            for k in range(cuda.threadIdx.x, count, cuda.blockDim.x):
                if max_norm:
                    scale = float_of(tops[k * segment])
                else:
                    scale = sqrt(sums[k * segment])
                    if not is_safe(sums[k * segment]):
                        scale = f32(math.sqrt(wide_sums[k * segment]))
                if scale < f32(SCALE_MIN):
                    scale = f32(0)
                if not scale < f32(SCALE_LIMIT):
                    scale = f32(np.nan)
                    cuda.atomic.min(first_bad, 0, first + k)
                scales[first + k] = scale
                keep(k, scale)

        def code(i, v, inverse):
            """Return the code of coordinate i, whose bits are v; layout.py has the packing."""
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
                keep = mul(add(min(t, f32(1)), f32(1)), f32(half))
                flip = u32(1) if random_bits >= u32(np.int32(keep)) else u32(0)
                w = u32(bits_of(max(t, f32(1))) + random_bits)
                level = u32(u32(w - one_bits) >> u32(DRAW_BITS))
            elif zero_level:
                level = u32(u32(u32(np.int32(mul(r, factor))) + random_bits) >> u32(DRAW_BITS))
            else:
                steps = u32(u32(np.int32(mul(r, factor))) + half)
                n = u32(u32(steps + random_bits) >> u32(DRAW_BITS))
                flip = u32(1) if n == u32(0) else u32(0)
                level = u32(u32(n + flip) - u32(1))
            sign = u32(u32(v >> u32(31)) ^ flip)
            return word_type(u32(level | u32(sign << u32(bits - 1))))

        def pack_four(at, k, low, phase, base):
            """Write the bytes of columns k .. k + 3 of the unit that begins at `at` in the tile."""
            w0, w1, w2, w3 = word_type(0), word_type(0), word_type(0), word_type(0)
            for j in range(lanes):
                i = at + j * columns + k
                shift = word_type(j * bits)
                a, b, c, d = load4(values, i)
                s0 = inverses[(phase + i) // block_size]
                s1, s2, s3 = s0, s0, s0
                if not one_scale:
                    s1 = inverses[(phase + i + 1) // block_size]
                    s2 = inverses[(phase + i + 2) // block_size]
                    s3 = inverses[(phase + i + 3) // block_size]
                n = u32(low + i)
                w0 |= code(n, a, s0) << shift
                w1 |= code(u32(n + u32(1)), b, s1) << shift
                w2 |= code(u32(n + u32(2)), c, s2) << shift
                w3 |= code(u32(n + u32(3)), d, s3) << shift
            for p in range(planes):
                at_byte = word_type(8 * p)
                b0 = u32((w0 >> at_byte) & word_type(255))
                b1 = u32((w1 >> at_byte) & word_type(255))
                b2 = u32((w2 >> at_byte) & word_type(255))
                b3 = u32((w3 >> at_byte) & word_type(255))
                word = u32(
                    u32(b0 | u32(b1 << u32(8))) | u32(u32(b2 << u32(16)) | u32(b3 << u32(24)))
                )
                store_word(out, base + p * columns + k, word)

        def pack_some(at, step, count, low, phase):
            """Return the codes of coordinates at, at + step, ... of the tile, `count` of them."""
            word = u64(0)
            for j in range(count):
                i = at + j * step
                inverse = inverses[(phase + i) // block_size]
                word |= u64(code(u32(low + i), values[i], inverse)) << u64(j * bits)
            return word

        def pack_unit(at, size, low, phase, base):
            """Write the bytes of any unit; the last column is the codes that fill no whole one."""
            full = size // lanes
            for k in range(cuda.threadIdx.x, full + 1, cuda.blockDim.x):
                if k < full:
                    word = pack_some(at + k, full, lanes, low, phase)
                    to, step, nbytes = base + k, full, planes
                else:
                    rest = size - lanes * full
                    word = pack_some(at + lanes * full, 1, rest, low, phase)
                    to, step, nbytes = base + planes * full, 1, (rest * bits + 7) // 8
                for p in range(nbytes):
                    out[to + p * step] = u8((word >> u64(8 * p)) & u64(255))

        tiles = (x.size + tile - 1) // tile
        for t in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            low = t * tile
            size = min(tile, x.size - low)
            read(low, size, wide_loads)
            first = low // block_size
            phase = low - first * block_size
            count = (low + size - 1) // block_size - first + 1
            cuda.syncthreads()
            if fused:
                take_norms(first, count)
            else:
                for k in range(cuda.threadIdx.x, count, cuda.blockDim.x):
                    keep(k, scales[first + k])
            cuda.syncthreads()
            whole = size // UNIT if wide_stores else 0
            for item in range(cuda.threadIdx.x, whole * per_unit, cuda.blockDim.x):
                at = item // per_unit * UNIT
                pack_four(at, item % per_unit * _FOUR, low, phase, (low + at) * bits // 8)
            for at in range(whole * UNIT, size, UNIT):
                pack_unit(at, min(UNIT, size - at), low, phase, (low + at) * bits // 8)
            cuda.syncthreads()

    return kernel
