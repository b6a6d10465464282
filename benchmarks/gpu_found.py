"""What a machine with a GPU has: devices, MPI, and how device memory would travel.

    python benchmarks/gpu_found.py

Ends with an error where there is no GPU that torch and numba-cuda can use.
"""

import importlib.metadata
import os
import sys

import torch

from decentral.communicators import mpi, probe
from decentral.device_probe import arrives


def require_gpu():
    """Return the number of GPUs; end with one message if there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        built = torch.version.cuda or "no CUDA"
        sys.exit(
            f"{os.path.basename(sys.argv[0])}: error: needs an NVIDIA GPU, its driver and a CUDA "
            f"build of torch, got torch {torch.__version__} (built for {built}) and no usable GPU"
        )
    return count


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def path(override, claims, arrived):
    """Return in words how device memory travels, as probe.cuda_aware() decides it."""
    if override is not None:
        direct, why = override == "1", f"DECENTRAL_CUDA_AWARE={override}"
    elif not claims:
        direct, why = False, "the library does not say that it is CUDA-aware"
    else:
        direct = arrived
        why = "it says that it is CUDA-aware, and a child process " + (
            "has seen device memory arrive" if arrived else "has NOT seen device memory arrive"
        )
    way = "device memory is handed to MPI" if direct else "staged through pinned host memory"
    return f"{way} ({why})"


def gpus(count):
    for i in range(count):
        p = torch.cuda.get_device_properties(i)
        yield f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB"


def main():
    for i, text in enumerate(gpus(require_gpu())):
        print(f"GPU {i}     {text}")
    print(f"torch     {torch.__version__}, CUDA {torch.version.cuda}")
    print(f"kernels   numba-cuda {version('numba-cuda')}, numba {version('numba')}")
    library = mpi.start_mpi().Get_library_version().split("\n")[0].strip("\0 ")
    print(f"MPI       {library}")
    override, claims = os.environ.get("DECENTRAL_CUDA_AWARE"), probe.claims_cuda()
    arrived = override is None and claims and arrives(torch.device("cuda", 0))
    print(f"path      {path(override, claims, arrived)}", flush=True)


if __name__ == "__main__":
    main()
