"""Communicators: MPI, and n ranks in one process."""

from __future__ import annotations

from typing import Any

from .base import Communicator
from .launch import end_job
from .local import LocalCommunicator, run_local


def as_communicator(comm: Any = None) -> Communicator:
    """Return a Communicator of one's own: over an mpi4py communicator, COMM_WORLD, or another one.

    All ranks must call it.
    """
    if isinstance(comm, Communicator):
        return comm.split(0)
    from .mpi import MPICommunicator

    return MPICommunicator(comm)


__all__ = ["Communicator", "LocalCommunicator", "as_communicator", "end_job", "run_local"]
