"""The kernels for a GPU: numba-CUDA, on the caller's stream, bytes equal to the other two.

cuda_encode.py, cuda_norms.py and cuda_decode.py hold the kernels; here is how they are launched.
They need the package numba-cuda, and run in its simulator (NUMBA_ENABLE_CUDASIM=1) too. Arrays are
taken as they are, without a copy, and lie on the current device, one per thread for good. Kernels
are compiled when first called, per quantizer, and cached on disk.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda

from .cuda_decode import decode_kernel
from .cuda_encode import encode_kernel, is_fused, tile_size
from .cuda_norms import norm_kernel
from .cuda_parts import SIMULATED, f32, u32
from .layout import UNIT, Quantizer, norm_width

_THREADS = 32 if SIMULATED else 256
_MAX_GRID = 1 << 16
_NONE_BAD = 2**31 - 1
_AT_ONCE = 4  # messages that are added in one pass; a kernel is compiled for each number
_found = threading.local()
# The training's thread and the exchange's may be the first two to launch a kernel, which loads it:
# numba-cuda fails where both load the same one ("key already in dictionary"). Nor may two threads
# use its allocator at once.
_launching = threading.Lock()
# Of a bucket that is small enough, any grid is too small for numba, which would warn each time.
cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


@lru_cache(maxsize=None)
def _compiled(make: Callable[..., Callable[..., None]], *constants: Any) -> Any:
    kernel = make(*constants)
    # Of one name, kernels share an index on disk, where processes that write to it at once can
    # leave one kernel in the place of another.
    kernel.__qualname__ += f"_{zlib.crc32(repr(constants).encode()):08x}"
    return cuda.jit(cache=not SIMULATED)(kernel)


def _launch(kernel: tuple[Any, ...], blocks: int, stream: Any, *arguments: Any) -> None:
    """Launch _compiled(*kernel) on at most _MAX_GRID thread blocks."""
    grid = max(1, min(blocks, _MAX_GRID))
    with _launching:
        _compiled(*kernel)[grid, _THREADS, stream](*arguments)


@lru_cache(maxsize=64)  # numba keeps what it prepares for a launch by the object
def _stream(handle: int) -> Any:
    return cuda.external_stream(handle) if handle and not SIMULATED else 0


def _device_array(a: Any) -> Any:
    return a if SIMULATED else cuda.as_cuda_array(a, sync=False)


def _is_aligned(nbytes: int, *arrays: Any) -> bool:
    name = "__array_interface__" if SIMULATED else "__cuda_array_interface__"
    return all(getattr(a, name)["data"][0] % nbytes == 0 for a in arrays)


def _first_bad(stream: Any = 0) -> Any:
    """Return where kernels write the number of a block that cannot be encoded, int32[1].

    One per thread, since two may encode at once; _NONE_BAD as long as nothing was found.
    """
    if not hasattr(_found, "block"):
        with _launching:
            _found.block = cuda.to_device(np.array([_NONE_BAD], np.int32), stream=stream)
    return _found.block


def encode(
    x: Any, key: tuple[int, int], q: Quantizer, scales: Any, codes: Any, stream: int = 0
) -> int:
    """Write scales and packed codes of a device vector; return the first bad block or -1.

    x is float32[n], or bfloat16 or float16, whose values float32 holds too. `stream` is the handle
    of the CUDA stream to run on.
    """
    if x.shape[0] == 0:
        return -1
    start_encode(x, key, q, scales, codes, stream)
    # A vector that cannot be encoded goes as a header alone, which has to be known before anything
    # is sent. One could wait where the message leaves the device, which is not much later; but what
    # is not finite would then be an error of a call that is not to blame.
    bad = int(_first_bad().copy_to_host(stream=_stream(stream))[0])
    if bad == _NONE_BAD:
        return -1
    with _launching:
        del _found.block
    return bad


def start_encode(
    x: Any, key: tuple[int, int], q: Quantizer, scales: Any, codes: Any, stream: int = 0
) -> None:
    """Do what encode() does, but wait for nothing, and say nothing of bad blocks."""
    source, on = str(x.dtype).removeprefix("torch."), _stream(stream)
    if source == "bfloat16":
        x = x.view(codes.dtype)  # bytes, since the array interface has no bfloat16
    x, scales, codes = map(_device_array, (x, scales, codes))
    x, first_bad = x.view(np.uint32 if source == "float32" else np.uint16), _first_bad(on)
    if not is_fused(q.block_size):
        norms = norm_kernel, q.norm == "max", source
        width = norm_width(q.block_size)
        _launch(norms, scales.size, on, x, q.block_size, width, scales, first_bad)
    _launch(
        (encode_kernel, q, source),
        -(-x.size // tile_size(q.block_size)),
        on,
        x,
        u32(key[0]),
        u32(key[1]),
        _is_aligned(4 * x.dtype.itemsize, x),
        _is_aligned(4, codes),
        scales,
        codes,
        first_bad,
    )


def _decode(
    messages: Sequence[tuple[Any, Any, float]], q: Quantizer, out: Any, is_sum: bool, stream: int
) -> None:
    if out.shape[0] == 0:
        return
    scales, codes, weights = zip(*messages, strict=True)
    scales, codes = (tuple(map(_device_array, arrays)) for arrays in (scales, codes))
    out = _device_array(out).view(np.uint32)
    wide = _is_aligned(4, *codes) and _is_aligned(16, out)
    kernel, blocks = (decode_kernel, q, is_sum, len(messages)), -(-out.size // UNIT)
    weights = tuple(map(f32, weights))
    _launch(kernel, blocks, _stream(stream), scales, codes, weights, wide, out)


def decode(scales: Any, codes: Any, q: Quantizer, out: Any, stream: int = 0) -> None:
    """Write the decoded values to out, on `stream`."""
    _decode([(scales, codes, 1.0)], q, out, False, stream)


def accumulate(
    scales: Any, codes: Any, q: Quantizer, out: Any, weight: float, stream: int = 0
) -> None:
    """Add weight * (the decoded values) to out, on `stream`."""
    accumulate_all([(scales, codes, weight)], q, out, stream)


def accumulate_all(
    messages: Sequence[tuple[Any, Any, float]], q: Quantizer, out: Any, stream: int = 0
) -> None:
    """Add weight * (the decoded values) of (scales, codes, weight) to out, in order, on `stream`.

    Up to four messages in one pass over `out`.
    """
    for first in range(0, len(messages), _AT_ONCE):
        _decode(messages[first : first + _AT_ONCE], q, out, True, stream)
