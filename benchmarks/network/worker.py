"""One rank of a benchmark: it takes a few steps with each of the named systems, and records them.

    mpirun -n 2 python benchmarks/network/worker.py --systems allreduce-nuqsgd ecd-psgd
    torchrun --nproc-per-node 2 benchmarks/network/worker.py --systems compute ddp ddp-fp16

A line of JSON per system: seconds of every step after the warm-up with their mean, median and
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


def build(name, args):
    if name in sums.SUMS:
        return sums.make(name)
    model = mlp.perceptron()
    return make(name, mlp.Free(model) if args.free else model, bits=args.bits)


def seconds_of(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(name, world, args):
    """Return one rank's record of a system."""
    system = build(name, args)
    x, y = mlp.batch(args.batch, world.rank)
    warm = [seconds_of(lambda: system.step(x, y)) for _ in range(system.warm_up)]
    count = min(max(2, *world.gather(int(args.budget / warm[-1]))), args.steps)
    system.finish()
    world.gather(None)
    wire, stats = sent(), system.stats()
    system.step(x, y)  # what runs ahead of its communication does so from here on
    cpu = time.process_time()
    times = [seconds_of(lambda: system.step(x, y)) for _ in range(count)]
    cpu = time.process_time() - cpu
    system.finish()
    world.gather(None)  # now what others send through this host has been sent, too
    return {
        "system": name,
        "rank": world.rank,
        "size": world.size,
        "batch": args.batch,
        "steps_s": times,
        "mean_s": statistics.fmean(times),
        "median_s": statistics.median(times),
        "min_s": min(times),
        "cpu_s": cpu / count,
        "wire_bytes": (sent() - wire) / (count + 1),
        **differences(stats, system.stats(), count + 1),
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
    names = [*SYSTEMS, *sums.SUMS]
    parser.add_argument("--systems", nargs="+", choices=names, required=True, metavar="NAME")
    parser.add_argument("--batch", type=int, default=16, help="per rank")
    parser.add_argument("--steps", type=int, default=5, help="measured ones, at most")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for them, about")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--free", action="store_true", help="communicate without computing")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    world = World()
    for name in args.systems:
        record(measure(name, world, args))
    world.close()


if __name__ == "__main__":
    main()
