"""The pictures of docs/choosing.md: accuracy against bytes, and spectral gap against workers.

    python benchmarks/choosing.py --svg DIR [--workers 16] [--steps 400] [--json FILE]

Accuracy comes from `python -m decentral.simulate` (an MLP on digits), bytes are exact. The third
picture, seconds per step against workers, is benchmarks/scaling.py's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import decentral_topologies

SYSTEMS = {
    "all-reduce, float32": "--algorithm allreduce --compressor none",
    "all-reduce, NUQSGD 4 bits": "--algorithm allreduce --compressor nuqsgd --bits 4",
    "all-reduce, IntSGD int8": "--algorithm allreduce --compressor intsgd --bits 8",
    "all-reduce, CoCoD NUQSGD 4 bits": "--algorithm cocod-sgd --compressor nuqsgd --bits 4",
    "ring, D-PSGD float32": "--algorithm d-psgd --compressor none",
    "ring, ECD NUQSGD 4 bits": "--algorithm ecd-psgd --compressor nuqsgd --bits 4",
    "ring, DCD NUQSGD 4 bits": "--algorithm dcd-psgd --compressor nuqsgd --bits 4",
    "ring, CHOCO NUQSGD 4 bits": "--algorithm choco-sgd --compressor nuqsgd --bits 4",
    "ring, CHOCO QSGDinf 2 bits": "--algorithm choco-sgd --compressor qsgdinf --bits 2",
    "torus, ECD NUQSGD 4 bits": (
        "--algorithm ecd-psgd --topology torus --compressor nuqsgd --bits 4"
    ),
    "one-peer exponential, D-PSGD float32": (
        "--algorithm d-psgd --topology one-peer-exponential --compressor none"
    ),
    "ring, ECD NUQSGD 4 bits, 4 local steps": (
        "--algorithm ecd-psgd --compressor nuqsgd --bits 4 --local-steps 4"
    ),
}
SIZES = (4, 8, 16, 32, 64, 128, 256, 512)


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--svg", metavar="DIR", type=Path, help="write the pictures here")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args(argv)


def simulate(flags, workers, steps):
    """Return the results of a simulation, with its rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "decentral.simulate", "--json", str(path), *flags.split()]
        counts = ["--workers", str(workers), "--steps", str(steps)]
        subprocess.run([*command, *counts], check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())


def gaps(sizes=SIZES):
    """Return {topology: {workers: spectral gap}}, of the graphs that exist."""
    found = {}
    for name in decentral_topologies.available():
        known = [n for n in sizes if name in decentral_topologies.available(n)]
        found[name] = {n: decentral_topologies.from_name(name, n).spectral_gap() for n in known}
    return found


def draw_accuracy(results, path):
    """Draw the error of the averaged model against the bytes that a worker has sent."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(9, 5), layout="constrained").subplots()
    for name, result in results.items():
        rows = result["rows"]
        sent = [row["bytes_sent_per_worker"] / 1e6 for row in rows]
        axes.loglog(sent, [1 - row["test_accuracy"] for row in rows], marker=".", label=name)
    axes.set_xlabel("MB sent per worker")
    axes.set_ylabel("test error of the averaged model")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    axes.figure.savefig(path)


def draw_gaps(found, path):
    """Draw the spectral gap against the number of workers."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(9, 5), layout="constrained").subplots()
    for name, by_size in found.items():
        style = "--" if name == "one-peer-exponential" else "-"
        axes.loglog(list(by_size), list(by_size.values()), style, marker=".", label=name)
    axes.set_xlabel("workers")
    axes.set_ylabel("spectral gap (one-peer: of a period)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    axes.figure.savefig(path)


def main():
    args = parse_args()
    results = {name: simulate(flags, args.workers, args.steps) for name, flags in SYSTEMS.items()}
    print(f"| {args.workers} workers, {args.steps} steps | test accuracy | MB sent | distance |")
    print("|---|---|---|---|")
    for name, result in results.items():
        sent = result["bytes_sent_per_worker"] / 1e6
        distance = result["consensus_distance"]
        print(f"| {name} | {result['test_accuracy']:.3f} | {sent:.3g} | {distance:.2g} |")
    found = gaps()
    if args.svg:
        draw_accuracy(results, args.svg / "accuracy-bytes.svg")
        draw_gaps(found, args.svg / "gap.svg")
    if args.json:
        Path(args.json).write_text(json.dumps({"accuracy": results, "gaps": found}, indent=2))


if __name__ == "__main__":
    main()
