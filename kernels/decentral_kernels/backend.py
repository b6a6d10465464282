"""The door to the kernels: where the arrays live decides which implementation runs.

NumPy arrays go to numba on the CPU, arrays with __cuda_array_interface__ to numba-CUDA. All are
one-dimensional and contiguous; the caller has checked sizes and dtypes, nothing here does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import lcm
from typing import Any, NamedTuple

import numpy as np

from .elementwise import NOT_FINITE, Applied
from .layout import UNIT, Quantizer, norm_width
from .threads import GRAIN, share

_PART = 8 * UNIT  # of about five vectors, in a core's second cache


class Around(NamedTuple):
    """What is done to each part of a vector before and after it is encoded, in the cache.

    `made` writes the part, weight * (its decoded values) is added to `out`, float32[n], which may
    be the vector itself, and then the first of the vectors in `copy` is copied to the second.
    """

    made: Applied
    out: Any
    weight: float
    copy: tuple[Any, Any] | None = None


def share_units(run: Callable[[int, int], Any], numel: int) -> list[Any]:
    """Call run(first, last) on ranges of units that together cover `numel` coordinates."""
    return share(run, -(-numel // UNIT), GRAIN // UNIT)


def first_bad(found: list[int]) -> int:
    """Return the least of what threads have found, or -1 if all of it is negative."""
    bad = [b for b in found if b >= 0]
    return min(bad) if bad else -1


def _on_gpu(array: Any) -> bool:
    return hasattr(array, "__cuda_array_interface__")


@lru_cache(maxsize=None)
def _cpu() -> Any:
    """Return the module with numba in it, which takes its time; an import each call would too."""
    from . import cpu

    return cpu


@lru_cache(maxsize=None)
def _cpu_in_parts() -> Any:
    """Return the module with the loops over parts; likewise."""
    from . import cpu_in_parts

    return cpu_in_parts


def encode(
    x: Any, key: tuple[int, int], q: Quantizer, scales: Any, codes: Any, stream: int = 0
) -> int:
    """Quantize and pack float32[n] x into scales float32[blocks] and codes uint8[bytes].

    `key` is rng.fold_key's; `stream` is a CUDA stream handle. On a GPU x may be bfloat16 or float16
    as well. Returns the first block that cannot be encoded (a NaN, an inf, or a norm of 2^126 or
    more), or -1.
    """
    if _on_gpu(x):
        from . import cuda

        return cuda.encode(x, key, q, scales, codes, stream)
    kernel = _cpu().encoder(q.bits, q.levels == "exponential", q.norm == "max", q.zero_level)
    (k0, k1), width = key, norm_width(q.block_size)

    def run(first: int, last: int) -> int:
        return kernel(x, k0, k1, q.block_size, width, scales, codes, first, last)

    return first_bad(share_units(run, x.size))


def encode_in_parts(
    x: Any, key: tuple[int, int], q: Quantizer, scales: Any, codes: Any, around: Around
) -> int:
    """Encode NumPy's float32[n] x part by part, as `around` says; each is of whole blocks.

    What it returns is encode()'s, or NOT_FINITE where what `around` has made is not; nothing is
    added of a part that cannot be encoded.
    """
    kernel = _cpu().encoder(q.bits, q.levels == "exponential", q.norm == "max", q.zero_level)
    decoder, made = _decoder(q, add=True), around.made
    (k0, k1), width, units = key, norm_width(q.block_size), -(-x.size // UNIT)
    whole = lcm(q.block_size, UNIT)
    size = max(1, _PART // whole) * whole // UNIT
    source, target = around.copy or (x[:0], x[:0])
    arguments = (*made.vectors, *made.numbers, x, source, target, k0, k1, q.block_size, width)
    arguments += (scales, codes, around.out, np.float32(around.weight))
    arguments += (*map(_cpu_in_parts().address_of, (kernel, decoder)), size)

    def run(first: int, last: int) -> int:
        return int(made.formula.in_parts(*arguments, first * size, min(last * size, units)))

    found = share(run, -(-units // size), max(1, GRAIN // (size * UNIT)))
    return NOT_FINITE if NOT_FINITE in found else first_bad(found)


def _decoder(q: Quantizer, add: bool) -> Any:
    return _cpu().decoder(q.bits, q.levels == "exponential", add, q.zero_level)


def decode(scales: Any, codes: Any, q: Quantizer, out: Any, stream: int = 0) -> None:
    """Write the decoded values to out, float32[n]."""
    if _on_gpu(out):
        from . import cuda

        cuda.decode(scales, codes, q, out, stream)
        return
    kernel, one = _decoder(q, add=False), np.float32(1)
    share_units(lambda a, b: kernel(scales, codes, q.block_size, one, out, 0, a, b), out.size)


def accumulate(
    scales: Any, codes: Any, q: Quantizer, out: Any, weight: float, stream: int = 0
) -> None:
    """Add weight * (the decoded values) to out, float32[n], in one pass."""
    accumulate_all([(scales, codes, weight)], q, out, stream)


def accumulate_all(
    messages: Sequence[tuple[Any, Any, float]], q: Quantizer, out: Any, stream: int = 0
) -> None:
    """Add weight * (the decoded values) of (scales, codes, weight) to out, float32[n], in order.

    On the CPU all messages are added to a part of `out` while it is in the cache.
    """
    if _on_gpu(out):
        from . import cuda

        cuda.accumulate_all(messages, q, out, stream)
        return
    kernel, parts = _decoder(q, add=True), _cpu_in_parts()
    if len(messages) == 1:  # needs no loop, which takes 5 us to set up
        scales, codes, weight = messages[0]
        given = (scales, codes, q.block_size, np.float32(weight), out, parts.AHEAD)
        share_units(lambda a, b: kernel(*given, a, b), out.size)
    else:
        share_units(parts.Addition(kernel, messages, q.block_size, out).run, out.size)


def compile_cpu_kernels(q: Quantizer) -> None:
    """Compile, or load from the disk cache, the CPU kernels that q needs."""
    cpu = _cpu()
    exponential = q.levels == "exponential"
    cpu.encoder(q.bits, exponential, q.norm == "max", q.zero_level)
    for add in (False, True):
        cpu.decoder(q.bits, exponential, add, q.zero_level)
    _cpu_in_parts().adder()
