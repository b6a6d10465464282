"""The kernels for a GPU: numba-CUDA, on the caller's stream, bytes equal to the other two.

One kernel takes the block norms, one quantizes and packs, one unpacks and writes or adds. They need
the package numba-cuda, and run in its simulator (NUMBA_ENABLE_CUDASIM=1) too. Helpers stand inside
the kernels, since a separate device function could not be compiled without a GPU; products that a
sum follows are rounded on their own (`_mul`, `_add`), since a fused multiply-add gives other bits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import config, cuda

from .layout import (
    NORM_WIDTH,
    SCALE_LIMIT,
    SCALE_MIN,
    STAMP,
    SUM_MAX,
    SUM_MIN,
    UNIT,
    Quantizer,
    lanes_and_planes,
    norm_width,
    papers_s,
)
from .rng import DRAW_BITS, GOLDEN, ROUND_1, ROUND_2

u8, u32, u64, f32, f64 = np.uint8, np.uint32, np.uint64, np.float32, np.float64
_ONE_BITS = u32(127 << DRAW_BITS)
_ABS = u32(0x7FFFFFFF)

SIMULATED = bool(config.ENABLE_CUDASIM)
_THREADS = 32 if SIMULATED else 256
_MAX_GRID = 1 << 16
_NONE_BAD = 2**31 - 1

if SIMULATED:

    def _bits_of(x: Any) -> Any:
        return x.view(np.int32)

    def _float_of(i: Any) -> Any:
        return i.view(np.float32)

    _mul, _add, _div, _sqrt = operator.mul, operator.add, operator.truediv, np.sqrt
else:
    from numba.cuda import libdevice

    _bits_of, _float_of = libdevice.float_as_int, libdevice.int_as_float
    _mul, _add = libdevice.fmul_rn, libdevice.fadd_rn
    _div, _sqrt = libdevice.fdiv_rn, libdevice.fsqrt_rn


def norm_kernel(max_norm: bool) -> Callable[..., None]:
    """Return the kernel body that writes the scale of every block, one thread block each."""
    stamp = STAMP

    def kernel(x, block_size, width, scales, first_bad):
        def square_sums(x, start, end, sums, kind):
            for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
                total = kind(0)
                for i in range(start + j, end, width):
                    v = kind(x[i])
                    total = total + v * v if kind is f64 else _add(total, _mul(v, v))
                sums[j] = total
            cuda.syncthreads()
            half = width >> 1
            while half > 0:
                for j in range(cuda.threadIdx.x, half, cuda.blockDim.x):
                    sums[j] += sums[half + j]
                cuda.syncthreads()
                half >>= 1

        if stamp < 0:  # never; see STAMP
            return
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
                    top = max(top, u32(u32(_bits_of(x[i])) & _ABS))
                cuda.atomic.max(tops, 0, top)
                cuda.syncthreads()
                scale = _float_of(np.int32(tops[0]))
            else:
                square_sums(x, start, end, sums, f32)
                scale = _sqrt(sums[0])
                if not (sums[0] >= f32(SUM_MIN) and sums[0] <= f32(SUM_MAX)):
                    square_sums(x, start, end, wide_sums, f64)
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


def encode_kernel(bits: int, exponential: bool, zero_level: bool = True) -> Callable[..., None]:
    """Return the kernel body that quantizes and packs, a thread per column of a unit."""
    lanes, planes = lanes_and_planes(bits)
    stamp = STAMP
    s = papers_s(bits, exponential, zero_level)
    fraction_bits = DRAW_BITS if zero_level else DRAW_BITS - 1  # levels are 1/s or 2/s apart
    factor = f32(2.0**s) if exponential else f32(s << fraction_bits)
    half = u32(1 << (DRAW_BITS - 1))

    def kernel(x, k0, k1, block_size, scales, out):
        def code(i):
            scale = scales[i // block_size]
            inverse = _div(f32(1), scale) if scale > f32(0) else f32(0)
            h = u32(u32(u32(i) * u32(GOLDEN)) ^ k0)
            h = u32(u32(u32(h ^ u32(h >> u32(16))) * u32(ROUND_1)) + k1)
            h = u32(u32(h ^ u32(h >> u32(15))) * u32(ROUND_2))
            random_bits = u32(h >> u32(32 - DRAW_BITS))
            v = u32(_bits_of(x[i]))
            r = min(_mul(_float_of(np.int32(u32(v & _ABS))), inverse), f32(1))
            t = _mul(r, factor)
            flip = u32(0)
            if exponential and zero_level:
                w = u32(_bits_of(_add(t, f32(1) if t < f32(1) else t)))
                level = u32(u32(u32(w + random_bits) - _ONE_BITS) >> u32(DRAW_BITS))
            elif exponential:
                keep = _mul(_add(min(t, f32(1)), f32(1)), f32(half))
                flip = u32(1) if random_bits >= u32(np.int32(keep)) else u32(0)
                w = u32(_bits_of(max(t, f32(1))))
                level = u32(u32(u32(w + random_bits) - _ONE_BITS) >> u32(DRAW_BITS))
            elif zero_level:
                level = u32(u32(u32(np.int32(t)) + random_bits) >> u32(DRAW_BITS))
            else:
                steps = u32(u32(np.int32(t)) + half)
                n = u32(u32(steps + random_bits) >> u32(DRAW_BITS))
                flip = u32(1) if n == u32(0) else u32(0)
                level = u32(u32(n + flip) - u32(1))
            sign = u32(u32(v >> u32(31)) ^ flip)
            return u64(u32(level | u32(sign << u32(bits - 1))))

        if stamp < 0:  # never; see STAMP
            return
        units = (x.size + UNIT - 1) // UNIT
        for unit in range(cuda.blockIdx.x, units, cuda.gridDim.x):
            low = unit * UNIT
            size = min(UNIT, x.size - low)
            columns = size // lanes
            base = low * bits // 8
            for k in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
                word = u64(0)
                for j in range(lanes):
                    word |= code(low + j * columns + k) << u64(j * bits)
                for p in range(planes):
                    out[base + p * columns + k] = u8((word >> u64(8 * p)) & u64(255))
            if cuda.threadIdx.x == 0:  # the codes that fill no whole column, fewer than 8
                word = u64(0)
                rest = size - lanes * columns
                for j in range(rest):
                    word |= code(low + lanes * columns + j) << u64(j * bits)
                for p in range((rest * bits + 7) // 8):
                    out[base + planes * columns + p] = u8((word >> u64(8 * p)) & u64(255))

    return kernel


def decode_kernel(
    bits: int, exponential: bool, add: bool, zero_level: bool = True
) -> Callable[..., None]:
    """Return the kernel body that writes, or adds, weight * (the decoded values)."""
    lanes, planes = lanes_and_planes(bits)
    stamp = STAMP
    s = papers_s(bits, exponential, zero_level)
    bias = u32((126 if zero_level else 127) - s if exponential else 0)
    code_mask, level_mask = u64((1 << bits) - 1), u32((1 << (bits - 1)) - 1)

    def kernel(scales, packed, block_size, weight, out):
        def put(i, c):
            scale = scales[i // block_size]
            step = _mul(scale if exponential else _div(scale, f32(s)), weight)
            level = u32(u32(c) & level_mask)
            if exponential:
                h = u32(u32(level + bias) << u32(DRAW_BITS))
                if zero_level:
                    h = h if level > u32(0) else u32(0)
            elif zero_level:
                h = u32(_bits_of(f32(level)))
            else:
                h = u32(_bits_of(f32(u32(u32(level + level) + u32(1)))))
            signed = u32(h | u32(u32(u32(c) >> u32(bits - 1)) << u32(31)))
            value = _mul(step, _float_of(np.int32(signed)))
            out[i] = _add(out[i], value) if add else value

        if stamp < 0:  # never; see STAMP
            return
        units = (out.size + UNIT - 1) // UNIT
        for unit in range(cuda.blockIdx.x, units, cuda.gridDim.x):
            low = unit * UNIT
            size = min(UNIT, out.size - low)
            columns = size // lanes
            base = low * bits // 8
            for k in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
                word = u64(0)
                for p in range(planes):
                    word |= u64(packed[base + p * columns + k]) << u64(8 * p)
                for j in range(lanes):
                    put(low + j * columns + k, (word >> u64(j * bits)) & code_mask)
            if cuda.threadIdx.x == 0:
                word = u64(0)
                rest = size - lanes * columns
                for p in range((rest * bits + 7) // 8):
                    word |= u64(packed[base + planes * columns + p]) << u64(8 * p)
                for j in range(rest):
                    put(low + lanes * columns + j, (word >> u64(j * bits)) & code_mask)

    return kernel


@lru_cache(maxsize=None)
def _compiled(make: Callable[..., Callable[..., None]], *constants: int | bool) -> Any:
    return cuda.jit(cache=not SIMULATED)(make(*constants))


def _grid(work: int) -> int:
    return max(1, min(work, _MAX_GRID))


def _stream(handle: int) -> Any:
    return 0 if SIMULATED else cuda.external_stream(handle)


def _device_array(a: Any) -> Any:
    return a if SIMULATED else cuda.as_cuda_array(a, sync=False)


def encode(
    x: Any, key: tuple[int, int], q: Quantizer, scales: Any, codes: Any, stream: int = 0
) -> int:
    """Write scales and packed codes of a device vector; return the first bad block or -1.

    Arrays lie on the current device; `stream` is the handle of the CUDA stream to run on, on which
    this waits, since the answer has to come back.
    """
    if x.shape[0] == 0:
        return -1
    (x, scales, codes), on = map(_device_array, (x, scales, codes)), _stream(stream)
    first_bad = cuda.to_device(np.array([_NONE_BAD], np.int32), stream=on)
    norms = _compiled(norm_kernel, q.norm == "max")
    width = norm_width(q.block_size)
    norms[_grid(scales.size), _THREADS, on](x, q.block_size, width, scales, first_bad)
    quantize = _compiled(encode_kernel, q.bits, q.levels == "exponential", q.zero_level)
    quantize[_grid(-(-x.size // UNIT)), _THREADS, on](
        x, u32(key[0]), u32(key[1]), q.block_size, scales, codes
    )
    bad = int(first_bad.copy_to_host(stream=on)[0])
    return -1 if bad == _NONE_BAD else bad


def _decode(
    scales: Any, codes: Any, q: Quantizer, out: Any, weight: float, add: bool, stream: int
) -> None:
    if out.shape[0] == 0:
        return
    scales, codes, out = map(_device_array, (scales, codes, out))
    kernel = _compiled(decode_kernel, q.bits, q.levels == "exponential", add, q.zero_level)
    kernel[_grid(-(-out.size // UNIT)), _THREADS, _stream(stream)](
        scales, codes, q.block_size, f32(weight), out
    )


def decode(scales: Any, codes: Any, q: Quantizer, out: Any, stream: int = 0) -> None:
    """Write the decoded values to out, on `stream`."""
    _decode(scales, codes, q, out, 1.0, False, stream)


def accumulate(
    scales: Any, codes: Any, q: Quantizer, out: Any, weight: float, stream: int = 0
) -> None:
    """Add weight * (the decoded values) to out, on `stream`."""
    _decode(scales, codes, q, out, weight, True, stream)
