"""Test accuracy of decentralized algorithms by compressor and bits, and on shards that differ.

    python benchmarks/decentralized.py --json runs/decentralized.json [--seeds 3] [--epochs 20]
        [--only "choco-sgd, nuqsgd" ...] [--model resnet20]

Every cell is the example itself under mpirun, a ring of 8 on digits. FILE gets every finished run,
and a run that is in it already is not repeated: start it again after a break, with other cells or
more seeds. A quick look: --epochs 5 --seeds 1 --only "float32" "nuqsgd, 4 bits".
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "ecd_resnet.py"
GUESS = math.log(10)  # the loss of a model that knows nothing of ten digits

ALGORITHMS = {
    "d-psgd": "--algorithm d-psgd",
    "dcd-psgd": "--algorithm dcd-psgd",
    "ecd-psgd as published": "--algorithm ecd-psgd --published",
    "ecd-psgd": "--algorithm ecd-psgd",
    "choco-sgd": "--algorithm choco-sgd",
    "deepsqueeze": "--algorithm deepsqueeze",
    "cocod-sgd": "--algorithm cocod-sgd",
}
COMPRESSORS = ("qsgd", "qsgdinf", "nuqsgd")
BITS = (8, 4, 3, 2)
# The local optimizer of qg-dsgdm has no momentum; d-psgd's is local.
HETEROGENEOUS = {
    "d-psgd": "--algorithm d-psgd --momentum 0.9",
    "d-psgd without momentum": "--algorithm d-psgd --momentum 0",
    "qg-dsgdm": "--algorithm qg-dsgdm --momentum 0",
}
PARTITIONS = {
    "iid": "--partition iid",
    "Dirichlet 1": "--partition dirichlet --alpha 1",
    "Dirichlet 0.1": "--partition dirichlet --alpha 0.1",
}


def quantized():
    """Return {row: {column: flags}}: algorithms and compressors by bits."""
    rows = {"d-psgd, float32": {"32 bits": f"{ALGORITHMS['d-psgd']} --compressor none"}}
    for name, flags in ALGORITHMS.items():
        for codec in COMPRESSORS if name != "d-psgd" else ():  # which sends float32 alone
            rows[f"{name}, {codec}"] = {
                f"{bits} bits": f"{flags} --compressor {codec} --bits {bits}" for bits in BITS
            }
    return rows


def heterogeneous():
    """Return {row: {column: flags}}: momentum by partition, with every rank's own accuracy."""
    return {
        name: {
            column: f"{flags} --compressor none {partition} --evaluate each"
            for column, partition in PARTITIONS.items()
        }
        for name, flags in HETEROGENEOUS.items()
    }


class Runs:
    """Finished runs by their flags, kept in a file if there is one."""

    def __init__(self, path, ranks):
        self._path, self._ranks = path and Path(path), ranks
        self._done = {}
        if self._path and self._path.exists():
            self._done = json.loads(self._path.read_text())

    def get(self, flags):
        """Return what a run gave, None if it has not been done."""
        return self._done.get(self._key(flags))

    def do(self, flags):
        """Return the same, and run the example first where it has not been."""
        if self.get(flags) is None:
            self._done[self._key(flags)] = run(self._ranks, flags)
            self._save()
        return self.get(flags)

    def _key(self, flags):
        return f"-n {self._ranks} {flags}"

    def _save(self):
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_name(self._path.name + ".tmp")
            part.write_text(json.dumps(self._done, indent=1))
            os.replace(part, self._path)  # whole or not at all: a break may come at any time


def run(ranks, flags):
    """Return the example's results, or {"diverged": why} where parameters became NaN or inf."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = ["mpirun", "-n", str(ranks), sys.executable, str(EXAMPLE), *flags.split()]
        done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(path.read_text())
        lines = [line for line in done.stderr.splitlines() if "NotFiniteError" in line]
        if lines:
            return {"diverged": lines[-1]}
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def diverged(result):
    """Tell whether training ended in NaN, or with a loss that is a guess's or worse."""
    return "diverged" in result or not result["train_loss"] < GUESS


def cell(results):
    """Return the text of a cell for the results of its seeds."""
    if not results:
        return ""
    good = [r for r in results if not diverged(r)]
    if not good:
        return "diverges"
    text = f"{statistics.mean(r['test_accuracy'] for r in good):.4f}"
    if "rank_accuracies" in good[0]:
        every = [accuracy for r in good for accuracy in r["rank_accuracies"]]
        text += f" ({statistics.mean(every):.4f}, {min(every):.4f})"
    bad = len(results) - len(good)
    return text + (f", {bad} of {len(results)} diverge" if bad else "")


def table(title, rows, runs, variants):
    """Return a Markdown table of what has been run; a column for each that a row has."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = []
    for name, row in rows.items():
        found = {c: [r for v in variants if (r := runs.get(f"{f} {v}"))] for c, f in row.items()}
        if any(found.values()):
            lines.append(
                f"| {name} | " + " | ".join(cell(found.get(c, [])) for c in columns) + " |"
            )
    head = f"| {title} | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|"
    return "\n".join([head, *lines]) if lines else ""


TABLES = {
    "test accuracy of the averaged model": quantized(),
    "averaged model (ranks' own: mean, least)": heterogeneous(),
}


def cells():
    """Return {"row, column": flags} of both tables."""
    return {
        f"{name}, {column}": flags
        for rows in TABLES.values()
        for name, row in rows.items()
        for column, flags in row.items()
    }


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="keeps finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cells whose names hold one of these"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    chosen = {n: f for n, f in cells().items() if any(part in n for part in args.only)}
    if not chosen:
        sys.exit(f"no cell holds {' or '.join(args.only)}; they are:\n" + "\n".join(cells()))
    runs = Runs(args.json, args.ranks)
    common = f"--epochs {args.epochs} --model {args.model}"
    variants = [f"{common} --seed {seed}" for seed in range(args.seeds)]
    for variant in variants:  # all cells of a seed before the next one: a break leaves a table
        for name, flags in chosen.items():
            text = cell([runs.do(f"{flags} {variant}")])
            print(f"{name}, {variant}: {text}", file=sys.stderr, flush=True)
    print("\n\n".join(filter(None, (table(t, rows, runs, variants) for t, rows in TABLES.items()))))


if __name__ == "__main__":
    main()
