"""What a run shows: a progress bar, a table, TensorBoard scalars and a picture."""

from __future__ import annotations

import csv
import os
import time
from itertools import islice
from types import TracebackType
from typing import Any

import paths

Row = tuple[int, int, float, float]
COLUMNS = ("step", "bytes_sent", "train_loss", "test_accuracy")
NOT_SHOWN = ("state_sha256",)  # in the table
UNITS = ("B", "kB", "MB", "GB", "TB")


def human(nbytes: float) -> str:
    """Return a number of bytes with a decimal unit, e.g. 1.25 MB."""
    for unit in UNITS[:-1]:
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} {UNITS[-1]}"


class Progress:
    """A bar over steps with loss, images per second of this rank, and bytes it sent."""

    def __init__(self, total: int, done: int, show: bool) -> None:
        self._bar: Any = None
        if show:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, unit="step", mininterval=1.0, dynamic_ncols=True
            )
        self._start, self._images = time.perf_counter(), 0

    def step(self, loss: float, images: int, bytes_sent: int) -> None:
        """Advance by one step."""
        if self._bar is None:
            return
        self._images += images
        rate = self._images / (time.perf_counter() - self._start)
        text = f"loss {loss:.3f}, {rate:.0f} images/s per rank, sent {human(bytes_sent)}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Log:
    """Scalars for TensorBoard, curves.csv, and curves.png at last; nothing without a directory.

    A run that goes on from a `step` keeps what was logged up to it; from 0 on it begins anew.

    Raises:
        OSError: the directory cannot be written.
        ValueError: its curves.csv is something else.
    """

    def __init__(self, directory: str | None, step: int) -> None:
        self._directory = directory
        self._rows: list[Row] = []
        if directory:
            from torch.utils.tensorboard import SummaryWriter

            with paths.of_flag("--log-dir", directory, paths.WRITABLE):
                self._writer = SummaryWriter(directory, purge_step=step + 1)
                self._path = os.path.join(directory, "curves.csv")
                self._rows = rows_until(step, self._path) if step else []
                write_rows(self._rows, self._path)

    def write(self, loss: float | None, accuracy: float, stats: dict[str, Any]) -> None:
        """Add one point."""
        if not self._directory or loss is None:
            return
        step, sent = stats["steps"], stats["bytes_sent"]
        self._rows.append((step, sent, loss, accuracy))
        scalars = {
            "train_loss": loss,
            "test_accuracy": accuracy,
            "bytes_sent": sent,
            "consensus_distance": stats["consensus_distance"],
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        write_rows(self._rows, self._path)

    def close(self) -> None:
        """Draw the curves."""
        if self._directory:
            self._writer.close()
            if self._rows:
                draw_curves(self._rows, os.path.join(self._directory, "curves.png"))


def rows_until(step: int, path: str) -> list[Row]:
    """Return the rows of a curves.csv up to a step; none without such a file.

    Raises:
        ValueError: it is no such file.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, newline="") as file:
            lines = islice(csv.reader(file), 1, None)
            rows = [(int(at), int(sent), float(x), float(y)) for at, sent, x, y in lines]
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path}: expected lines of {','.join(COLUMNS)}, got: {error}; remove it, or take "
            "another --log-dir"
        ) from error
    return [row for row in rows if row[0] <= step]


def write_rows(rows: list[Row], path: str) -> None:
    """Write a curves.csv, whole or not at all: a run may end at any moment."""
    part = f"{path}.tmp"
    with open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    os.replace(part, path)


def draw_curves(rows: list[Row], path: str) -> None:
    """Draw loss and accuracy against steps and against bytes sent; rows of (step, bytes, both)."""
    from matplotlib.figure import Figure

    steps, sent, loss, accuracy = zip(*rows, strict=True)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    columns = ((steps, "steps"), ([b / 1e6 for b in sent], "MB sent per rank"))
    curves = ((loss, "train loss"), (accuracy, "test accuracy"))
    for row, (values, name) in zip(axes, curves, strict=True):
        for axis, (x, label) in zip(row, columns, strict=True):
            axis.plot(x, values, marker=".")
            axis.set_xlabel(label)
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def print_table(results: dict[str, Any]) -> None:
    """Print the results, one line each, but for those that only a program compares."""
    shown = {name: value for name, value in results.items() if name not in NOT_SHOWN}
    width = max(map(len, shown))
    for name, value in shown.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        print(f"{name:<{width}}  {text}", flush=True)
