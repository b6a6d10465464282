"""The float32 all-reduce alone, as systems of systems.py: ours, MPI's own, and gloo's.

sum-decentral-16 sums a vector of 16 MiB, and so on.
"""

import numpy as np
import torch
import torch.distributed as dist

MIB = (16, 64)


class Sum:
    """What the sums share with a training system."""

    launch, warm_up = "mpi", 1

    def __init__(self, mib):
        self.vector = np.ones(mib << 18, np.float32)

    def step(self, x, y):
        self.vector.fill(1)
        self.sum()

    def finish(self):
        """Nothing is under way."""

    def stats(self):
        return {}


class Ours(Sum):
    """What decentral does with float32."""

    def __init__(self, mib):
        from decentral.communicators import as_communicator

        super().__init__(mib)
        self._comm = as_communicator()

    def sum(self):
        self._comm.all_reduce(self.vector).wait()


class Library(Sum):
    """MPI_Allreduce, as anybody calls it."""

    def __init__(self, mib):
        from mpi4py import MPI

        super().__init__(mib)
        self._comm = MPI.COMM_WORLD.Dup()

    def sum(self):
        from mpi4py import MPI

        self._comm.Allreduce(MPI.IN_PLACE, self.vector, MPI.SUM)


class Gloo(Sum):
    """torch.distributed.all_reduce over gloo."""

    launch = "gloo"

    def sum(self):
        dist.all_reduce(torch.from_numpy(self.vector))


_KINDS = {"decentral": Ours, "mpi": Library, "gloo": Gloo}
SUMS = {f"sum-{name}-{mib}": (kind, mib) for mib in MIB for name, kind in _KINDS.items()}


def make(name):
    """Return the named sum."""
    kind, mib = SUMS[name]
    return kind(mib)
