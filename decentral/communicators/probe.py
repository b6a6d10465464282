"""Whether MPI says that it takes device memory; decentral/device_probe.py tries it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

_MPICH_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA


def _loaded(part: str) -> str | None:
    """Return the path of a library that this process has loaded, by a part of its name (Linux)."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if f"/{part}" in line}
    except OSError:
        return None
    return min(paths, key=len, default=None)


def _says_yes(library: Any) -> bool:
    """Return what either query says: Open MPI, MVAPICH and MPICH have the first, MPICH both."""
    try:
        if library.MPIX_Query_cuda_support():
            return True
    except AttributeError:
        pass
    answer = ctypes.c_int(0)
    try:
        library.MPIX_GPU_query_support(_MPICH_CUDA, ctypes.byref(answer))
    except AttributeError:
        return False
    return bool(answer.value)


def claims_cuda() -> bool:
    """Return whether the library says so, or UCX beneath it has loaded its module for CUDA.

    MPI has been initialized by then. A library without a query and UCX counts as not CUDA-aware.
    """
    if _loaded("libuct_cuda") is not None:
        return True
    path = _loaded("libmpi")
    try:
        return path is not None and _says_yes(ctypes.CDLL(path))
    except OSError:
        return False


def cuda_aware(arrives: Callable[[], bool]) -> bool:
    """Return whether the library says that it takes device memory, and arrives() agrees.

    DECENTRAL_CUDA_AWARE=0|1 overrides both.
    """
    said = os.environ.get("DECENTRAL_CUDA_AWARE")
    if said is not None:
        return said == "1"
    return claims_cuda() and arrives()
