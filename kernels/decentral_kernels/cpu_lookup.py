"""Codes decoded by looking up their values in one register, as many at once as it holds.

What LLVM makes of a loop that computes values from codes takes some ten instructions for a vector;
to permute a register by another takes one. LLVM never does so for a loop that indexes a table:
hence the body of such a loop in its own language.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu_parts import has, has_wide_vectors
from .layout import UNIT, lanes_and_planes

_declared: Any = cgutils.get_or_insert_function
_PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}  # of so many floats


def lookup_width(bits: int) -> int:
    """Return for how many codes of so many bits look_up() looks at once; 0 where it cannot.

    That is the length of its table, of codes without their sign where not all of them fit.
    """
    width = 16 if has_wide_vectors() else 8 if has("avx2") else 0
    fits_word = lanes_and_planes(bits)[1] <= 4
    return width if fits_word and 1 << (bits - 1) <= width else 0


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def look_up(typingctx: Any, bits: Any, add: Any, table: Any, packed: Any, k: Any, out: Any) -> Any:
    """Write, or add, to out, float32[UNIT], the values of the codes in lookup_width() columns.

    These are the ones from k on of a unit's bytes, `packed`; the table has the values of all codes
    in turn, from 0 on, and again where there is room. `bits` and `add` are constants.
    """
    number, adds = bits.literal_value, add.literal_value
    (lanes, planes), width = lanes_and_planes(number), lookup_width(number)
    floats, words = (ir.VectorType(kind, width) for kind in (ir.FloatType(), ir.IntType(32)))

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        def at(argument: int, index: Any, kind: Any, length: int) -> Any:
            array = context.make_array(sig.args[argument])(context, b, args[argument])
            vector = ir.VectorType(kind, length).as_pointer()
            return b.bitcast(b.gep(array.data, [index]), vector)

        def column(offset: int) -> Any:
            return b.add(args[4], args[4].type(offset))

        def everywhere(value: int) -> Any:
            return ir.Constant(words, [value] * width)

        permutation = ir.FunctionType(floats, [floats, words])
        permute = _declared(b.module, permutation, _PERMUTE[width])
        values = b.load(at(2, args[4].type(0), ir.FloatType(), width), align=4)
        word = everywhere(0)
        for p in range(planes):
            place = at(3, column(p * UNIT // lanes), ir.IntType(8), width)
            plane = b.zext(b.load(place, align=1), words)
            word = b.or_(word, b.shl(plane, everywhere(8 * p)))
        for j in range(lanes):
            codes = b.lshr(word, everywhere(number * j))
            # It looks at as many bits as it needs; hence the repetition.
            decoded = b.call(permute, [values, codes])
            if 1 << number > width:
                sign = b.and_(b.shl(codes, everywhere(32 - number)), everywhere(1 << 31))
                decoded = b.bitcast(b.xor(b.bitcast(decoded, words), sign), floats)
            target = at(5, column(j * UNIT // lanes), ir.FloatType(), width)
            if adds:
                decoded = b.fadd(b.load(target, align=4), decoded)
            b.store(decoded, target, align=4)
        return context.get_dummy_value()

    return types.void(bits, add, table, packed, types.int64, out), generate
