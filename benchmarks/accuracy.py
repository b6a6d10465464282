"""Test accuracy and bytes of the main job over seeds and settings: docs/results.md and its picture.

    python benchmarks/accuracy.py [--seeds 5] [--ranks 8] [--epochs 20] [--only NAME ...]
        [--svg docs/accuracy.svg]

Every run is the example itself under mpirun; about half a minute each on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "ecd_resnet.py"

SETTINGS = {
    "D-PSGD, float32, ring": "--algorithm d-psgd --compressor none",
    "ECD-PSGD, NUQSGD 4 bits, ring": "",
    "ECD-PSGD, NUQSGD 4 bits, Huffman, ring": "--coding huffman",
    "ECD-PSGD, NUQSGD 4 bits, torus": "--topology torus",
    "all-reduce, float32": "--algorithm allreduce --compressor none",
    "all-reduce, NUQSGD 4 bits": "--algorithm allreduce --compressor nuqsgd",
    "all-reduce, QSGDinf 4 bits": "--algorithm allreduce --compressor qsgdinf",
    "all-reduce, EF-SignSGD": "--algorithm allreduce --compressor ef-signsgd",
    "all-gather, NUQSGD 4 bits": "--algorithm allreduce --compressor nuqsgd --exchange all-gather",
    "all-gather, QSGDinf 4 bits": (
        "--algorithm allreduce --compressor qsgdinf --exchange all-gather"
    ),
    "all-gather, QSGD 4 bits": "--algorithm allreduce --compressor qsgd --exchange all-gather",
    "all-gather, EF-SignSGD": (
        "--algorithm allreduce --compressor ef-signsgd --exchange all-gather"
    ),
    "all-reduce, IntSGD int8": "--algorithm allreduce --compressor intsgd",
    "all-reduce, IntSGD int8, deterministic": (
        "--algorithm allreduce --compressor intsgd --rounding deterministic"
    ),
    "IntDIANA int8": "--algorithm intdiana --compressor intsgd",
    "ECD-PSGD as published, NUQSGD 4 bits, ring": "--published",
}


def run(ranks, epochs, seed, flags):
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = ["mpirun", "-n", str(ranks), sys.executable, str(EXAMPLE), "--json", str(result)]
        command += ["--epochs", str(epochs), "--seed", str(seed), *flags.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return json.loads(result.read_text())


def table(results):
    first = next(iter(results.values()))
    base = first[0]["bytes_sent_per_rank_per_step"]
    lines = ["| setting | test accuracy, mean | per seed | bytes per rank, step | of the first |"]
    lines.append("|---|---|---|---|---|")
    for name, runs in results.items():
        accuracies = [r["test_accuracy"] for r in runs]
        sent = runs[0]["bytes_sent_per_rank_per_step"]
        each = " ".join(f"{a:.3f}" for a in accuracies)
        mean = statistics.mean(accuracies)
        lines.append(f"| {name} | {mean:.4f} | {each} | {sent:,.0f} | {sent / base:.4f} |")
    return "\n".join(lines)


def draw(results, path):
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "decentral"  # the same file for the same figures
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(8.5, 0.9 + 0.26 * len(results)), layout="constrained")
    axis = figure.subplots()
    names = list(results)
    sent = [results[name][0]["bytes_sent_per_rank_per_step"] / 1e6 for name in names]
    bars = axis.barh(names, sent, color="tab:blue", alpha=0.7)
    labels = []
    for name, nbytes in zip(names, sent, strict=True):
        mean = 100 * statistics.mean(r["test_accuracy"] for r in results[name])
        labels.append(f"{nbytes:.2f} MB, accuracy {mean:.1f} %")
    axis.bar_label(bars, labels, padding=4, fontsize=9)
    axis.set_xlim(0, 1.6 * max(sent))
    axis.set_xlabel("MB sent per rank and step")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=[""], help="settings whose names hold these")
    parser.add_argument("--svg", help="draw bytes and accuracy into this file")
    args = parser.parse_args()
    results = {}
    chosen = {n: f for n, f in SETTINGS.items() if any(part in n for part in args.only)}
    for name, flags in chosen.items():
        seeds = range(args.seeds)
        results[name] = [run(args.ranks, args.epochs, seed, flags) for seed in seeds]
        wall = max(r["wall_s"] for r in results[name])
        print(f"{name}: done, training took at most {wall:.0f} s", file=sys.stderr, flush=True)
    print(table(results))
    if args.svg:
        draw(results, args.svg)


if __name__ == "__main__":
    main()
