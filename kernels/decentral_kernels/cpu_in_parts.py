"""A message made on the CPU part by part: by a formula, quantized, and added, while a part is near.

One compiled loop does it all, so parts may be as small as suits a core's own caches, and no other
thread's Python waits for the GIL meanwhile. The kernels come as arguments: one loop per formula,
whatever the quantizer.
"""

from __future__ import annotations

from typing import Any

from numba import float32, njit, types, uint32

from .cpu import DECODE, ENCODE
from .elementwise import NOT_FINITE, Elementwise
from .layout import INF, STAMP, UNIT

_floats, _bytes, _int = types.float32[::1], types.uint8[::1], types.int64
_AROUND = (
    *(_floats, _floats, _floats),
    *(uint32, uint32, _int, _int, _floats, _bytes),
    *(_floats, float32, types.FunctionType(ENCODE), types.FunctionType(DECODE)),
    *(_int, _int, _int),
)
_TEMPLATE = """
def {name}(
    {arguments}, z, source, target, k0, k1, block_size, width, scales, codes,
    out, weight, encode, decode, size, first, last
):
    for a in range(first, last, size):
        b = min(a + size, last)
        low, high = a * UNIT, min(b * UNIT, z.size)
        if loop({parts}) >= INF:
            return NOT_FINITE
        bad = encode(z, k0, k1, block_size, width, scales, codes, a, b)
        if bad >= 0:
            return bad
        decode(scales, codes, block_size, weight, out, a, b)
        target[low:high] = source[low:high]
    return -1
"""


def compile_in_parts(formula: Elementwise) -> Any:
    """Return the loop over parts, of `size` units each, of the units first..last.

    It applies the formula to each part, encodes z, which that writes, adds weight * (the decoded
    values) to `out`, and copies `source` to `target`, which may both be empty. Returns the first
    block that cannot be encoded, or NOT_FINITE, of which nothing is added; else -1.
    """
    vectors = [f"v{i}" for i in range(formula.num_vectors)]
    numbers = [f"n{i}" for i in range(formula.num_numbers)]
    parts = ", ".join([*(f"{v}[low:high]" for v in vectors), *numbers])
    name = f"{formula.function.__name__}_in_parts_{STAMP:08x}"
    arguments = ", ".join([*vectors, *numbers])
    text = _TEMPLATE.format(name=name, arguments=arguments, parts=parts)
    scope = {"loop": formula.loop, "UNIT": UNIT, "INF": INF, "NOT_FINITE": NOT_FINITE}
    scope |= {"min": min, "range": range, "__name__": formula.function.__module__}
    # Numba's disk cache is the formula's file's, and so made anew when that changes; of what else
    # it is made of, the name tells.
    exec(compile(text, formula.function.__code__.co_filename, "exec"), scope)
    given = [*[_floats] * len(vectors), *[float32] * len(numbers)]
    return njit(_int(*given, *_AROUND), nogil=True, cache=True)(scope[name])
