"""Variance of the gradient estimate while a ResNet trains, per quantizer (NUQSGD, JMLR 2021).

    python benchmarks/papers/gradient_variance.py [--out runs/papers]

The paper's own size, once CIFAR-10 lies in data/ (hours on a CPU; ResNet34: --model resnet34):

    python benchmarks/papers/gradient_variance.py --model resnet110 --dataset cifar10 \\
        --steps 64000 --every 1000

One net is trained by plain SGD. At every k-th step the weights stand still, and for the same K
mini-batch gradients g this is measured, ||.|| over all coordinates:

    SGD         sum_k ||g_k - mean||^2 / (K - 1), the noise of a mini-batch itself
    rounding    E ||Q(g) - g||^2, the mean over K gradients and several draws; relative: / E ||g||^2
    total       E ||Q(g) - mean||^2, with what `mean` of K shares with g_k put right (+ SGD / K)

`mean` stands for the full gradient; it is a mean of mini-batch gradients, since batch norm makes a
gradient of all samples at once another function. For an unbiased Q total = SGD + rounding.

EF-SignSGD is biased and has a memory: its residual is carried along the training, as if it had
encoded each step's gradient, and is the same for the K gradients of a measurement. Its "rounding"
is ||c - g||^2 of what it sends, c = sign-code(g + residual); a large one is delayed, not lost.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import numpy as np
from runner import Experiment
from workload import Training, workload_flags

from decentral import compressors

FIXED_LEVELS = ("qsgd", "qsgdinf", "nuqsgd")
LABELS = {"qsgd": "QSGD", "qsgdinf": "QSGDinf", "nuqsgd": "NUQSGD", "ef-signsgd": "EF-SignSGD"}
COLORS = {
    "SGD": "black",
    "QSGD": "tab:orange",
    "QSGDinf": "tab:green",
    "NUQSGD": "tab:blue",
    "EF-SignSGD": "tab:purple",
}
MARKERS = {"SGD": "", "QSGD": "s", "QSGDinf": "^", "NUQSGD": "o", "EF-SignSGD": "D"}
Row = dict[str, Any]


def squares(array: np.ndarray) -> float:
    """Return the sum of all squares, added in float64."""
    return float(np.square(array).sum(dtype=np.float64))


class Variance:
    """Measures all methods on the same gradients; remembers EF-SignSGD's residual."""

    def __init__(self, bits: int, block_size: int, draws: int, seed: int) -> None:
        self.draws, self.seed = draws, seed
        self.quantizers = {
            (LABELS[name], zero): compressors.from_name(
                name, bits=bits, block_size=block_size, zero_level=zero
            )
            for name in FIXED_LEVELS
            for zero in (True, False)
        }
        self.ef = compressors.from_name("ef-signsgd", block_size=64)

    def remember(self, step: int, gradient: np.ndarray) -> None:
        """Let EF-SignSGD encode a gradient of the training, which updates its residual."""
        self.ef.encode(gradient, (self.seed, step, 0, 0))

    def measure(self, step: int, gradients: np.ndarray) -> list[Row]:
        """Return a row per method for gradients float32[K, d] of the same weights."""
        mean = gradients.mean(axis=0, dtype=np.float64).astype(np.float32)
        square = squares(gradients) / len(gradients)
        sgd = squares(gradients - mean) / (len(gradients) - 1)
        rows = [_row(step, "SGD", True, 0.0, sgd, square)]
        for (label, zero), quantizer in self.quantizers.items():
            pairs = [
                _errors(quantizer, (self.seed, step, k, draw), g, mean)
                for k, g in enumerate(gradients)
                for draw in range(self.draws)
            ]
            rows.append(_from_pairs(step, label, zero, pairs, sgd / len(gradients), square))
        key = (self.seed, step, 0, 0)  # of rank 0, whose residual it is
        pairs = [_errors(copy.deepcopy(self.ef), key, g, mean) for g in gradients]
        rows.append(_from_pairs(step, "EF-SignSGD", True, pairs, sgd / len(gradients), square))
        return rows


def _errors(
    compressor: compressors.Compressor, key: tuple[int, ...], g: np.ndarray, mean: np.ndarray
) -> tuple[float, float]:
    sent = compressor.decode(compressor.encode(g, key))
    return squares(sent - g), squares(sent - mean)


def _from_pairs(
    step: int, label: str, zero: bool, pairs: list[tuple[float, float]], share: float, square: float
) -> Row:
    rounding, total = np.mean(pairs, axis=0)
    return _row(step, label, zero, float(rounding), float(total) + share, square)


def _row(step: int, label: str, zero: bool, rounding: float, total: float, square: float) -> Row:
    return {
        "step": step,
        "method": label,
        "zero_level": zero,
        "rounding": rounding,
        "relative": rounding / square,
        "total": total,
        "gradient_square": square,
    }


def ratio(
    rows: list[Row], column: str, above: tuple[str, bool], below: tuple[str, bool]
) -> list[float]:
    """Return column(above) / column(below) at every measured step."""
    first, second = (
        [r[column] for r in rows if (r["method"], r["zero_level"]) == which]
        for which in (above, below)
    )
    return [a / b for a, b in zip(first, second, strict=True)]


def spread(values: list[float]) -> str:
    """Say the median and the range."""
    return f"{statistics.median(values):.2f} (range {min(values):.2f} to {max(values):.2f})"


