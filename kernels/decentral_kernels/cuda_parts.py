"""What the CUDA kernels are made of: bit casts, exact arithmetic, wide loads and stores.

Values lie in memory as their bit patterns: uint32 for float32, uint16 for bfloat16 and float16. In
numba's simulator (NUMBA_ENABLE_CUDASIM=1) each of these is a function of NumPy's instead.
"""

from __future__ import annotations

import operator
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, cuda

from .layout import STAMP

u8, u16, u32, u64, f32, f64 = np.uint8, np.uint16, np.uint32, np.uint64, np.float32, np.float64
ABS = u32(0x7FFFFFFF)
# Of what the CUDA kernels are made, beside layout.STAMP, which says more.
_SOURCES = ("cuda_parts.py", "cuda_codes.py", "cuda_norms.py")
CUDA_STAMP = zlib.crc32(b"".join(Path(__file__).with_name(f).read_bytes() for f in _SOURCES), STAMP)

SIMULATED = bool(config.ENABLE_CUDASIM)
SOURCES = ("float32", "bfloat16", "float16")
ALIGNMENT = None if SIMULATED else 16  # of shared memory that four values are read from at once

if SIMULATED:
    mul, add, div, sqrt = operator.mul, operator.add, operator.truediv, np.sqrt

    def bits_of(x: Any) -> Any:
        """float32 -> the uint32 of the same bits."""
        return x.view(np.uint32)

    def float_of(i: Any) -> Any:
        """uint32 -> the float32 of the same bits."""
        return i.view(np.float32)

    def widened_half(i: Any) -> Any:
        """The uint16 of a float16 -> the uint32 of the same value as float32."""
        return f32(u16(i).view(np.float16)).view(np.uint32)

    def load4(array: Any, i: Any) -> Any:
        """array[i : i + 4], uint16 or uint32, as four uint32."""
        return tuple(u32(array[i + k]) for k in range(4))

    def store4(array: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> None:
        """array[i : i + 4], uint32, = a, b, c, d."""
        array[i], array[i + 1], array[i + 2], array[i + 3] = a, b, c, d

    def load_word(array: Any, i: Any) -> Any:
        """The uint8 array[i : i + 4] as one little-endian uint32."""
        return u32(sum(int(array[i + k]) << (8 * k) for k in range(4)))

    def store_word(array: Any, i: Any, word: Any) -> None:
        """array[i : i + 4], uint8, = one little-endian uint32."""
        for k in range(4):
            array[i + k] = u8((int(word) >> (8 * k)) & 255)

else:
    from numba import types
    from numba.cuda import libdevice
    from numba.cuda.extending import intrinsic

    # A product that a sum follows must be rounded on its own, and so must quotients and roots.
    mul, add = libdevice.fmul_rn, libdevice.fadd_rn
    div, sqrt = libdevice.fdiv_rn, libdevice.fsqrt_rn
    _I16, _I32, _I64, _LANES = ir.IntType(16), ir.IntType(32), ir.IntType(64), 4

    def _at(context: Any, b: Any, sig: Any, args: Any, into: Any) -> Any:
        """Return a pointer to args[0][args[1]], of another type."""
        data = context.make_array(sig.args[0])(context, b, args[0]).data
        return b.bitcast(b.gep(data, [args[1]]), into.as_pointer())

    @intrinsic
    def bits_of(typingctx: Any, x: Any) -> Any:
        """float32 -> the uint32 of the same bits."""
        return types.uint32(types.float32), lambda c, b, sig, args: b.bitcast(args[0], _I32)

    @intrinsic
    def float_of(typingctx: Any, x: Any) -> Any:
        """uint32 -> the float32 of the same bits."""
        sig = types.float32(types.uint32)
        return sig, lambda c, b, sig, args: b.bitcast(args[0], ir.FloatType())

    @intrinsic
    def widened_half(typingctx: Any, x: Any) -> Any:
        """The uint16 of a float16 -> the uint32 of the same value as float32."""

        def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
            half = b.bitcast(b.trunc(args[0], _I16), ir.HalfType())
            return b.bitcast(b.fpext(half, ir.FloatType()), _I32)

        return types.uint32(types.uint32), generate

    @intrinsic
    def load4(typingctx: Any, array: Any, i: Any) -> Any:
        """array[i : i + 4], uint16 or uint32, as four uint32, in one load."""
        nbytes = array.dtype.bitwidth // 8
        four = types.UniTuple(types.uint32, _LANES)

        def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
            if nbytes == 2:  # as a vector, half-precision numbers would come in two loads
                word = b.load(_at(context, b, sig, args, _I64), align=8)
                parts = [b.trunc(b.lshr(word, _I64(16 * k)), _I16) for k in range(_LANES)]
                return context.make_tuple(b, four, [b.zext(v, _I32) for v in parts])
            vector = b.load(_at(context, b, sig, args, ir.VectorType(_I32, _LANES)), align=16)
            values = [b.extract_element(vector, _I32(k)) for k in range(_LANES)]
            return context.make_tuple(b, four, values)

        return four(array, types.int64), generate

    @intrinsic
    def store4(typingctx: Any, array: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """array[i : i + 4], uint32, = a, b, c, d, in one store."""

        def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
            kind = ir.VectorType(_I32, _LANES)
            vector: Any = ir.Constant(kind, ir.Undefined)
            for k in range(_LANES):
                vector = b.insert_element(vector, args[2 + k], _I32(k))
            b.store(vector, _at(context, b, sig, args, kind), align=4 * _LANES)
            return context.get_dummy_value()

        return types.void(array, types.int64, *[types.uint32] * _LANES), generate

    @intrinsic
    def load_word(typingctx: Any, array: Any, i: Any) -> Any:
        """The uint8 array[i : i + 4] as one little-endian uint32, in one load."""
        sig = types.uint32(array, types.int64)
        return sig, lambda c, b, sig, args: b.load(_at(c, b, sig, args, _I32), align=4)

    @intrinsic
    def store_word(typingctx: Any, array: Any, i: Any, word: Any) -> Any:
        """array[i : i + 4], uint8, = one little-endian uint32, in one store."""

        def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
            b.store(args[2], _at(context, b, sig, args, _I32), align=4)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.uint32), generate


def device(function: Any) -> Any:
    """Return a function that kernels, and each other, may call, and that is inlined there."""
    if SIMULATED:
        return function
    return cuda.jit(device=True, forceinline=True)(function)  # type: ignore[call-arg]


@device
def widened(v, source):
    """The bits of a value of SOURCES[source] -> the uint32 of the same value as float32."""
    if source == 0:
        return v
    return u32(v << u32(16)) if source == 1 else widened_half(v)
