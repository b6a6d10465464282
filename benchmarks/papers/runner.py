"""What the papers' experiments share: flags, a table, a CSV, a PNG, and a sentence per claim.

python benchmarks/papers/NAME.py [--out DIR] [--help for the rest]
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # the models and data sets that the example uses
# Torch's threads spin while they wait, and on a busy machine take cores from those they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # it is read when torch is imported


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a docstring, and says the defaults."""


class Experiment:
    """One result of a paper: made of rows, drawn once, and judged claim by claim.

    Args:
        name: of the CSV and PNG files in --out.
        description: the first lines of --help.
    """

    def __init__(self, name: str, description: str | None) -> None:
        self.name = name
        self._parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
        self.flag = self._parser.add_argument
        self.flag("--out", metavar="DIR", default="runs/papers", help="where CSV and PNG go")
        self._start = time.perf_counter()

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the flags; the directory for the results exists from now on."""
        args = self._parser.parse_args(argv)
        self._out = Path(args.out)
        self._out.mkdir(parents=True, exist_ok=True)
        return args

    def say(self, text: str) -> None:
        """Tell how far it is, on standard error."""
        print(f"[{time.perf_counter() - self._start:5.0f} s] {text}", file=sys.stderr, flush=True)

    def write_csv(self, rows: Sequence[dict[str, Any]], suffix: str = "") -> None:
        """Write all figures, unrounded, to NAME[suffix].csv; rows have the same keys."""
        with open(self._out / f"{self.name}{suffix}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def print_table(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print rows as a Markdown table, floats with four digits."""
        cells = [[_text(value) for value in row.values()] for row in [_heads(rows), *rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        for line in cells:
            print("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |")

    def figure(self, columns: int = 1, rows: int = 1, **options: Any) -> Any:
        """Return (figure, axes): axes as an array if there are several."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, **options)
        for axis in axes.flat if columns * rows > 1 else [axes]:
            axis.grid(alpha=0.3)
        return figure, axes

    def save(self, figure: Any, suffix: str = "") -> None:
        """Write a figure to NAME[suffix].png."""
        figure.savefig(self._out / f"{self.name}{suffix}.png", dpi=110)

    def claim(self, text: str, held: bool, measured: str) -> None:
        """Say whether a claim of the paper held here, and by which figures."""
        print(f"\n{'HELD' if held else 'DID NOT HOLD'}: {text}\n    here: {measured}")

    def close(self) -> None:
        """Say where the files are, how long it took and on what."""
        took = time.perf_counter() - self._start
        print(f"\n{self._out / self.name}*.csv, .png; {took:.0f} s on {platform.machine()}")


def _heads(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {key: key for key in rows[0]}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
