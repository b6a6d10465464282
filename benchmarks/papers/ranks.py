"""Ranks of an experiment: threads of this process, or processes under mpirun."""

import torch

import decentral
from decentral.communicators.launch import launched


class Ranks:
    """Calls a function on all ranks.

    Attributes:
        size: number of ranks: as asked for, or mpirun's.
        tell: whether this process is the one that prints and writes files.
    """

    def __init__(self, size):
        several = launched()[0] > 1
        self._comm = decentral.communicators.as_communicator() if several else None
        self.size = self._comm.size if self._comm else size
        self.tell = self._comm is None or self._comm.rank == 0
        # A thread per rank is enough threads.
        _limit_threads(self._comm.cores_per_rank if self._comm else 1)

    def call(self, function):
        """Return what function(communicator) returns on every rank, by rank."""
        if self._comm is None:
            return decentral.communicators.run_local(self.size, function, timeout=600)
        return self._comm.all_gather_object(function(self._comm))


def _limit_threads(threads):
    torch.set_num_threads(threads)
    try:
        from threadpoolctl import threadpool_limits  # of NumPy's; comes with scikit-learn
    except ImportError:
        return
    threadpool_limits(threads)
