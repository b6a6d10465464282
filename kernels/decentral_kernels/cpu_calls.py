"""Compiled functions that are given to each other by address, and arrays likewise.

Numba's own way to hand over a function, a first-class function type, asks LLVM for its address in
every call and unpickles its signature: 80 us of Python, in which no other thread has the GIL.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic


@lru_cache(maxsize=None)
def address_of(kernel: Any) -> int:
    """Return where the code of a function compiled for one signature is, as long as it lives."""
    (compiled,) = kernel.overloads.values()
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def caller(signature: Any) -> Any:
    """Return, for under njit, call(address, arguments) of a compiled function of a signature.

    The arguments are a tuple, and converted where their types are not the signature's.
    """

    @intrinsic
    def call(typingctx: Any, address: Any, arguments: Any) -> Any:
        def generate(context: Any, b: Any, sig: Any, values: Any) -> Any:
            returned, wanted, convention = signature.return_type, signature.args, context.call_conv
            given = zip(cgutils.unpack_tuple(b, values[1]), sig.args[1], wanted, strict=True)
            converted = [context.cast(b, value, have, want) for value, have, want in given]
            kind = convention.get_function_type(returned, wanted)
            function = b.inttoptr(values[0], kind.as_pointer())
            status, result = convention.call_function(b, function, returned, wanted, converted)
            with cgutils.if_unlikely(b, status.is_error):
                convention.return_status_propagate(b, status)
            return context.get_dummy_value() if returned == types.void else result

        return signature.return_type(types.intp, arguments), generate

    return call


def place_of(array: Any) -> tuple[int, int]:
    """Return where a contiguous array is, and how many elements it has; for array_at()."""
    return array.__array_interface__["data"][0], array.size


def array_at(dtype: Any) -> Any:
    """Return, for under njit, at(place), which makes an array of place_of()'s two numbers.

    Who calls the compiled function holds the array itself.
    """

    @intrinsic
    def pointer(typingctx: Any, address: Any) -> Any:
        kind = types.CPointer(dtype)

        def generate(context: Any, b: Any, sig: Any, values: Any) -> Any:
            return b.inttoptr(values[0], context.get_value_type(kind))

        return kind(types.intp), generate

    @njit(inline="always")
    def at(place):
        return carray(pointer(place[0]), (place[1],))

    return at
