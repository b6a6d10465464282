"""MPI's fault tolerance, User Level Failure Mitigation: a rank's death, as far as MPI tells of it.

Bland et al.: "Post-failure recovery of MPI communication capability", IJHPCA 27, 2013. Part of
MPI 5's drafts; in Open MPI with `mpirun --with-ft ulfm`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .watch import RankLostError


class Guarded:
    """An mpi4py communicator, whose exceptions are ours where a rank has died."""

    def __init__(self, comm: Any) -> None:
        self.raw = comm

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.raw, name)

        def call(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except Exception as error:
                if (translated := self.translated(error)) is error:
                    raise
                raise translated from error

        setattr(self, name, call)
        return call

    def translated(self, error: Exception) -> Exception:
        """Return what to raise for what MPI has raised: RankLostError if a rank has died."""
        if not hasattr(error, "Get_error_class"):  # not MPI's
            return error
        try:
            lost, revoked = self._lost(), self.raw.Is_revoked()
        except Exception:  # no fault tolerance in this MPI, or in this mpi4py
            return error
        if not lost and not revoked:
            return error
        who = f"rank {', '.join(map(str, lost))} has died" if lost else "another rank has died"
        text = f"rank {self.raw.Get_rank()} of {self.raw.Get_size()}: {who}"
        return RankLostError(text, lost)

    def _lost(self) -> list[int]:
        """Return the ranks whose death MPI has noticed."""
        failed = self.raw.Get_failed()
        numbers = list(range(failed.Get_size()))
        return sorted(failed.Translate_ranks(numbers, self.raw.Get_group()))


def leave() -> None:
    """End this process at once, with status 0, without MPI's own end.

    After a death Open MPI 5.0's MPI_Finalize hung or crashed in about half of what was tried.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def shrunk(comm: Any) -> Any:
    """Return the mpi4py communicator of those of `comm` that live; all of them have to call.

    Raises:
        RuntimeError: this MPI cannot do it.
    """
    try:
        return comm.Shrink()
    except Exception as error:
        raise RuntimeError(
            f"this MPI cannot go on without a rank that has died ({error!r}); start the job with "
            "Open MPI 5 as `mpirun --with-ft ulfm`, or resume from a checkpoint"
        ) from error
