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

from .layout import UNIT, Quantizer, norm_width
from .threads import share

# A thread pays for itself from about this many coordinates on (512 KiB of float32).
GRAIN = 128 * UNIT
_IN_CACHE = 64  # units; with their codes they stay in the caches of a core
_PART = 128 * UNIT  # of five vectors, in a core's second cache and its share of the third
Stage = Callable[[slice], object]


class Around(NamedTuple):
    """What is done to each part of a vector before and after it is encoded, in the cache.

    `before` writes the part, weight * (its decoded values) is added to `out`, float32[n], which may
    be the vector itself, and then comes `after`.
    """

    before: Stage
    out: Any
    weight: float
    after: Stage = lambda part: None


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

    What it returns is encode()'s; nothing is added of a part that cannot be encoded.
    """
    kernel = _cpu().encoder(q.bits, q.levels == "exponential", q.norm == "max", q.zero_level)
    decoder, weight = _decoder(q, add=True), np.float32(around.weight)
    (k0, k1), width, n = key, norm_width(q.block_size), x.size
    whole = lcm(q.block_size, UNIT)
    size = max(1, _PART // whole) * whole

    def one(start: int) -> int:
        part = slice(start, min(start + size, n))
        units = part.start // UNIT, -(-part.stop // UNIT)
        around.before(part)
        bad = int(kernel(x, k0, k1, q.block_size, width, scales, codes, *units))
        if bad < 0:
            decoder(scales, codes, q.block_size, weight, around.out, *units)
            around.after(part)
        return bad

    def run(first: int, last: int) -> int:
        found = (one(p * size) for p in range(first, last))
        return next((bad for bad in found if bad >= 0), -1)

    return first_bad(share(run, -(-n // size), max(1, GRAIN // size)))


def _decoder(q: Quantizer, add: bool) -> Any:
    return _cpu().decoder(q.bits, q.levels == "exponential", add, q.zero_level)


def decode(scales: Any, codes: Any, q: Quantizer, out: Any, stream: int = 0) -> None:
    """Write the decoded values to out, float32[n]."""
    if _on_gpu(out):
        from . import cuda

        cuda.decode(scales, codes, q, out, stream)
        return
    kernel, one = _decoder(q, add=False), np.float32(1)
    share_units(lambda a, b: kernel(scales, codes, q.block_size, one, out, a, b), out.size)


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
    kernel = _decoder(q, add=True)
    weighted = [(scales, codes, np.float32(weight)) for scales, codes, weight in messages]
    each = _IN_CACHE if len(messages) > 1 else max(1, out.size)

    def run(first: int, last: int) -> None:
        for a in range(first, last, each):
            for scales, codes, weight in weighted:
                kernel(scales, codes, q.block_size, weight, out, a, min(a + each, last))

    share_units(run, out.size)


def compile_cpu_kernels(q: Quantizer) -> None:
    """Compile, or load from the disk cache, the CPU kernels that q needs."""
    cpu = _cpu()
    exponential = q.levels == "exponential"
    cpu.encoder(q.bits, exponential, q.norm == "max", q.zero_level)
    for add in (False, True):
        cpu.decoder(q.bits, exponential, add, q.zero_level)
