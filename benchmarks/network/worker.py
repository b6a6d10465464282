"""One rank of a benchmark: it takes a few steps with each of the named systems, and records them.

    mpirun -n 2 python benchmarks/network/worker.py --systems allreduce-nuqsgd ecd-psgd
    torchrun --nproc-per-node 2 benchmarks/network/worker.py --systems compute ddp ddp-fp16

NAME@64 takes batches of 64; NAME@free has gradients at once, with nothing to compute. Printed is a
line of JSON per system: seconds of every step after the warm-up with their mean, median and
minimum, processor seconds per step, bytes that left the host's eth0 per step, decentral's stats().
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import mlp
import sums
import torch
import torch.distributed as dist
from jobs import record
from systems import SYSTEMS, make

_COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")


class World:
    """The ranks, by MPI or, where a launcher of PyTorch's kind has set its variables, gloo."""

    def __init__(self):
        torch.set_num_threads(1)
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group("gloo")
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self.gather = self._gather
        else:
            from decentral.communicators import as_communicator

            self._comm = as_communicator()
            self.rank, self.size = self._comm.rank, self._comm.size
            self.gather = self._comm.all_gather_object

    def _gather(self, value):
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def close(self):
        """Leave together: a rank that ends early ends the job of the others."""
        self.gather(None)
        if dist.is_initialized():
            dist.destroy_process_group()


def sent():
    """Return the bytes that have left this host, headers included."""
    return int(_COUNTER.read_text()) if _COUNTER.exists() else 0


def parse(spec):
    """Return (system, batch or None, whether it has nothing to compute) of NAME[@BATCH|@free]."""
    name, _, how = spec.partition("@")
    if name not in SYSTEMS and name not in sums.SUMS:
        known = ", ".join([*SYSTEMS, *sums.SUMS])
        raise ValueError(f"unknown system {name!r}; known: {known}")
    return name, int(how) if how.isdigit() else None, how == "free"


def build(name, free, bits):
    if name in sums.SUMS:
        return sums.make(name)
    model = mlp.perceptron()
    return make(name, mlp.Free(model) if free else model, bits=bits)


def seconds_of(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(spec, world, args):
    """Return one rank's record of a system."""
    name, batch, free = parse(spec)
    batch = batch or args.batch
    system = build(name, free, args.bits)
    x, y = mlp.batch(batch, world.rank)
    warm = [seconds_of(lambda: system.step(x, y)) for _ in range(system.warm_up)]
    within = min(world.gather(args.budget / warm[-1]))  # steps in the budget
    count, settling = min(max(2, int(within)), args.steps), min(4, 1 + int(within / 4))
    system.finish()
    world.gather(None)
    wire, stats = sent(), system.stats()
    # What runs ahead of its communication does so from here on, and connections find their speed.
    for _ in range(settling):
        system.step(x, y)
    cpu = time.process_time()
    times = [seconds_of(lambda: system.step(x, y)) for _ in range(count)]
    cpu = time.process_time() - cpu
    system.finish()
    world.gather(None)  # now what others send through this host has been sent, too
    return {
        "system": spec,
        "rank": world.rank,
        "size": world.size,
        "batch": batch,
        "steps_s": times,
        "mean_s": statistics.fmean(times),
        "median_s": statistics.median(times),
        "min_s": min(times),
        "cpu_s": cpu / count,
        "wire_bytes": (sent() - wire) / (count + settling),
        **differences(stats, system.stats(), count + settling),
    }


def differences(before, after, count):
    """Return, per step, what grew in decentral's stats(), and what is a share already."""
    grown = {
        key: (after[key] - before[key]) / count
        for key in ("bytes_sent", "communication_s", "waited_s")
        if key in after
    }
    if grown.get("communication_s"):
        grown["hidden"] = 1 - grown["waited_s"] / grown["communication_s"]
    return grown


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", required=True, metavar="NAME[@BATCH|@free]")
    parser.add_argument("--batch", type=int, default=16, help="per rank")
    parser.add_argument("--steps", type=int, default=20, help="measured ones, at most")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for them, about")
    parser.add_argument("--bits", type=int, default=4)
    args = parser.parse_args(argv)
    for spec in args.systems:
        try:
            parse(spec)
        except ValueError as error:
            parser.error(str(error))
    return args


def main():
    args = parse_args()
    world = World()
    for spec in args.systems:
        record(measure(spec, world, args))
    world.close()


if __name__ == "__main__":
    main()
