"""Train loss and test accuracy of compressed data-parallel SGD at equal epochs.

    python benchmarks/papers/training.py [--out runs/papers]             ranks are threads
    mpirun -n 8 python benchmarks/papers/training.py                     ranks are MPI's

NUQSGD (JMLR 2021): SuperSGD (float32), QSGD, QSGDinf and NUQSGD with 4 and 8 bits, EF-SignSGD.
IntSGD (ICLR 2022): IntSGD with random and deterministic rounding, Heuristic IntSGD (SwitchML's).
Every run is DistributedOptimizer with the all-reduce; a run is repeated over seeds, which change
the first weights, the order of the data and the draws. The paper's own size, with CIFAR-10 in
data/, 4 GPUs or more and a GPU build of torch:

    mpirun -n 4 python benchmarks/papers/training.py --model resnet110 --dataset cifar10 \\
        --epochs 164 --batch-size 32

"About equal" below means: the means differ by less than one point, or by less than two standard
errors of their difference; with few seeds the latter says that we cannot tell them apart.
"""

from __future__ import annotations

import math
import statistics
import threading
from functools import partial
from typing import Any

import torch
from ranks import Ranks
from runner import Experiment
from torch.nn import functional
from workload import MODELS

import datasets
import decentral
from decentral.communicators import Communicator

# label -> compressor and options, color, line style
METHODS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "SuperSGD": ("none", {}, "black", "-"),
    "QSGD, 4 bits": ("qsgd", {"bits": 4}, "tab:orange", "-"),
    "QSGD, 8 bits": ("qsgd", {"bits": 8}, "tab:orange", ":"),
    "QSGDinf, 4 bits": ("qsgdinf", {"bits": 4}, "tab:green", "-"),
    "QSGDinf, 8 bits": ("qsgdinf", {"bits": 8}, "tab:green", ":"),
    "NUQSGD, 4 bits": ("nuqsgd", {"bits": 4}, "tab:blue", "-"),
    "NUQSGD, 8 bits": ("nuqsgd", {"bits": 8}, "tab:blue", ":"),
    "EF-SignSGD": ("ef-signsgd", {"block_size": 64}, "tab:purple", "-"),
    "IntSGD, random": ("intsgd", {"bits": 8, "rounding": "random"}, "tab:red", "-"),
    "IntSGD, deterministic": ("intsgd", {"bits": 8, "rounding": "deterministic"}, "tab:red", ":"),
    "Heuristic IntSGD": ("heuristic-intsgd", {"bits": 8}, "tab:brown", "-"),
}
Row = dict[str, Any]
_building = threading.Lock()  # torch's generator is one for all threads


class Run:
    """One training on one rank."""

    def __init__(self, comm: Communicator, args: Any, data: Any, label: str, seed: int) -> None:
        self.comm, self.args, self.data, self.seed = comm, args, data, seed
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", comm.local_rank % torch.cuda.device_count())
        with _building:
            torch.manual_seed(seed)
            self.model = MODELS[args.model](data.in_channels, data.num_classes).to(self.device)
        sgd = torch.optim.SGD(
            self.model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay
        )
        # the paper's algorithm 1: one rounding, whatever the number of ranks
        algorithm = decentral.algorithms.from_name(
            "allreduce",
            compressor=make_compressor(label, args.block_size),
            exchange="all-gather",
        )
        self.opt = decentral.DistributedOptimizer(sgd, self.model, algorithm, comm, seed=seed)
        self.shard = datasets.ShardSampler(comm.rank, comm.size, len(data.train), seed)
        self.steps = datasets.batch_count(len(self.shard), args.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.opt, args.lr, total_steps=args.epochs * self.steps, cycle_momentum=False
        )

    def epoch(self, epoch: int) -> float:
        """Return the mean train loss over all ranks."""
        self.model.train()
        total, mine = 0.0, self.shard.epoch(epoch)
        key = (self.seed, epoch, self.comm.rank)
        for images, labels in datasets.batches(self.data.train, mine, self.args.batch_size, key):
            self.opt.zero_grad()
            outputs = self.model(images.to(self.device))
            loss = functional.cross_entropy(outputs, labels.to(self.device))
            loss.backward()
            self.opt.step()
            self.schedule.step()
            total += loss.item()
        return sum(self.comm.all_gather_object(total)) / self.comm.size / self.steps

    def accuracy(self) -> float:
        """Return the test accuracy in percent; the ranks share the images."""
        mine = torch.arange(self.comm.rank, len(self.data.test), self.comm.size)
        correct = 0
        self.model.eval()
        with self.opt.averaged(), torch.no_grad():
            for images, labels in datasets.batches(self.data.test, mine, batch_size=256):
                guess = self.model(images.to(self.device)).argmax(1).cpu()
                correct += int((guess == labels).sum())
        return 100 * sum(self.comm.all_gather_object(correct)) / len(self.data.test)

    def run(self) -> Row:
        """Train; return what the tables and figures need."""
        losses = [self.epoch(k) for k in range(self.args.epochs)]
        accuracy, stats = self.accuracy(), self.opt.stats()
        coordinates = stats["steps"] * stats["parameters"]
        return {
            "losses": losses,
            "loss": losses[-1],
            "accuracy": accuracy,
            "bits_per_coordinate": stats["bits_per_parameter"],
            "bytes_per_step": stats["bytes_sent"] / stats["steps"],
            "clipped": stats.get("clipped", 0) / coordinates,  # share of rank 0's coordinates
        }


