"""IntSGD, IntDIANA and VR-IntDIANA on logistic regression over data that differ between ranks.

    python benchmarks/papers/logistic_regression.py
    python benchmarks/papers/logistic_regression.py --dataset a5a --data-dir DIR

The study of Mishchenko et al. (ICLR 2022): l2-regularized logistic regression, rows normalized, in
contiguous parts on 12 ranks. Ranks are threads here, or processes under mpirun -n 12. By default on
scikit-learn's digits, odd or even, sorted by digit, so that no two ranks have the same digits; a5a,
mushrooms, w8a and real-sim are files of LibSVM's site, in their own order. The step size is the
one in the authors' code, and integers travel as 32 bits, so that what they would need is seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from logistic_problem import L2, Problem, load
from ranks import Ranks
from runner import Experiment
from torch import nn
from torch.nn import functional

import decentral
from decentral.lsvrg import LSVRG

INT8 = 2**7


@dataclass(frozen=True)
class Method:
    algorithm: str
    compressor: str
    full: bool  # full local gradients, or batches
    variance_reduced: bool = False


METHODS = {
    "GD": Method("allreduce", "none", full=True),
    "IntGD": Method("allreduce", "intsgd", full=True),
    "IntDIANA": Method("intdiana", "intsgd", full=True),
    "SGD": Method("allreduce", "none", full=False),
    "IntSGD": Method("allreduce", "intsgd", full=False),
    "L-SVRG": Method("allreduce", "none", full=False, variance_reduced=True),
    "VR-IntDIANA": Method("intdiana", "intsgd", full=False, variance_reduced=True),
}


# ---- training on one rank ---------------------------------------------------------------


class Product(torch.autograd.Function):
    """A @ x for a dense or CSR A of float32."""

    @staticmethod
    def forward(ctx, x, A):
        ctx.A = A
        return torch.from_numpy(A @ x.detach().numpy())

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(ctx.A.T @ g.numpy()), None


class Model(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(part.d))
        self.A, self.l2 = part.A.astype(np.float32), part.l2
        self.b = part.b.astype(np.float32)

    def loss(self, rows=slice(None)):
        margins = torch.from_numpy(self.b[rows]) * Product.apply(self.x, self.A[rows])
        return functional.softplus(-margins).mean() + self.l2 / 2 * (self.x @ self.x)


def batch_size(method, m, args):
    return m if method.full else max(1, int(args.batch * m))


def step_size(problem, parts, method, args):
    """Return the authors' 1 / (2 (L + 27/16 max_i L_i / n)), L_i being that of a batch."""
    if args.lr:
        return args.lr
    largest = max(part.batch_L(batch_size(method, part.m, args)) for part in parts)
    return 1 / (2 * (problem.L + 27 / 16 * largest / len(parts)))


def train(comm, part, gap, name, lr, args):
    """Return this rank's rows: iteration, gap(x), and the largest integer since the last row."""
    method = METHODS[name]
    options = {} if method.compressor == "none" else {"bits": 32, "beta": args.beta}
    compressor = decentral.compressors.from_name(method.compressor, **options)
    algorithm = decentral.algorithms.from_name(method.algorithm, compressor=compressor)
    model = Model(part)
    sgd = torch.optim.SGD(model.parameters(), lr)
    opt = decentral.DistributedOptimizer(sgd, model, algorithm, comm, seed=args.seed)
    batch = batch_size(method, part.m, args)
    lsvrg = LSVRG(model, model.loss, model.loss, batch / part.m, args.seed)
    rng = np.random.default_rng((args.seed, comm.rank))
    rows, largest = [], 0
    for k in range((args.steps if method.full else args.batch_steps) + 1):
        if k % args.every == 0:  # ranks have the same x: rank 0 evaluates it for all
            now = gap(model.x.detach().double().numpy()) if comm.rank == 0 else None
            rows.append({"method": name, "iteration": k, "gap": now, "largest_integer": largest})
            largest = 0
        opt.zero_grad()
        sample = slice(None) if method.full else rng.integers(part.m, size=batch)
        if method.variance_reduced:
            lsvrg.backward(sample)
        else:
            model.loss(sample).backward()
        opt.step()
        largest = max(largest, int(opt.stats().get("largest_integer", 0)))
    return rows


def over_ranks(of_ranks):
    """Return rank 0's rows with the largest integer of any rank."""
    return [
        {**rows[0], "largest_integer": max(row["largest_integer"] for row in rows)}
        for rows in zip(*of_ranks, strict=True)
    ]


# ---- what came out ----------------------------------------------------------------------


def line(rows):
    """Fit log10(gap) = a - c k above what float32 can tell; return (c, R^2), Nones if none."""
    start = rows[0]["gap"]
    points = [(r["iteration"], r["gap"]) for r in rows if 1e-11 < r["gap"] < 1e-2 * start]
    if len(points) < 4 or rows[-1]["gap"] > 0.1 * points[0][1]:
        return None, None
    k, y = np.array(points).T
    y = np.log10(y)
    slope, a = np.polyfit(k, y, 1)
    return -slope, 1 - np.var(y - slope * k - a) / np.var(y)


