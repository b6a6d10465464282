"""Communicators: MPI, and n ranks in one process."""

from __future__ import annotations

from typing import Any

from .base import Communicator
from .group import LocalDeath
from .launch import end_job
from .local import LocalCommunicator, run_local
from .watch import RankLostError, WaitTimeoutError


def as_communicator(comm: Any = None) -> Communicator:
    """Return `comm` if it is a Communicator, else one over an mpi4py communicator or COMM_WORLD."""
    if isinstance(comm, Communicator):
        return comm
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