def make_compressor(label: str, block_size: int) -> decentral.compressors.Compressor:
    name, options, _, _ = METHODS[label]
    has_blocks = "block_size" in decentral.compressors.options_of(name)
    own = {"block_size": block_size, **options} if has_blocks else options
    return decentral.compressors.from_name(name, **own)


def all_runs(experiment: Experiment, args: Any, ranks: Ranks) -> list[Row]:
    """Run every method with every seed."""
    data = datasets.load(args.dataset, args.data_dir)
    rows: list[Row] = []
    for label in args.methods:
        for seed in range(args.seeds):
            make = partial(Run, args=args, data=data, label=label, seed=seed)
            first, *_ = ranks.call(lambda comm, make=make: make(comm).run())
            rows.append({"method": label, "seed": seed, **first})
        if ranks.tell:
            experiment.say(f"{label}: {_mean(rows, label, 'accuracy'):.2f} %")
    return rows


# ---- what is said of the runs -------------------------------------------------------------------


def _of(rows: list[Row], label: str, column: str) -> list[float]:
    return [r[column] for r in rows if r["method"] == label]


def _mean(rows: list[Row], label: str, column: str) -> float:
    return statistics.mean(_of(rows, label, column))


def _deviation(rows: list[Row], label: str, column: str) -> float:
    values = _of(rows, label, column)
    return statistics.stdev(values) if len(values) > 1 else 0.0


def difference(rows: list[Row], first: str, second: str) -> tuple[float, float]:
    """Return how much better `first` is, in points of accuracy, and two standard errors of it."""
    means = [_mean(rows, label, "accuracy") for label in (first, second)]
    errors = [
        _deviation(rows, label, "accuracy") / math.sqrt(len(_of(rows, label, "accuracy")))
        for label in (first, second)
    ]
    return means[0] - means[1], 2 * math.hypot(*errors)


EQUAL = [  # (first, second, the paper's words)
    ("NUQSGD, 4 bits", "SuperSGD", "NUQSGD: 4 bits match full precision"),
    ("NUQSGD, 8 bits", "SuperSGD", "NUQSGD: 8 bits match full precision"),
    ("EF-SignSGD", "NUQSGD, 8 bits", "NUQSGD: EF-SignSGD about equals 8-bit NUQSGD"),
    ("QSGDinf, 4 bits", "NUQSGD, 4 bits", "ours: QSGDinf is as good as NUQSGD at 4 bits"),
    ("IntSGD, random", "SuperSGD", "IntSGD: int8, random, matches full precision"),
    ("IntSGD, deterministic", "SuperSGD", "IntSGD: int8, deterministic, matches full precision"),
    ("IntSGD, deterministic", "IntSGD, random", "IntSGD: deterministic rounding equals random"),
    ("Heuristic IntSGD", "IntSGD, random", "IntSGD: its adaptive scale equals the heuristic's"),
]


