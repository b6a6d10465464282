"""python -m decentral.simulate: train an MLP on scikit-learn's digits with n virtual workers."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import decentral_topologies

from .. import algorithms, compressors
from .simulation import Simulation

_TEST_EVERY = 5  # of the images, every fifth is for the test
_ROWS = 10  # of the table
_COLUMNS = ("step", "train_loss", "test_accuracy", "consensus_distance", "bytes_sent_per_worker")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m decentral.simulate",
        description="Train an MLP (64-64-10) on scikit-learn's digits with n virtual workers, "
        "which draw their batches from all training images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=int, default=64)
    add("--algorithm", default="ecd-psgd", help=", ".join(algorithms.available()))
    add("--topology", default="ring", help=", ".join(decentral_topologies.available()))
    add("--compressor", default="nuqsgd", help=", ".join(compressors.available()))
    add("--bits", type=int, help="per coordinate; by default the compressor's")
    add("--block-size", type=int, help="coordinates that share a scale")
    add("--steps", type=int, default=200)
    add("--local-steps", type=int, default=1, help="with gossip, steps per exchange")
    add("--batch-size", type=int, default=16, help="per worker")
    add("--lr", type=float, default=0.1)
    add("--momentum", type=float, default=0.9)
    add("--seed", type=int, default=0)
    add("--json", metavar="FILE", help="the results go here, too")
    return parser.parse_args(argv)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images float32 [n, 64] of 0..1, labels int64 [n]) to train and to test with.

    Raises:
        ModuleNotFoundError: scikit-learn, which has the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed; pip install scikit-learn"
        ) from None
    table = load_digits()
    images = torch.from_numpy(table.data).float() / 16
    labels = torch.from_numpy(table.target).long()
    test = torch.arange(len(labels)) % _TEST_EVERY == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def make_simulation(args: argparse.Namespace) -> Simulation:
    """Return the simulation that the flags describe.

    Raises:
        ValueError: a name is not known, or an option out of range.
    """
    given = {"bits": args.bits, "block_size": args.block_size}
    options = {name: value for name, value in given.items() if value is not None}
    compressor = compressors.from_name(args.compressor, **options)
    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Simulation(
        model,
        args.workers,
        lambda: algorithms.from_name(args.algorithm, args.topology, compressor),
        lambda parameters: torch.optim.SGD(parameters, args.lr, args.momentum),
        nn.functional.cross_entropy,
        seed=args.seed,
        local_steps=args.local_steps,
    )


def _row(sim: Simulation, step: int, loss: float, test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    images, labels = test
    with torch.no_grad():
        guess = sim.average()(images).argmax(1)
    return {
        "step": step,
        "train_loss": loss,
        "test_accuracy": float((guess == labels).float().mean()),
        "consensus_distance": sim.consensus_distance(),
        "bytes_sent_per_worker": sum(sim.bytes_sent) / sim.size,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, print a table, and return the results: its last row, what was asked, and the rows.

    train_loss is the mean over workers and the steps since the last row; test_accuracy the averaged
    model's.
    """
    begun = time.perf_counter()
    (images, labels), test = digits()
    sim = make_simulation(args)
    draws = torch.Generator().manual_seed(args.seed)
    rows, losses = [], []
    print("  ".join(_COLUMNS))
    for step in range(1, args.steps + 1):
        batch = torch.randint(len(labels), (args.workers, args.batch_size), generator=draws)
        losses.append(float(sim.step(images[batch], labels[batch]).mean()))
        if step * _ROWS // args.steps > (step - 1) * _ROWS // args.steps:
            rows.append(_row(sim, step, sum(losses) / len(losses), test))
            losses = []
            cells = (f"{rows[-1][name]:>{len(name)}.4g}" for name in _COLUMNS)
            print("  ".join(cells), flush=True)
    asked = {k: v for k, v in vars(args).items() if k != "json"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from KiB
    used = {"wall_s": time.perf_counter() - begun, "peak_memory_gib": peak}
    return {**asked, **sim.stats(), **rows[-1], **used, "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = _arguments(argv)
    try:
        if args.steps < 1 or args.batch_size < 1:
            raise ValueError("expected --steps and --batch-size of at least 1")
        results = run(args)
    except (ValueError, NotImplementedError, ModuleNotFoundError) as error:
        sys.exit(f"decentral.simulate: error: {error}")
    print(
        f"{results['workers']} workers, {results['parameters']} parameters, "
        f"{results['bits_per_parameter']:.2f} bits per parameter, "
        f"{results['bytes_sent_per_worker'] / args.steps:.0f} bytes sent per worker and step; "
        f"{results['wall_s']:.1f} s, {results['peak_memory_gib']:.2f} GiB"
    )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
