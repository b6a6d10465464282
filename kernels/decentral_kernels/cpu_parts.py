"""What the CPU kernels are made of: bit casts, draws, norms, codes that fill no whole column.

Numba widens integers to 64 bits without a word, which halves the vector width: hence the casts
around every operation.
"""

from __future__ import annotations

from collections.abc import Callable
from platform import machine
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, float32, njit, types, uint32
from numba.extending import intrinsic, overload

from .elementwise import fma
from .layout import SUM_MAX, SUM_MIN
from .rng import DRAW_BITS, GOLDEN, ROUND_1, ROUND_2

u8, u32, f32 = np.uint8, np.uint32, np.float32
ABS = u32(0x7FFFFFFF)
_LINE = 16  # floats in a cache line


def called(*name: object) -> Callable[[Any], Any]:
    """Return a decorator, for under njit, that names a closure after what it is closed over.

    Numba looks compiled functions up by name when one is handed to another; two that were cached by
    different processes may have a name in common otherwise, and then the wrong one is called.
    """

    def rename(function: Any) -> Any:
        function.__qualname__ = "_".join(map(str, name))
        return function

    return rename


@intrinsic
def bits_of(typingctx: Any, x: Any) -> Any:
    """float32 -> the uint32 of the same bits."""
    return uint32(float32), lambda context, b, sig, args: b.bitcast(args[0], ir.IntType(32))


@intrinsic
def float_of(typingctx: Any, x: Any) -> Any:
    """uint32 -> the float32 of the same bits."""
    return float32(uint32), lambda context, b, sig, args: b.bitcast(args[0], ir.FloatType())


def has(feature: str) -> bool:
    """Return whether numba compiles for a processor that has a feature, by LLVM's name."""
    if config.CPU_FEATURES is not None:  # set in the environment, NUMBA_CPU_FEATURES
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    try:
        return bool(get_host_cpu_features().get(feature, False))
    except RuntimeError:  # llvmlite does not know of this system
        return False


def has_wide_vectors() -> bool:
    """Return whether this is an x86 processor whose clock vectors of 512 bits hardly slow down.

    Those that have VBMI2: Intel's since Ice Lake, for all of which LLVM prefers 256 bits, and AMD's
    since Zen 4, for which it does not.
    """
    return has("avx512vbmi2")


@intrinsic
def _fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return float32(float32, float32, float32), lambda context, b, sig, args: b.fma(*args)


@overload(fma, inline="always")
def _fma(a, b, c):
    if has("fma") or machine() in ("aarch64", "arm64"):
        return lambda a, b, c: _fused(a, b, c)
    return lambda a, b, c: a * b + c  # without an instruction it is a call for each coordinate


@intrinsic
def wide(typingctx: Any) -> Any:
    """Let the loops of the function that calls this use vectors of 512 bits where that pays."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        if has_wide_vectors():  # llvmlite's own add() knows attributes without a value only
            set.add(b.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _prefetch_line(typingctx: Any, x: Any, i: Any) -> Any:
    """Ask for the cache line of x[i], which need not exist: a hint never faults."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, b, args[0]).data
        line = b.bitcast(b.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        hint = b.module.declare_intrinsic("llvm.prefetch", [line.type], signature)
        read, to_l2, data_cache = number(0), number(2), number(1)
        b.call(hint, [line, read, to_l2, data_cache])
        return context.get_dummy_value()

    return types.void(x, types.int64), generate


@njit
def prefetch(x, start, count):
    """Bring x[start : start + count] near, while the caller computes on something else."""
    for i in range(start, start + count, _LINE):
        _prefetch_line(x, i)


@njit(inline="always")
def counter(index):
    """Return what draw() hashes for an index; of the next index it is GOLDEN more."""
    return u32(u32(index) * u32(GOLDEN))


@njit(inline="always")
def draw(h, k0, k1):
    """Return rng.draw's number for a counter()."""
    h = u32(h ^ k0)
    h = u32(u32(u32(h ^ u32(h >> u32(16))) * u32(ROUND_1)) + k1)
    h = u32(u32(h ^ u32(h >> u32(15))) * u32(ROUND_2))
    return u32(h >> u32(32 - DRAW_BITS))


@njit
def _halve(sums, width):
    """Return the sum of sums[:width]: halves are added until one is left, three times a sweep."""
    while width >= 8:
        width //= 8
        for j in range(width):
            a = (sums[j] + sums[j + 4 * width]) + (sums[j + 2 * width] + sums[j + 6 * width])
            b = sums[j + width] + sums[j + 5 * width]
            sums[j] = a + (b + (sums[j + 3 * width] + sums[j + 7 * width]))
    while width > 1:
        width //= 2
        for j in range(width):
            sums[j] += sums[width + j]
    return sums[0]


@njit
def sum_of_squares(x, sums, width, near=True):
    """Add squares in the order of reference._sum_of_squares, in the dtype of `sums`.

    Where x is not `near`, in a cache, it is read straight on, which the hardware foresees.
    """
    wide()
    kind = sums.dtype.type
    running = sums[:width]
    running[:] = kind(0)
    whole = x.size // (4 * width) * (4 * width) if near else 0
    for start in range(0, whole, 4 * width):  # four rows a sweep: fewer loads and stores of sums
        row_0, row_1 = x[start:][:width], x[start + width :][:width]
        row_2, row_3 = x[start + 2 * width :][:width], x[start + 3 * width :][:width]
        for j in range(running.size):
            a, b, c, d = kind(row_0[j]), kind(row_1[j]), kind(row_2[j]), kind(row_3[j])
            running[j] = running[j] + a * a + b * b + c * c + d * d
    for start in range(whole, x.size, width):
        row = x[start : min(start + width, x.size)]
        for j in range(row.size):
            v = kind(row[j])
            running[j] += v * v
    return _halve(sums, width)


@njit
def l2_norm(x, sums, width):
    """Return the L2 norm, in float64 where the squares do not fit into float32."""
    total = sum_of_squares(x, sums, width)
    if total >= f32(SUM_MIN) and total <= f32(SUM_MAX):
        return f32(np.sqrt(total))
    return f32(np.sqrt(sum_of_squares(x, np.empty(width, np.float64), width)))


@njit
def max_norm(x):
    """Return the largest magnitude; NaN counts as more than inf."""
    wide()
    # As integers the bit patterns of non-negative floats are ordered, and NaN is above inf.
    top = u32(0)
    for j in range(x.size):
        v = u32(bits_of(x[j]) & ABS)
        top = max(top, v)
    return float_of(top)


@njit
def pack_rest(codes, bits, out):
    """Write the codes that fill no whole column as one little-endian bit stream."""
    out[:] = u8(0)
    for j in range(codes.size):
        at = j * bits
        word = u32(u32(codes[j]) << u32(at & 7))
        out[at >> 3] |= u8(word)
        if (at & 7) + bits > 8:
            out[(at >> 3) + 1] |= u8(word >> u32(8))


@njit
def unpack_rest(packed, bits, codes):
    """Read the codes that pack_rest() has written."""
    for j in range(codes.size):
        at = j * bits
        word = u32(packed[at >> 3])
        if (at & 7) + bits > 8:
            word = u32(word | u32(u32(packed[(at >> 3) + 1]) << u32(8)))
        codes[j] = u8(u32(word >> u32(at & 7)) & u32((1 << bits) - 1))