def judge(experiment: Experiment, rows: list[Row]) -> None:
    """Say which claims held, as far as their methods have run."""
    ran = {r["method"] for r in rows}
    for first, second, words in EQUAL:
        if {first, second} <= ran:
            points, error = difference(rows, first, second)
            losses = " against ".join(f"{_mean(rows, m, 'loss'):.4f}" for m in (first, second))
            measured = f"{points:+.2f} points, two standard errors {error:.2f}; loss {losses}"
            experiment.claim(f"{words} in accuracy", abs(points) < max(1, error), measured)
    if {"NUQSGD, 4 bits", "QSGD, 4 bits", "SuperSGD"} <= ran:
        points, error = difference(rows, "NUQSGD, 4 bits", "QSGD, 4 bits")
        measured = f"{points:+.2f} points, two standard errors {error:.2f}"
        held = points > error
        experiment.claim("from its variance: 4-bit NUQSGD beats QSGD in accuracy", held, measured)
        at = ("SuperSGD", "NUQSGD, 4 bits", "QSGD, 4 bits")
        loss = {label: _mean(rows, label, "loss") for label in at}
        experiment.claim(
            "from its variance: 4-bit NUQSGD's train loss is nearer to SuperSGD's than to QSGD's",
            abs(loss[at[1]] - loss[at[0]]) < abs(loss[at[1]] - loss[at[2]]),
            ", ".join(f"{label} {value:.4f}" for label, value in loss.items()),
        )


def summary(rows: list[Row]) -> list[Row]:
    """Return a row per method: means and deviations over seeds."""
    same = ("bits_per_coordinate", "bytes_per_step", "clipped")
    return [
        {
            "method": label,
            "train loss": _mean(rows, label, "loss"),
            "+-": _deviation(rows, label, "loss"),
            "accuracy %": _mean(rows, label, "accuracy"),
            "+- ": _deviation(rows, label, "accuracy"),
            **{column: _mean(rows, label, column) for column in same},
        }
        for label in dict.fromkeys(r["method"] for r in rows)
    ]


def draw(experiment: Experiment, rows: list[Row], title: str) -> None:
    """Draw losses over epochs, and accuracies: a dot per seed, mean and standard deviation."""
    figure, (left, right) = experiment.figure(columns=2)
    labels = list(dict.fromkeys(r["method"] for r in rows))
    for y, label in enumerate(labels):
        _, _, color, style = METHODS[label]
        losses = [statistics.mean(k) for k in zip(*_of(rows, label, "losses"), strict=True)]
        left.plot(range(1, len(losses) + 1), losses, style, color=color, label=label)
        accuracies = _of(rows, label, "accuracy")
        right.plot(accuracies, [y] * len(accuracies), "o", color=color, alpha=0.4, markersize=4)
        mean, deviation = statistics.mean(accuracies), _deviation(rows, label, "accuracy")
        right.errorbar(mean, y, xerr=deviation, fmt="|", color=color, capsize=4, markersize=14)
    left.set(xlabel="epoch", ylabel="train loss, mean over seeds", yscale="log", title=title)
    left.title.set_fontsize(9)
    left.legend(fontsize=7, frameon=False)
    right.set_yticks(range(len(labels)), labels, fontsize=9)
    right.invert_yaxis()
    right.set_xlabel("test accuracy in % (dots: seeds; bar: deviation)")
    experiment.save(figure)


def main(argv: list[str] | None = None) -> None:
    experiment = Experiment("training", __doc__)
    flag = experiment.flag
    flag("--dataset", default="digits", help=", ".join(datasets.DATASETS))
    flag("--data-dir", default="data", help="where cifar10 or the image folders lie")
    flag("--model", default="resnet8", choices=MODELS)
    flag("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    flag("--epochs", type=int, default=6)
    flag("--seeds", type=int, default=3)
    flag("--ranks", type=int, default=8, help="threads; under mpirun, its -n counts")
    flag("--batch-size", type=int, default=16, help="per rank")
    flag("--block-size", type=int, default=8192, help="of QSGD, QSGDinf and NUQSGD")
    flag("--lr", type=float, default=0.1, help="peak of the one-cycle schedule")
    flag("--momentum", type=float, default=0.9)
    flag("--weight-decay", type=float, default=1e-4)
    args = experiment.parse(argv)
    ranks = Ranks(args.ranks)
    rows = all_runs(experiment, args, ranks)
    if ranks.tell:
        present(experiment, args, ranks.size, rows)


def present(experiment: Experiment, args: Any, ranks: int, rows: list[Row]) -> None:
    setting = f"{args.model} on {args.dataset}, {ranks} ranks, {args.epochs} epochs"
    print(f"{setting}, {args.seeds} seeds: means and standard deviations\n")
    experiment.print_table(summary(rows))
    experiment.write_csv([{k: v for k, v in r.items() if k != "losses"} for r in rows])
    curves = [
        {"method": r["method"], "seed": r["seed"], "epoch": epoch, "loss": loss}
        for r in rows
        for epoch, loss in enumerate(r["losses"], start=1)
    ]
    experiment.write_csv(curves, "_curves")
    draw(experiment, rows, setting)
    judge(experiment, rows)
    experiment.close()


if __name__ == "__main__":
    main()
