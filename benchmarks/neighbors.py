"""Seconds of a gossip exchange by MPI's several means: which of them is worth using.

    mpirun -n 8 python benchmarks/neighbors.py [--topology ring] [--nbytes 4096 262144 4194304]

Every rank sends one message to all its neighbors: Isend and Irecv made anew (what decentral does),
persistent requests that are started again, and Ineighbor_allgather over a distributed graph. They
take turns; a figure is the median over turns of the slowest rank.
"""

import argparse
import statistics
import time

import numpy as np
from mpi4py import MPI

import decentral_topologies


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--topology", default="ring")
    parser.add_argument("--nbytes", type=int, nargs="+", default=[4096, 1 << 18, 1 << 22])
    parser.add_argument("--turns", type=int, default=30)
    return parser.parse_args(argv)


def ways(comm, topology, nbytes):
    """Return {name: a function that makes one exchange}, and what is to be freed."""
    sources, targets = topology.sources(comm.rank), topology.targets(comm.rank)
    own = np.full(nbytes, comm.rank, np.uint8)
    theirs = np.zeros((len(sources), nbytes), np.uint8)
    ends = list(zip(sources, theirs, strict=True))

    def anew():
        requests = [comm.Irecv(buffer, j, 1) for j, buffer in ends]
        requests += [comm.Isend(own, j, 1) for j in targets]
        MPI.Request.Waitall(requests)

    kept = [comm.Recv_init(buffer, j, 2) for j, buffer in ends]
    kept += [comm.Send_init(own, j, 2) for j in targets]

    def persistent():
        MPI.Prequest.Startall(kept)
        MPI.Request.Waitall(kept)

    graph = comm.Create_dist_graph_adjacent(list(sources), list(targets))

    def neighborhood():
        graph.Ineighbor_allgather(own, theirs).Wait()

    by_name = {"anew": anew, "persistent": persistent, "neighborhood": neighborhood}
    return by_name, [*kept, graph]


def seconds(comm, exchange, repeat):
    """Return the seconds of an exchange on the slowest rank."""
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(repeat):
        exchange()
    return comm.allreduce((time.perf_counter() - start) / repeat, MPI.MAX)


def main():
    args, comm = parse_args(), MPI.COMM_WORLD
    topology = decentral_topologies.from_name(args.topology, comm.size)
    if comm.rank == 0:
        print(MPI.Get_library_version().split("\n")[0].split(",")[0])
        print(f"| bytes, {topology!r} | anew | persistent | neighborhood |\n|---|---|---|---|")
    for nbytes in args.nbytes:
        found = {}
        repeat = max(1, min(50, (1 << 22) // nbytes))
        exchanges, owned = ways(comm, topology, nbytes)
        for turn in range(args.turns + 1):  # the first one warms up
            for name, exchange in exchanges.items():
                took = seconds(comm, exchange, repeat)
                if turn:
                    found.setdefault(name, []).append(took)
        for one in owned:
            one.Free()
        if comm.rank == 0:
            cells = [f"{statistics.median(times) * 1e6:.0f} us" for times in found.values()]
            print(f"| {nbytes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
