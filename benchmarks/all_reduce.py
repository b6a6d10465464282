"""Time of summing float32, int32 and int8 over ranks, as a share of MPI's float32.

    mpirun -n 8 python benchmarks/all_reduce.py [--numel 4194304] [--rounds 15]

Per dtype, MPI's own all-reduce, our ring, and what decentral uses here. The rounds of all of them
take turns, so that a busy machine slows all alike; the median of each counts.
"""

import argparse
import statistics
import time

import numpy as np

from decentral.communicators import as_communicator
from decentral.communicators.ring import RingSum


def library(comm, vector):
    from mpi4py import MPI

    comm._complete(comm._comm.Iallreduce(MPI.IN_PLACE, vector, MPI.SUM))


def ring(comm, vector):
    RingSum(comm._comm, vector, comm._requests).wait()


def ours(comm, vector):
    comm.all_reduce(vector).wait()


WAYS = {"MPI": library, "ring": ring, "decentral": ours}
DTYPES = (np.float32, np.int32, np.int8)


def seconds(comm, way, vector):
    comm.barrier()
    start = time.perf_counter()
    way(comm, vector)
    return max(comm.all_gather_object(time.perf_counter() - start))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numel", type=int, default=1 << 22)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    comm = as_communicator()
    cases = {(d, w): [] for d in DTYPES for w in WAYS}
    vectors = {d: np.zeros(args.numel, d) for d in DTYPES}
    for turn in range(args.rounds + 1):
        for (dtype, way), times in cases.items():
            took = seconds(comm, WAYS[way], vectors[dtype])
            if turn > 0:  # the first one sets up connections
                times.append(took)
    if comm.rank == 0:
        from mpi4py import MPI

        print(f"{MPI.Get_library_version().splitlines()[0]}, {comm.size} ranks, {args.numel} each")
        base = statistics.median(cases[np.float32, "MPI"])
        print("| dtype | how | ms, median | of MPI's float32 |\n|---|---|---|---|")
        for (dtype, way), times in cases.items():
            ms = 1e3 * statistics.median(times)
            print(f"| {dtype.__name__} | {way} | {ms:.1f} | {ms / 1e3 / base:.2f} |")


if __name__ == "__main__":
    main()
