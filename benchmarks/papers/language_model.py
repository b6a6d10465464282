r"""IntSGD and Heuristic IntSGD against SGD on an LSTM language model.

    python benchmarks/papers/language_model.py
    python benchmarks/papers/language_model.py --data-dir wikitext-2 --tokens 0 --vocabulary 33278 \
        --layers 3 --embedding 650 --hidden 650 --dropout 0.4 --ranks 16 --batch-size 64 \
        --epochs 90 --lr 20 --warmup 5

The second command is the scale of Mishchenko et al. (ICLR 2022), with the values in the authors'
code: three layers of 650 units on WikiText-2, 16 workers, a step size that grows to 16 * 1.25
within 5 epochs, gradients clipped to a norm of 0.4 (there before they are averaged, here after).
Ranks are threads here, or processes under mpirun -n 16. By default a small model reads the help
topics of the Python language, which come with it (pydoc_data.topics), so the text depends a little
on the version of Python. Methods start equal and see equal batches.
"""

import math
from dataclasses import dataclass

import torch
from language_data import corpus, streams
from lstm import LanguageModel
from ranks import Ranks
from runner import Experiment
from torch.nn import functional

import decentral


@dataclass(frozen=True)
class Method:
    compressor: str = "none"
    options: tuple = ()


METHODS = {
    "SGD, float32": Method(),
    "IntSGD random, int8": Method("intsgd", (("bits", 8), ("rounding", "random"))),
    "IntSGD deterministic, int8": Method("intsgd", (("bits", 8), ("rounding", "deterministic"))),
    "Heuristic IntSGD, int8": Method("heuristic-intsgd", (("bits", 8),)),
    "IntSGD random, int32": Method("intsgd", (("bits", 32), ("rounding", "random"))),
    "Heuristic IntSGD, int32": Method("heuristic-intsgd", (("bits", 32),)),
}
BASELINE = "SGD, float32"
DEFAULT = list(METHODS)[:4]


class Training:
    """One method and seed on one rank."""

    def __init__(self, comm, text, name, seed, args):
        self.comm, self.args, self.name, self.seed = comm, args, name, seed
        columns = slice(comm.rank * args.batch_size, (comm.rank + 1) * args.batch_size)
        self.train, self.valid, self.test = (
            streams(part, comm.size * args.batch_size)[:, columns]
            for part in (text.train, text.valid, text.test)
        )
        self.model = LanguageModel(
            len(text.words),
            args.embedding,
            args.hidden,
            args.layers,
            args.dropout,
            seed=(seed, comm.rank),
        )
        method = METHODS[name]
        compressor = decentral.compressors.from_name(method.compressor, **dict(method.options))
        algorithm = decentral.algorithms.from_name("allreduce", compressor=compressor)
        sgd = torch.optim.SGD(self.model.parameters(), args.lr)
        self.opt = decentral.DistributedOptimizer(sgd, self.model, algorithm, comm, seed=seed)
        self.steps_per_epoch = math.ceil((len(self.train) - 1) / args.bptt)
        self.steps = 0

    def _batches(self, stream):
        for i in range(0, len(stream) - 1, self.args.bptt):
            end = min(i + self.args.bptt, len(stream) - 1)
            yield stream[i:end], stream[i + 1 : end + 1]

    def _warm_up(self):
        """Let the step size grow linearly from lr / ranks to lr, as the authors do."""
        part = min(1.0, self.steps / max(1, self.args.warmup * self.steps_per_epoch))
        first = self.args.lr / self.comm.size if self.args.warmup else self.args.lr
        for group in self.opt.param_groups:
            group["lr"] = first + (self.args.lr - first) * part

    def epoch(self):
        """Return the mean of this rank's losses."""
        self.model.train()
        total, state = 0.0, None
        for words, target in self._batches(self.train):
            self._warm_up()
            self.opt.zero_grad()
            score, state = self.model(words, state)
            loss = functional.cross_entropy(score.flatten(0, 1), target.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
            self.opt.step()
            self.steps += 1
            total += loss.item()
        return total / self.steps_per_epoch

    @torch.no_grad()
    def perplexity(self, stream):
        """Return the perplexity over all ranks' columns."""
        self.model.eval()
        total, state = 0.0, None
        for words, target in self._batches(stream):
            score, state = self.model(words, state)
            loss = functional.cross_entropy(score.flatten(0, 1), target.flatten(), reduction="sum")
            total += loss.item()
        mean = self._mean(total / (stream[1:].numel()))
        return math.exp(min(mean, 50.0))

    def _mean(self, value):
        return sum(self.comm.all_gather_object(value)) / self.comm.size

    def run(self):
        """Return a row per epoch; "clipped" and bytes are this rank's so far."""
        rows = []
        for epoch in range(1, self.args.epochs + 1):
            loss = self._mean(self.epoch())
            stats = self.opt.stats()
            rows.append(
                {
                    "method": self.name,
                    "seed": self.seed,
                    "epoch": epoch,
                    "steps": stats["steps"],
                    "train_loss": loss,
                    "valid_perplexity": self.perplexity(self.valid),
                    "bytes_per_step": stats["bytes_sent"] / stats["steps"],
                    "clipped": stats.get("clipped", 0),
                    "clipped_part": stats.get("clipped", 0)
                    / (stats["parameters"] * stats["steps"]),
                }
            )
        rows[-1]["test_perplexity"] = self.perplexity(self.test)
        return rows


# ---- what came out ----------------------------------------------------------------------


def over_ranks(of_ranks):
    """Return rank 0's rows, with the coordinates that all ranks have clipped."""
    rows = []
    for row, *others in zip(*of_ranks, strict=True):
        clipped = row["clipped"] + sum(other["clipped"] for other in others)
        part = (row["clipped_part"] + sum(o["clipped_part"] for o in others)) / (len(others) + 1)
        rows.append({"test_perplexity": "", **row, "clipped": clipped, "clipped_part": part})
    return rows


def spread(values):
    """Return (mean, half of the range)."""
    return sum(values) / len(values), (max(values) - min(values)) / 2


def summarize(rows, methods):
    last = max(row["epoch"] for row in rows)
    table = []
    for name in methods:
        ends = [r for r in rows if r["method"] == name and r["epoch"] == last]
        mean, half = spread([r["valid_perplexity"] for r in ends])
        table.append(
            {
                "method": name,
                "steps": ends[0]["steps"],
                "train loss": spread([r["train_loss"] for r in ends])[0],
                "valid. perplexity": mean,
                "+-": half,
                "test perplexity": spread([r["test_perplexity"] for r in ends])[0],
                "bytes per rank and step": round(ends[0]["bytes_per_step"]),
                "clipped coordinates": f"{spread([r['clipped_part'] for r in ends])[0]:.1e}",
            }
        )
    return table


def compared(row, base):
    """Return (relative difference in perplexity, what the seeds' spread explains, a sentence)."""
    key = "valid. perplexity"
    difference = row[key] / base[key] - 1
    noise = max(0.02, (row["+-"] + base["+-"]) / base[key])
    told = f"{row[key]:.4g} +- {row['+-']:.2g} against {base[key]:.4g} +- {base['+-']:.2g}"
    return difference, noise, f"{told}, {difference:+.1%}"


def judge(out, table):
    got = {row["method"]: row for row in table}
    base, sent = got.get(BASELINE), "bytes per rank and step"
    for name, row in got.items():
        if not base or not name.startswith("IntSGD"):
            continue
        difference, noise, told = compared(row, base)
        out.claim(
            f"{name}, reaches the perplexity of float32 SGD in as many steps",
            difference < noise,
            f"{told}; {base[sent] / max(1, row[sent]):.2f} times fewer bytes",
        )
    for width in ("int8", "int32"):
        row, heuristic = got.get(f"IntSGD random, {width}"), got.get(f"Heuristic IntSGD, {width}")
        if row and heuristic:
            difference, noise, told = compared(row, heuristic)
            out.claim(
                f"IntSGD random trains no worse than Heuristic IntSGD, {width}, and needs no "
                "all-reduce of the largest coordinate",
                difference < noise,
                told,
            )


def draw(out, rows, methods):
    figure, (left, right) = out.figure(2)
    for i, name in enumerate(methods):
        style = {"color": f"C{i}", "marker": ".", "ls": "-" if i else "--", "lw": 1.3}
        epochs = sorted({r["epoch"] for r in rows})
        mine = [[r for r in rows if r["method"] == name and r["epoch"] == e] for e in epochs]
        left.plot(epochs, [spread([r["train_loss"] for r in at])[0] for at in mine], **style)
        perplexity = [[r["valid_perplexity"] for r in at] for at in mine]
        right.plot(epochs, [spread(p)[0] for p in perplexity], label=name, **style)
        right.fill_between(
            epochs,
            [min(p) for p in perplexity],
            [max(p) for p in perplexity],
            color=f"C{i}",
            alpha=0.15,
        )
    left.set(xlabel="epoch", ylabel="train loss")
    right.set(xlabel="epoch", ylabel="validation perplexity")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=8)
    out.save(figure)


