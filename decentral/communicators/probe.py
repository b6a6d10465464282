"""Whether MPI takes device buffers: asked of the library, since a wrong guess crashes."""

from __future__ import annotations

import ctypes
import os


def _loaded_mpi() -> str | None:
    """Return the path of the libmpi that this process has loaded (Linux)."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "/libmpi" in line}
    except OSError:
        return None
    return min(paths, key=len, default=None)


def cuda_aware() -> bool:
    """Return what the library's MPIX_Query_cuda_support says (Open MPI, MPICH).

    A library without the query counts as not CUDA-aware. DECENTRAL_CUDA_AWARE=0|1 overrides it.
    """
    said = os.environ.get("DECENTRAL_CUDA_AWARE")
    if said is not None:
        return said == "1"
    path = _loaded_mpi()
    if path is None:
        return False
    try:
        return bool(ctypes.CDLL(path).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return False
