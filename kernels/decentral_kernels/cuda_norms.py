"""The CUDA kernel for norms of blocks that cuda_encode.py cannot take in one go, and its parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import cuda

from .cuda_parts import (
    ABS,
    CUDA_STAMP,
    SOURCES,
    add,
    bits_of,
    device,
    div,
    f32,
    f64,
    float_of,
    mul,
    sqrt,
    u32,
    widened,
)
from .layout import NORM_WIDTH, SCALE_LIMIT, SCALE_MIN, SUM_MAX, SUM_MIN, UNIT


@device
def squares(values, at, rows):
    """Add the squares of a column of the block's rows."""
    total = f32(0)
    for row in range(rows):
        v = float_of(values[u32(at + u32(row * UNIT))])
        total = add(total, mul(v, v))
    return total


@device
def wide_squares(values, at, rows):
    """Do the same in float64."""
    total = f64(0)
    for row in range(rows):
        v = f64(float_of(values[u32(at + u32(row * UNIT))]))
        total = total + v * v
    return total


@device
def top(values, at, rows):
    """Return the largest bits of a column's values, less their signs."""
    largest = u32(0)
    for row in range(rows):
        largest = max(largest, u32(values[u32(at + u32(row * UNIT))] & ABS))
    return largest


@device
def is_safe(total):
    """Return whether a float32 sum of squares lost nothing that counts."""
    return total >= f32(SUM_MIN) and total <= f32(SUM_MAX)


@device
def reciprocal(scale):
    """Return what values are multiplied with."""
    return div(f32(1), scale) if scale > f32(0) else f32(0)


def norm_kernel(max_norm: bool, source: str = "float32") -> Callable[..., None]:
    """Return the kernel body that writes the scale of every block, one thread block each."""
    stamp = CUDA_STAMP
    kind_of_x = SOURCES.index(source)

    def kernel(x, block_size, width, scales, first_bad):
        if stamp < 0:  # never; see layout.STAMP
            return

        def value(i):
            return float_of(widened(u32(x[i]), kind_of_x))

        def square_sums(start, end, sums, kind):
            for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
                total = kind(0)
                for i in range(start + j, end, width):
                    v = kind(value(i))
                    total = total + v * v if kind is f64 else add(total, mul(v, v))
                sums[j] = total
            cuda.syncthreads()
            half = width >> 1
            while half > 0:
                for j in range(cuda.threadIdx.x, half, cuda.blockDim.x):
                    sums[j] += sums[half + j]
                cuda.syncthreads()
                half >>= 1

        sums = cuda.shared.array(NORM_WIDTH, dtype=np.float32)
        wide_sums = cuda.shared.array(NORM_WIDTH, dtype=np.float64)
        tops = cuda.shared.array(1, dtype=np.uint32)
        for b in range(cuda.blockIdx.x, scales.size, cuda.gridDim.x):
            start = b * block_size
            end = min(start + block_size, x.size)
            if max_norm:
                if cuda.threadIdx.x == 0:
                    tops[0] = u32(0)
                cuda.syncthreads()
                top = u32(0)
                for i in range(start + cuda.threadIdx.x, end, cuda.blockDim.x):
                    top = max(top, u32(bits_of(value(i)) & ABS))
                cuda.atomic.max(tops, 0, top)
                cuda.syncthreads()
                scale = float_of(tops[0])
            else:
                square_sums(start, end, sums, f32)
                scale = sqrt(sums[0])
                if not is_safe(sums[0]):
                    square_sums(start, end, wide_sums, f64)
                    scale = f32(math.sqrt(wide_sums[0]))
            if cuda.threadIdx.x == 0:
                if scale < f32(SCALE_MIN):
                    scale = f32(0)
                if not scale < f32(SCALE_LIMIT):
                    scale = f32(np.nan)
                    cuda.atomic.min(first_bad, 0, b)
                scales[b] = scale
            cuda.syncthreads()

    return kernel