def parse(argv):
    out = Experiment("language_model", __doc__)
    out.flag("--data-dir", help="folder of wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens")
    out.flag("--text", metavar="FILE", help="any text instead: 80, 10 and 10 %% of it")
    out.flag("--vocabulary", type=int, default=2000, help="most frequent words; others are <unk>")
    out.flag("--tokens", type=int, default=80_000, help="of the training text at most; 0: all")
    out.flag("--methods", nargs="+", default=DEFAULT, choices=list(METHODS))
    out.flag("--ranks", type=int, default=4, help="threads; mpirun's -n has precedence")
    out.flag("--layers", type=int, default=2)
    out.flag("--embedding", type=int, default=64, help="tied to the output if equal to --hidden")
    out.flag("--hidden", type=int, default=64)
    out.flag("--dropout", type=float, default=0.1)
    out.flag("--bptt", type=int, default=30, help="words back to which gradients flow")
    out.flag("--batch-size", type=int, default=8, help="per rank")
    out.flag("--epochs", type=int, default=5)
    out.flag("--lr", type=float, default=20.0, help="of SGD without momentum")
    out.flag("--warmup", type=float, default=0, help="epochs from lr / ranks to lr")
    out.flag("--clip", type=float, default=0.4, help="norm that averaged gradients are clipped to")
    out.flag("--seeds", type=int, default=2)
    return out, out.parse(argv)


def main(argv=None):
    out, args = parse(argv)
    ranks = Ranks(args.ranks)
    text = corpus(args)
    say = out.say if ranks.tell else lambda text: None
    say(text.description)
    rows = []
    for name in args.methods:
        for seed in range(args.seeds):
            mine = over_ranks(
                ranks.call(lambda c, n=name, s=seed: Training(c, text, n, s, args).run())
            )
            rows += mine
            say(f"{name}, seed {seed}: perplexity {mine[-1]['valid_perplexity']:.1f}")
    if ranks.tell:
        table = summarize(rows, args.methods)
        print(text.description)
        out.print_table(table)
        out.write_csv(rows)
        draw(out, rows, args.methods)
        judge(out, table)
        out.close()


if __name__ == "__main__":
    main()
