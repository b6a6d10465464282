"""Communicators: MPI, and n ranks in one process."""

from __future__ import annotations

from typing import Any

from ..registry import described
from .base import Communicator
from .group import LocalDeath
from .launch import end_job
from .local import LocalCommunicator, run_local
from .watch import RankLostError, WaitTimeoutError


def as_communicator(comm: Any = None) -> Communicator:
    """Return `comm` if it is a Communicator, else one over an mpi4py communicator or COMM_WORLD.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(comm, Communicator):
        return comm
    if comm is not None and not hasattr(comm, "Dup"):
        what = "an mpi4py communicator, such as MPI.COMM_WORLD, or a decentral Communicator"
        raise TypeError(f"comm: expected {what}, got {described(comm)}")
    from .mpi import MPICommunicator

    return MPICommunicator(comm)


__all__ = [
    "Communicator",
    "LocalCommunicator",
    "LocalDeath",
    "RankLostError",
    "WaitTimeoutError",
    "as_communicator",
    "end_job",
    "run_local",
]
