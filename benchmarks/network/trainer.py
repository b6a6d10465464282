"""One rank that trains until a test accuracy is reached: accuracy.py starts it on all hosts.

    mpirun -n 2 python benchmarks/network/trainer.py --systems allreduce-nuqsgd ecd-psgd

scikit-learn's digits, a perceptron 64-2048-2048-10 (4,350,986 parameters), the same batches in the
same order for every system. The clock stands still during evaluation, every few steps, of the
model that is the ranks' average.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import mlp
import torch
from jobs import record
from systems import SYSTEMS, make
from worker import World

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import datasets

WIDTHS = (64, 2048, 2048, 10)


def batches(data, world, args):
    """Yield this rank's batches, epoch by epoch, for ever."""
    shard = datasets.ShardSampler(world.rank, world.size, len(data.train), args.seed)
    for epoch in itertools.count():
        key = (args.seed, epoch, world.rank)
        for x, y in datasets.batches(data.train, shard.epoch(epoch), args.batch, key):
            yield x.flatten(1), y


def accuracy_of(model, data):
    """Return the share of test images that a model gets right."""
    (x, y), *more = datasets.batches(data.test, torch.arange(len(data.test)), len(data.test))
    assert not more
    with torch.no_grad():
        return (model(x.flatten(1)).argmax(1) == y).float().mean().item()


def evaluate(system, world, data):
    """Return the averaged model's test accuracy, rank 0's, on all ranks."""
    system.averaged()
    accuracy = accuracy_of(system.evaluated, data)
    system.restore()
    return world.gather(accuracy)[0]


def train(name, world, data, args):
    """Return the record of a system: steps, and seconds without evaluation, to the target."""
    system = make(name, mlp.perceptron(WIDTHS, args.seed), args.lr, args.bits)
    clock, curve, source = 0.0, [], batches(data, world, args)
    world.gather(None)
    for steps in range(1, args.max_steps + 1):
        x, y = next(source)
        start = time.perf_counter()
        system.step(x, y)
        if steps % args.every == 0:
            system.finish()
        clock += time.perf_counter() - start
        if steps % args.every == 0:
            curve.append((clock, evaluate(system, world, data)))
            if curve[-1][1] >= args.target:
                break
    reached = curve[-1][1] >= args.target
    return {
        "system": name,
        "rank": world.rank,
        "reached": reached,
        "steps": steps,
        "seconds": clock,
        "accuracy": curve[-1][1],
        "curve": curve,
    }


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--systems", nargs="+", choices=SYSTEMS, required=True, metavar="NAME")
    add("--target", type=float, default=0.97)
    add("--lr", type=float, default=0.1)
    add("--batch", type=int, default=16, help="per rank")
    add("--bits", type=int, default=4)
    add("--every", type=int, default=5, help="steps between evaluations")
    add("--max-steps", type=int, default=400)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main():
    args = parse_args()
    world, data = World(), datasets.load("digits")
    for name in args.systems:
        record(train(name, world, data, args))
    world.close()


if __name__ == "__main__":
    main()
