"""Whether MPI takes device memory, tried by a process of its own: where it does not, it crashes.

    python -m decentral.device_probe 0

sends vectors of GPU 0 to itself, as the only rank of a job of one, and exits with status 0 if they
have arrived.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import torch

from .communicators.mpi import start_mpi

_SIZES = (1 << 5, 1 << 12, 1 << 22)  # bytes; libraries send short and long messages in other ways
_TIMEOUT_S = 60.0
# What tells a process that a launcher has started it.
_LAUNCHERS = (
    *("PMI_", "PMIX_", "HYDI_", "MPI_LOCAL", "MV2_COMM_WORLD_", "PRTE_", "PALS_", "SLURM_"),
    *("OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE", "OMPI_APP_CTX", "OMPI_NUM_APP_CTX"),
    *("OMPI_FIRST_RANKS", "OMPI_FILE_LOCATION", "OMPI_MCA_ess", "OMPI_MCA_orte"),
)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which MPI starts as a job of one rank."""
    return {k: v for k, v in environment.items() if not k.startswith(_LAUNCHERS)}


def arrives(device: torch.device, command: Sequence[str] = ()) -> bool:
    """Return whether device memory that a child process sends to itself by MPI arrives.

    `command` takes the child's place.
    """
    number = device.index if device.index is not None else torch.cuda.current_device()
    child = [*command] or [sys.executable, "-m", __name__, str(number)]
    try:
        done = subprocess.run(
            child,
            env=without_launcher(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _main(number: int) -> int:
    if not torch.cuda.is_available():
        sys.stderr.write("device_probe: no GPU, or a build of torch without CUDA\n")
        return 2
    comm = start_mpi().COMM_SELF
    for nbytes in _SIZES:
        sent = torch.arange(nbytes, device=f"cuda:{number}").to(torch.uint8)
        received = torch.zeros_like(sent)
        torch.cuda.synchronize(number)
        requests = [comm.Irecv(received, 0, 0), comm.Isend(sent, 0, 0)]
        for request in requests:
            request.Wait()
        if not torch.equal(sent, received):
            sys.stderr.write(f"device_probe: {nbytes} bytes of device memory arrived damaged\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1])))
