"""Processor time of ranks that wait for a slow one.

    mpirun -n 8 python benchmarks/waiting.py [--seconds 2] [--steps 3] [--json FILE]

Rank 0 computes for some seconds in every step, while the others wait for it inside step(). Printed
per algorithm: the waiting ranks' processor seconds as a share of wall-clock time, and of what all
ranks used. The last row is MPI's own blocking all-reduce, which spins.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import decentral
from decentral.communicators import as_communicator

_WIDTHS = (64, 512, 512, 10)


class Training:
    """Steps of an algorithm on a small model."""

    def __init__(self, algorithm):
        a, b, c, d = _WIDTHS
        relu = torch.nn.ReLU
        layers = [torch.nn.Linear(a, b), relu(), torch.nn.Linear(b, c), relu()]
        self._model = torch.nn.Sequential(*layers, torch.nn.Linear(c, d))
        sgd = torch.optim.SGD(self._model.parameters(), 0.01)
        self._optimizer = decentral.DistributedOptimizer(sgd, self._model, algorithm)

    def step(self):
        self._optimizer.zero_grad()
        self._model(torch.ones(4, _WIDTHS[0])).square().mean().backward()
        self._optimizer.step()


class BlockingAllReduce:
    """MPI_Allreduce of as many floats."""

    def __init__(self):
        from mpi4py import MPI

        self._world = MPI.COMM_WORLD.Dup()
        self._vector = np.ones(1 << 18, np.float32)

    def step(self):
        from mpi4py import MPI

        self._world.Allreduce(MPI.IN_PLACE, self._vector, MPI.SUM)


def nuqsgd():
    return decentral.compressors.from_name("nuqsgd")


def systems():
    """Return what makes each row."""
    named = decentral.algorithms.from_name
    return {
        "allreduce, float32": lambda: Training(named("allreduce")),
        "allreduce, nuqsgd": lambda: Training(named("allreduce", compressor=nuqsgd())),
        "ecd-psgd, nuqsgd": lambda: Training(named("ecd-psgd", "ring", nuqsgd())),
        "MPI_Allreduce": BlockingAllReduce,
    }


def compute(seconds):
    end, matrix = time.perf_counter() + seconds, torch.ones(64, 64)
    while time.perf_counter() < end:
        matrix @ matrix


def measure(comm, make, args):
    """Return (wall seconds, [processor seconds of every rank])."""
    system = make()
    system.step()
    comm.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(args.steps):
        if comm.rank == 0:
            compute(args.seconds)
        system.step()
    cpu = time.process_time() - cpu
    comm.barrier()
    return time.perf_counter() - wall, comm.all_gather_object(cpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    comm, rows = as_communicator(), {}
    for name, make in systems().items():
        wall, cpu = measure(comm, make, args)
        waiting = sum(cpu[1:])
        rows[name] = {
            "wall_s": wall,
            "waiting_cpu_s": waiting,
            "of_wall": waiting / (wall * (comm.size - 1)),
            "of_all_cpu": waiting / sum(cpu),
        }
    if comm.rank == 0:
        print(f"{comm.size} ranks; rank 0 computes {args.seconds} s in each of {args.steps} steps")
        print("| system | waiting ranks' processor s | of wall | of all |\n|---|---|---|---|")
        for name, row in rows.items():
            shares = f"{row['of_wall']:.1%} | {row['of_all_cpu']:.1%}"
            print(f"| {name} | {row['waiting_cpu_s']:.2f} | {shares} |")
        if args.json:
            Path(args.json).write_text(json.dumps({"kind": "waiting", "systems": rows}, indent=1))


if __name__ == "__main__":
    main()