def judge(experiment: Experiment, rows: list[Row]) -> None:
    """Say which claims held."""
    claim, median = experiment.claim, statistics.median
    total, rounding = (
        ratio(rows, column, ("QSGD", False), ("NUQSGD", False)) for column in ("total", "rounding")
    )
    claim(
        "without a zero level, QSGD's variance is 15 to 27 times NUQSGD's (ResNet110, ResNet34; "
        "held: the median is 15 or more)",
        median(total) >= 15,
        f"{spread(total)} times; that of the rounding alone {spread(rounding)}",
    )
    for zero, grid in ((False, "without a zero level"), (True, "with the zero level")):
        values = ratio(rows, "total", ("NUQSGD", zero), ("SGD", True))
        claim(
            f"{grid}, NUQSGD's total variance is close to plain SGD's (held: less than twice)",
            median(values) < 2,
            f"{spread(values)} times",
        )
    values = ratio(rows, "rounding", ("QSGD", False), ("QSGD", True))
    claim(
        "ours: leaving out the zero level makes QSGD's rounding about four times as noisy, or more "
        "(a Gaussian vector: 35 instead of 9.3; held: 3 or more)",
        median(values) >= 3,
        f"{spread(values)} times",
    )
    for zero, grid in ((False, "without a zero level"), (True, "with the zero level")):
        values = ratio(rows, "rounding", ("NUQSGD", zero), ("QSGDinf", zero))
        claim(
            f"asked by us: {grid}, NUQSGD rounds with less variance than QSGDinf",
            median(values) < 1,
            f"NUQSGD has {spread(values)} times QSGDinf's",
        )


def draw(experiment: Experiment, rows: list[Row], title: str) -> None:
    """Draw total variance on both grids, and the rounding alone."""
    figure, axes = experiment.figure(columns=3, sharex=True)
    names = ["without zero level (as in the paper's plots)", "with zero level (textbook grid)"]
    for axis, zero, name in zip(axes, (False, True), names, strict=False):
        _curves(axis, rows, "total", lambda r, zero=zero: _on_grid(r, zero))
        axis.set(title=f"total variance, {name}", ylabel="E ||Q(g) - mean||²")
    axes[1].sharey(axes[0])
    for zero, style in ((True, "-"), (False, ":")):
        _curves(axes[2], rows, "relative", lambda r, zero=zero: _rounds(r, zero), style)
    axes[2].set(title="rounding alone; dotted: no zero level", ylabel="E ||Q(g) - g||² / E ||g||²")
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.title.set_fontsize(10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize=11)
    experiment.save(figure)


def _on_grid(row: Row, zero: bool) -> bool:
    return row["zero_level"] == zero or row["method"] in ("SGD", "EF-SignSGD")


def _rounds(row: Row, zero: bool) -> bool:
    return row["zero_level"] == zero and row["method"] != "SGD"


def _curves(axis: Any, rows: list[Row], column: str, shown: Any, style: str = "-") -> None:
    for label, color in COLORS.items():
        mine = [r for r in rows if r["method"] == label and shown(r)]
        if mine:
            x, y = [r["step"] for r in mine], [r[column] for r in mine]
            axis.plot(x, y, style, label=label, color=color, marker=MARKERS[label], markersize=4)


def medians(rows: list[Row]) -> list[Row]:
    """Return a row per method: medians over steps, the zero level as a word."""
    table = []
    for key in dict.fromkeys((r["method"], r["zero_level"]) for r in rows):
        mine = [r for r in rows if (r["method"], r["zero_level"]) == key]
        figures = {c: statistics.median(r[c] for r in mine) for c in ("relative", "total")}
        over_sgd = statistics.median(ratio(rows, "total", key, ("SGD", True)))
        grid = ("yes" if key[1] else "no") if key[0] in map(LABELS.get, FIXED_LEVELS) else "-"
        table.append({"method": key[0], "zero level": grid, **figures, "total / SGD": over_sgd})
    return table


def main(argv: list[str] | None = None) -> None:
    experiment = Experiment("gradient_variance", __doc__)
    workload_flags(experiment, model="resnet110")
    experiment.flag("--steps", type=int, default=220, help="of the training")
    experiment.flag("--every", type=int, default=11, help="steps between measurements")
    experiment.flag("--batches", type=int, default=6, help="K, gradients per measurement")
    experiment.flag("--draws", type=int, default=3, help="roundings per gradient")
    experiment.flag("--bits", type=int, default=4)
    experiment.flag("--block-size", type=int, default=8192)
    args = experiment.parse(argv)
    training = Training(args, args.steps)
    variance = Variance(args.bits, args.block_size, args.draws, args.seed)
    rows: list[Row] = []
    for step in range(1, args.steps + 1):
        if step % args.every == 1 or args.every == 1:
            rows += variance.measure(step, training.gradients(args.batches))
            experiment.say(f"step {step}: SGD {rows[-8]['total']:.3g}")
        loss, gradient = training.step()
        variance.remember(step, gradient)
    experiment.say(f"trained to a loss of {loss:.3f}")
    setting = f"{args.model} on {args.dataset}, {args.bits} bits, block {args.block_size}"
    print(f"{setting}; medians over {len(rows) // 8} measurements\n")
    experiment.print_table(medians(rows))
    experiment.write_csv(rows)
    draw(experiment, rows, f"{setting}, batch {args.batch_size}")
    judge(experiment, rows)
    experiment.close()


if __name__ == "__main__":
    main()
