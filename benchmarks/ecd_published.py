"""ECD-PSGD as published beside the default, epoch by epoch: the curves of docs/ecd-psgd.md.

python benchmarks/ecd_published.py [--ranks 8] [--epochs 20] [--svg docs/ecd-psgd.svg]
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "ecd_resnet.py"

SETTINGS = {
    "D-PSGD, float32": "--algorithm d-psgd --compressor none",
    "ECD-PSGD, NUQSGD 4 bits": "",
    "ECD-PSGD as published, NUQSGD 4 bits": "--published",
    "ECD-PSGD as published, QSGDinf 8 bits, block 512": (
        "--published --compressor qsgdinf --bits 8 --block-size 512"
    ),
}


def curves(ranks, epochs, flags):
    """Return (train loss, test accuracy) after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mpirun", "-n", str(ranks), sys.executable, str(EXAMPLE), "--log-dir", folder]
        command += ["--epochs", str(epochs), *flags.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        with open(Path(folder) / "curves.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    return [(float(r["train_loss"]), float(r["test_accuracy"])) for r in rows]


def draw(results, path):
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "decentral"
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in results.items():
        epochs = range(1, len(points) + 1)
        left.plot(epochs, [loss for loss, _ in points], marker=".", label=name)
        right.plot(epochs, [100 * accuracy for _, accuracy in points], marker=".")
    left.set_yscale("log")
    for axis, label in ((left, "train loss"), (right, "test accuracy, %")):
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--svg", help="draw the curves into this file")
    args = parser.parse_args()
    results = {name: curves(args.ranks, args.epochs, flags) for name, flags in SETTINGS.items()}
    print("| setting | train loss after the last epoch | test accuracy |\n|---|---|---|")
    for name, points in results.items():
        loss, accuracy = points[-1]
        print(f"| {name} | {loss:.3g} | {accuracy:.3f} |")
    if args.svg:
        draw(results, args.svg)


if __name__ == "__main__":
    main()