def summary(name, rows, lr):
    slope, r2 = line(rows)
    tail = rows[-max(1, len(rows) // 10) :]
    return {
        "method": name,
        "step size": lr,
        "iterations": rows[-1]["iteration"],
        "f(x) - f*": rows[-1]["gap"],
        "iterations per factor 10": 1 / slope if slope else "no line",
        "R^2 of that line": r2 if slope else "",
        "largest integer, last tenth": max(r["largest_integer"] for r in tail),
        "largest integer ever": max(r["largest_integer"] for r in rows),
    }


def draw(out, rows):
    figure, axes = out.figure(2, 2)
    for name, method in METHODS.items():
        mine = [r for r in rows if r["method"] == name]
        if not mine:
            continue
        column, k = axes[:, 0 if method.full else 1], [r["iteration"] for r in mine]
        style = {"label": name, "lw": 1.4, "ls": "--" if method.compressor == "none" else "-"}
        color = {"none": "0.4", "intsgd": "C3"}[method.compressor]
        color = "C0" if method.algorithm == "intdiana" else color
        color = "C2" if name == "SGD" else color
        column[0].semilogy(k, [max(r["gap"], 1e-16) for r in mine], color=color, **style)
        if method.compressor != "none":
            integers = [max(r["largest_integer"], 0.5) for r in mine[1:]]
            column[1].semilogy(k[1:], integers, color=color, **style)
    for column, title in zip(axes.T, ("full local gradients", "batches"), strict=True):
        column[0].set(title=title, ylabel="f(x) - f*")
        column[1].set(xlabel="iteration", ylabel="largest integer of any rank")
        column[1].axhline(INT8, color="k", lw=0.8, ls=":", label="2^7")
        column[1].set_ylim(top=6 * max(INT8, column[1].get_ylim()[1]))
        column[0].legend(fontsize=8)
        column[1].legend(fontsize=8, loc="upper left", ncols=3)
    out.save(figure)


def judge(out, table):
    got = {row["method"]: row for row in table}
    ever, tail = "largest integer ever", "largest integer, last tenth"
    if "IntGD" in got:
        row = got["IntGD"]
        out.claim(
            "IntGD's largest integer grows without bound, past 2^7, as the gap closes",
            row[tail] > INT8,
            f"{row[tail]} in the last tenth of the iterations, at a gap of {row['f(x) - f*']:.1e}",
        )
    for name, exact in {"IntDIANA": "GD", "VR-IntDIANA": "L-SVRG"}.items():
        if name not in got:
            continue
        row = got[name]
        out.claim(f"{name}'s integers stay under 2^7", row[ever] < INT8, f"at most {row[ever]}")
        if exact in got:
            judge_pace(out, row, got[exact])


def judge_pace(out, row, exact):
    paces = [r["iterations per factor 10"] for r in (row, exact)]
    r2, gap = row["R^2 of that line"], row["f(x) - f*"]
    linear = "no line" not in paces and r2 > 0.95 and paces[0] < 2 * paces[1]
    told = [p if p == "no line" else f"a factor of 10 in {p:.0f} iterations" for p in paces]
    out.claim(
        f"{row['method']} converges linearly",
        linear,
        f"{told[0]} ({exact['method']} in floats: {told[1]})"
        + (f", R^2 of the line {r2:.4f}" if r2 else "")
        + f", down to {gap:.1e}",
    )
    if linear and gap < 1e-11:
        print("    (the gap ends there since x and its gradients are float32)")


def parse(argv):
    out = Experiment("logistic_regression", __doc__)
    out.flag("--dataset", default="digits", choices=list(L2))
    out.flag("--data-dir", help="folder of LibSVM's files: a5a or a5a.txt, ...")
    out.flag("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    out.flag("--ranks", type=int, default=12, help="threads; mpirun's -n has precedence")
    out.flag("--l2", type=float, help="by default the paper's for its sets, 5e-3 for ours")
    out.flag("--lr", type=float, help="step size instead of the authors' formula")
    out.flag("--beta", type=float, default=0.9, help="of IntSGD's r_k; 0 in the authors' study")
    out.flag("--batch", type=float, default=0.05, help="part of the local data in a batch")
    out.flag("--steps", type=int, default=1000, help="with full local gradients")
    out.flag("--batch-steps", type=int, default=1200, help="with batches")
    out.flag("--every", type=int, default=10, help="iterations between rows of the CSV")
    out.flag("--seed", type=int, default=0)
    return out, out.parse(argv)


def run(name, problem, parts, f_min, ranks, args):
    """Return (rows, summary) of a method."""
    lr = step_size(problem, parts, METHODS[name], args)

    def rank(comm):
        return train(comm, parts[comm.rank], lambda x: problem.value(x) - f_min, name, lr, args)

    rows = over_ranks(ranks.call(rank))
    return rows, summary(name, rows, lr)


def main(argv=None):
    out, args = parse(argv)
    ranks = Ranks(args.ranks)
    A, b = load(args.dataset, args.data_dir)
    usable = len(b) // ranks.size * ranks.size  # f is the mean of the f_i, as in the paper
    problem = Problem(A[:usable], b[:usable], args.l2 or L2[args.dataset])
    parts = [problem.part(i, ranks.size) for i in range(ranks.size)]
    x_min = problem.minimum()
    f_min, slope = problem.value(x_min), np.linalg.norm(problem.gradient(x_min))
    say = out.say if ranks.tell else lambda text: None
    say(f"{args.dataset}: {problem.m} rows, d = {problem.d}, l2 = {problem.l2}, n = {ranks.size}")
    say(f"L = {problem.L:.3g}, f* = {f_min:.15g} with ||grad f(x*)|| = {slope:.1e}")
    rows, table = [], []
    for name in args.methods:
        mine, row = run(name, problem, parts, f_min, ranks, args)
        rows, table = rows + mine, [*table, row]
        say(f"{name}: {row['f(x) - f*']:.2e} after {row['iterations']} iterations")
    if ranks.tell:
        out.print_table(table)
        out.write_csv(rows)
        draw(out, rows)
        judge(out, table)
        out.close()


if __name__ == "__main__":
    main()
