"""Seconds per training step of a ResNet-50 whose ranks share one GPU, or have one each.

    mpirun -n 4 python benchmarks/gpu_step.py [--batch 32] [--steps 10] [--json FILE]

All systems are ours: float32 and 4-bit NUQSGD by all-reduce, and by gossip on a ring. Images are
random, 3 x 224 x 224. Ranks of one GPU compute in turn, so that a step takes longer the more there
are: what compares is the systems at one number of ranks.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from gpu_found import require_gpu

import decentral
from decentral.communicators import as_communicator

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import resnet

SYSTEMS = {
    "all-reduce, float32": ("allreduce", "none"),
    "all-reduce, 4-bit NUQSGD": ("allreduce", "nuqsgd"),
    "gossip, float32 (D-PSGD)": ("d-psgd", "none"),
    "gossip, 4-bit NUQSGD (ECD-PSGD)": ("ecd-psgd", "nuqsgd"),
}
_WARM_UP = 3


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="images per rank")
    parser.add_argument("--steps", type=int, default=10, help="that are measured")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    if args.batch < 1 or args.steps < 1:
        parser.error("--batch and --steps must be at least 1")
    return args


def resnet50():
    return resnet.build("resnet50", 3, 1000)


def measure(comm, system, model, images, labels, steps):
    """Return seconds of every step, the slowest rank's, and what stats() counted in the last."""
    algorithm, compressor = SYSTEMS[system]
    c = decentral.compressors.from_name(compressor)
    optimizer = decentral.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        model,
        decentral.algorithms.from_name(algorithm, compressor=c),
        comm,
    )
    times, sent = [], 0
    for step in range(_WARM_UP + steps):
        comm.barrier()
        before, start = optimizer.stats()["bytes_sent"], time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        seconds = comm.all_reduce_max(time.perf_counter() - start)
        sent = optimizer.stats()["bytes_sent"] - before
        times += [seconds] * (step >= _WARM_UP)
    stats = optimizer.stats()
    return {"seconds": times, "bytes_sent": sent, "hidden": stats["hidden"]}


def table(results):
    lines = ["| system | s per step | MB sent per rank | hidden |", "|---|---|---|---|"]
    for system, r in results.items():
        seconds = f"{statistics.median(r['seconds']):.4f}"
        lines.append(f"| {system} | {seconds} | {r['bytes_sent'] / 1e6:.1f} | {r['hidden']:.2f} |")
    return "\n".join(lines)


def main():
    args = parse()
    count = require_gpu()
    comm = as_communicator(None)
    device = torch.device("cuda", comm.local_rank % count)
    torch.manual_seed(comm.rank)
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)
    results = {}
    for system in SYSTEMS:
        model = resnet50().to(device)
        results[system] = measure(comm, system, model, images, labels, args.steps)
        del model
        torch.cuda.empty_cache()
    if comm.rank == 0:
        shared = -(-comm.local_size // count)
        where = torch.cuda.get_device_name(device)
        print(
            f"\n{comm.size} ranks, {shared} of them per GPU ({where}), "
            f"batch {args.batch} each, median of {args.steps} steps\n\n{table(results)}",
            flush=True,
        )
        if args.json:
            with open(args.json, "w") as file:
                json.dump({"ranks": comm.size, "ranks_per_gpu": shared, "systems": results}, file)


if __name__ == "__main__":
    main()
