"""What malloc does with the memory of gradients, which autograd frees and asks for in every step.

glibc's gives it back to the system when more than a threshold, 64 MB at most, is free at the end of
the heap, and each page that is asked for again costs a fault: a quarter of a small model's step
(docs/performance.md). So it is told to keep more.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LEAST_NBYTES = 1 << 25  # what glibc's own threshold for mmap comes to at most
_MOST_NBYTES = (1 << 31) - 1
_kept_nbytes = _mapped_nbytes = 0


def keep_freed(parameters: Iterable[Tensor]) -> None:
    """Let malloc keep what two sets of these parameters' gradients on the CPU take, and 64 MB more.

    Each of them comes from the heap. Nothing is done without glibc, or where the environment says
    what malloc is to keep; what another optimizer has asked for stays.
    """
    global _kept_nbytes, _mapped_nbytes
    sizes = [p.nbytes for p in parameters if p.requires_grad and p.device.type == "cpu"]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not sizes or mallopt is None or _chosen():
        return
    kept = min(2 * sum(sizes) + 2 * _LEAST_NBYTES, _MOST_NBYTES)
    mapped = min(2 * max(*sizes, _LEAST_NBYTES // 2), _MOST_NBYTES)
    _kept_nbytes, _mapped_nbytes = max(kept, _kept_nbytes), max(mapped, _mapped_nbytes)
    if not mallopt(_M_MMAP_THRESHOLD, _mapped_nbytes):  # old ones refuse more
        mallopt(_M_MMAP_THRESHOLD, _LEAST_NBYTES)
    mallopt(_M_TRIM_THRESHOLD, _kept_nbytes)


def _chosen() -> bool:
    """Return whether the environment says what malloc is to keep."""
    names = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return tuned or any(name in os.environ for name in names)
