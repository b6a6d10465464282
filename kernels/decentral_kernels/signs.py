"""The door to the kernels of EF-SignSGD and natural compression: NumPy arrays only, so far.

Arrays are one-dimensional and contiguous; the caller has checked sizes and dtypes, nothing here
does. Buffers of a GPU are staged by the caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import first_bad, share_units


def signs_nbytes(numel: int) -> int:
    """Return the bytes of so many packed signs."""
    return (numel + 7) // 8


def natural_encode(x: Any, key: tuple[int, int], exponents: Any, signs: Any) -> int:
    """Write uint8[n] exponents and packed signs of float32[n] x.

    Returns the first unit of 1024 that holds NaN, inf or more than 2^127, or -1.
    """
    from . import cpu_sign

    kernel = cpu_sign.natural_encoder()
    k0, k1 = np.uint32(key[0]), np.uint32(key[1])
    return first_bad(share_units(lambda a, b: kernel(x, k0, k1, exponents, signs, a, b), x.size))


def natural_decode(exponents: Any, signs: Any, out: Any, weight: float, add: bool) -> None:
    """Write, or add, weight * (the powers of two) to float32[n] out."""
    from . import cpu_sign

    kernel, w = cpu_sign.natural_decoder(add), np.float32(weight)
    share_units(lambda a, b: kernel(exponents, signs, w, out, a, b), out.size)


def sign_encode(x: Any, residual: Any, left: Any, block_size: int, scales: Any, signs: Any) -> int:
    """Write both means of each block of p = x + residual, p's signs, and p - c to `left`.

    All three are float32[n]; `left` is not the residual. Returns the first block that holds NaN,
    inf or 2^126 and more, or -1.
    """
    from . import cpu_sign

    kernel = cpu_sign.sign_encoder()

    def run(first: int, last: int) -> int:
        return kernel(x, residual, left, block_size, scales, signs, first, last)

    return first_bad(share_units(run, x.size))


def sign_decode(
    scales: Any, signs: Any, block_size: int, out: Any, weight: float, add: bool
) -> None:
    """Write, or add, weight * (mean of its side, with its sign) to float32[n] out."""
    from . import cpu_sign

    kernel, w = cpu_sign.sign_decoder(add), np.float32(weight)
    share_units(lambda a, b: kernel(scales, signs, block_size, w, out, a, b), out.size)


def compile_natural() -> None:
    """Compile, or load from the disk cache, the kernels of natural compression."""
    from . import cpu_sign

    cpu_sign.natural_encoder()
    for add in (False, True):
        cpu_sign.natural_decoder(add)


def compile_sign() -> None:
    """Compile, or load from the disk cache, the kernels of EF-SignSGD."""
    from . import cpu_sign

    cpu_sign.sign_encoder()
    for add in (False, True):
        cpu_sign.sign_decoder(add)
