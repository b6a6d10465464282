"""Measured variance and code length against their bounds (QSGD, NeurIPS 2017; NUQSGD, JMLR 2021).

    python benchmarks/papers/bounds.py [--out runs/papers]

Every quantizer, 2 to 8 bits, blocks of 64 to 65536 coordinates; Gaussian vectors, adversarial ones
(flat, one-hot, spike, geometric, powers of two; signs are random) and the gradient of a ResNet that
has trained for some steps. The paper's size: --model resnet110 --dataset cifar10 --steps 10000.

theory.py has the bounds. Fixed, Elias and Huffman bits are those of code words and a norm per block
(not of Huffman's table, 4 bits per symbol). The entropy is the zero-order one of single codes; our
Huffman symbols are pairs or more, which is how 1 bit per coordinate, or it, can be undercut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from runner import Experiment
from theory import (
    NORM_BITS,
    elias_bound,
    huffman_bound,
    nonzeros_bound,
    theorem_3_2,
    variance_bound,
)
from workload import Training, workload_flags

from decentral import compressors
from decentral_kernels import reference
from decentral_kernels.coding import Coder

KINDS = ("elias", "huffman")
LABELS = {"qsgd": "QSGD", "nuqsgd": "NUQSGD", "qsgdinf": "QSGDinf"}
SHOWN = (4, 8192)  # bits, block size: the paper's, of which the tables and figures are
Row = dict[str, Any]


# ---- the data -----------------------------------------------------------------------------------


def adversarial() -> dict[str, Callable[[int], np.ndarray]]:
    """Return, by name, the magnitudes of a block of d coordinates."""
    return {
        "flat": np.ones,
        "one-hot": lambda d: np.eye(1, d)[0],
        "spike": lambda d: np.concatenate([[1], np.full(d - 1, d**-0.5)]),
        "geometric": lambda d: 2 ** (-20 * np.arange(d) / d),
        "powers of 2": lambda d: 2.0 ** -(np.arange(d) % 24),
    }


def vectors(gradient: np.ndarray, numel: int, d: int) -> dict[str, np.ndarray]:
    """Return whole blocks of d coordinates of every kind, float32[about numel]."""
    numel = max(1, numel // d) * d
    rng = np.random.default_rng((d, numel))
    signs = rng.choice([-1.0, 1.0], numel)
    made = {"Gaussian": rng.standard_normal(numel), "gradient": np.resize(gradient, numel)}
    for name, block in adversarial().items():
        made[name] = signs * np.tile(block(d), numel // d)
    return {name: v.astype(np.float32) for name, v in made.items()}


# ---- the measurements ---------------------------------------------------------------------------


def errors(compressor: Any, x: np.ndarray, draws: int) -> tuple[float, float, float]:
    """Return the relative variance, its standard error, and the share of nonzeros."""
    squares, nonzeros = [], 0
    for draw in range(draws):
        sent = compressor.decode(compressor.encode(x, (0, draw, 0, 0)))
        squares.append(np.square(sent - x).sum(dtype=np.float64))
        nonzeros += np.count_nonzero(sent)
    relative = np.array(squares) / np.square(x).sum(dtype=np.float64)
    error = relative.std(ddof=1) / math.sqrt(draws)
    return float(relative.mean()), float(error), nonzeros / draws / x.size


def code_lengths(compressor: Any, x: np.ndarray) -> dict[str, float]:
    """Return bits per coordinate, norms included, and the zero-order entropy of the codes."""
    bits, payload = compressor.bits, compressor.encode(x, (1, 0, 0, 0))
    scales, packed = compressor._sections(payload, x.size)
    norms = NORM_BITS * len(scales) / x.size
    codes = reference.unpack(packed, x.size, bits)
    symbols = np.where(codes & (2 ** (bits - 1) - 1), codes, 0)  # a zero has no sign
    share = np.bincount(symbols) / x.size
    coded = {
        kind: Coder(kind, bits).nbits(packed, x.size) / x.size for kind in ("elias", "huffman")
    }
    return {
        "fixed": 8 * packed.size / x.size + norms,
        **{kind: nbits + norms for kind, nbits in coded.items()},
        "entropy": float(-(share[share > 0] * np.log2(share[share > 0])).sum()),
    }


def measure(name: str, bits: int, d: int, kind: str, x: np.ndarray, draws: int) -> Row:
    compressor = compressors.from_name(name, bits=bits, block_size=d)
    s = 2 ** (bits - 1) - (2 if name == "nuqsgd" else 1)
    variance, error, nonzeros = errors(compressor, x, draws)
    return {
        "method": LABELS[name],
        "bits": bits,
        "block_size": d,
        "data": kind,
        "variance": variance,
        "standard_error": error,
        "variance_bound": variance_bound(name, s, d),
        "nonzeros": nonzeros,
        "nonzeros_bound": nonzeros_bound(name, s, d) / d,
        **code_lengths(compressor, x),
        "elias_bound": elias_bound(name, s, d) / d,
        "huffman_bound": huffman_bound(name, s, d) / d,
        "theorem_3_2": theorem_3_2(name, s, d) / d,
    }


# ---- what is said of them -----------------------------------------------------------------------


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [r for r in rows if all(r[key] == value for key, value in wanted.items())]


def judge(experiment: Experiment, rows: list[Row]) -> None:
    """Say which bounds held; what was drawn may exceed the expected by five standard errors."""
    for label in LABELS.values():
        mine = select(rows, method=label)
        excess = [r["variance"] - 5 * r["standard_error"] - r["variance_bound"] for r in mine]
        experiment.claim(
            f"{label}'s variance is within its bound, on all {len(mine)} settings",
            max(excess) <= 1e-6,
            _nearest(mine, "variance"),
        )
    for label in ("QSGD", "NUQSGD"):
        mine = select(rows, method=label)
        over = [r["nonzeros"] / r["nonzeros_bound"] for r in mine]
        experiment.claim(
            f"{label}'s nonzeros are within the bound (held: to 2 %)",
            max(over) <= 1.02,
            _nearest(mine, "nonzeros"),
        )
    for code in ("elias", "huffman"):
        held = all(r[code] <= r[f"{code}_bound"] for r in rows)
        experiment.claim(f"our bound on {code} bits holds", held, _nearest(rows, code))
    mine = select(rows, method="QSGD")
    over = [r for r in mine if r["elias"] > r["theorem_3_2"]]
    worst = max(mine, key=lambda r: r["elias"] / r["theorem_3_2"])
    experiment.claim(
        "QSGD's Theorem 3.2, as remembered and without its o(1), bounds its Elias bits",
        not over,
        f"{len(over)} of {len(mine)} settings exceed it; nearest: "
        f"{worst['elias'] / worst['theorem_3_2']:.3f} of it ({_setting(worst)})",
    )
    compare(experiment, rows)


def _nearest(rows: Sequence[Row], column: str) -> str:
    r = max(rows, key=lambda r: r[column] / r[f"{column}_bound"])
    return f"nearest: {r[column] / r[f'{column}_bound']:.3f} of the bound ({_setting(r)})"


def _setting(r: Row) -> str:
    return f"{r['method']}, {r['data']}, {r['bits']} bits, block {r['block_size']}"


def compare(experiment: Experiment, rows: list[Row]) -> None:
    """Compare the quantizers at the paper's setting, or what is nearest to it."""
    bits, d = shown(rows)
    for kind in ("Gaussian", "gradient"):
        at = {r["method"]: r for r in select(rows, bits=bits, block_size=d, data=kind)}
        variances = ", ".join(f"{label} {r['variance']:.3f}" for label, r in at.items())
        experiment.claim(
            f"{bits} bits, block {d}, {kind}: NUQSGD has less variance than QSGD",
            at["NUQSGD"]["variance"] < at["QSGD"]["variance"],
            variances,
        )
        r = at["NUQSGD"]
        experiment.claim(
            f"{bits} bits, block {d}, {kind}: Elias coding makes NUQSGD's message shorter, and an "
            "entropy coder a shorter one still",
            r["huffman"] < r["elias"] < r["fixed"],
            f"fixed {r['fixed']:.2f}, Elias {r['elias']:.2f}, Huffman {r['huffman']:.2f}, "
            f"entropy {r['entropy']:.2f} bits per coordinate",
        )


def shown(rows: Sequence[Row]) -> tuple[int, int]:
    """Return the setting of the run that is nearest to SHOWN."""
    bits = min({r["bits"] for r in rows}, key=lambda b: abs(b - SHOWN[0]))
    return bits, min({r["block_size"] for r in rows}, key=lambda d: abs(math.log(d / SHOWN[1])))


def table(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the paper's number of bits, Gaussian and gradient, fewer columns."""
    columns = "method block_size data variance variance_bound fixed elias huffman entropy".split()
    kinds = select(rows, bits=shown(rows)[0])
    kinds = [r for r in kinds if r["data"] in ("Gaussian", "gradient")]
    return [{c: r[c] for c in [*columns, "elias_bound", "huffman_bound"]} for r in kinds]


# one-hot vectors are on every grid: their variance is 0, which a logarithmic axis does not have
STYLES = {
    "Gaussian": "o-",
    "gradient": "s-",
    "flat": "x-",
    "spike": "v-",
    "geometric": "D-",
    "powers of 2": "*-",
}
CODES = {"fixed": "black", "elias": "tab:orange", "huffman": "tab:blue", "entropy": "tab:green"}


def draw(experiment: Experiment, rows: Sequence[Row], against: str, at: str, suffix: str) -> None:
    """Draw variance (above) and bits (below) against a column of rows, a column per method."""
    figure, axes = experiment.figure(len(LABELS), 2, sharex=True, sharey="row")
    for (upper, lower), label in zip(axes.T, LABELS.values(), strict=True):
        mine = select(rows, method=label)
        for kind, style in STYLES.items():
            _line(upper, select(mine, data=kind), against, "variance", style, kind, alpha=0.8)
        _line(upper, select(mine, data="Gaussian"), against, "variance_bound", "-", "bound", c="k")
        for code, color in CODES.items():
            _line(lower, select(mine, data="Gaussian"), against, code, "o-", code, c=color)
            _line(lower, select(mine, data="gradient"), against, code, "s:", None, c=color)
        for code in ("elias", "huffman"):
            bound = select(mine, data="Gaussian")
            _line(lower, bound, against, f"{code}_bound", "--", f"{code} bound", c=CODES[code])
        upper.set(title=f"{label}, {at}", yscale="log")
        lower.set(xlabel=against.replace("_", " "), yscale="log")
        if against == "block_size":
            upper.set_xscale("log", base=2)
    axes[0, 0].set_ylabel("E ||Q(v) - v||² / ||v||²")
    axes[1, 0].set_ylabel("bits per coordinate (dotted: gradient)")
    for row in axes:
        row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    experiment.save(figure, suffix)


def _line(
    axis: Any, rows: Sequence[Row], x: str, y: str, style: str, label: str | None, **look: Any
) -> None:
    values = [r[y] or math.nan for r in rows]  # a logarithmic axis has no 0
    axis.plot([r[x] for r in rows], values, style, label=label, markersize=4, **look)


def main(argv: list[str] | None = None) -> None:
    experiment = Experiment("bounds", __doc__)
    workload_flags(experiment, model="resnet20")
    experiment.flag("--steps", type=int, default=30, help="of training before the gradient")
    experiment.flag("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    experiment.flag("--block-sizes", type=int, nargs="+", default=[64, 512, 8192, 65536])
    experiment.flag("--numel", type=int, default=2**17, help="coordinates, whole blocks")
    experiment.flag("--draws", type=int, default=8, help="roundings of each vector")
    args = experiment.parse(argv)
    training = Training(args, args.steps)
    for _ in range(args.steps):
        training.step()
    gradient = training.gradients(1)[0]
    experiment.say(f"have a gradient of {gradient.size} coordinates")
    rows: list[Row] = []
    for d in args.block_sizes:
        for kind, x in vectors(gradient, args.numel, d).items():
            for name in LABELS:
                rows += [measure(name, bits, d, kind, x, args.draws) for bits in args.bits]
        experiment.say(f"measured blocks of {d}")
    bits, d = shown(rows)
    print(f"{bits} bits; variance of ||v||² 1, and bits per coordinate with the norms\n")
    experiment.print_table(table(rows))
    experiment.write_csv(rows)
    draw(experiment, select(rows, bits=bits), "block_size", f"{bits} bits", "")
    draw(experiment, select(rows, block_size=d), "bits", f"block {d}", "_bits")
    judge(experiment, rows)
    experiment.close()


if __name__ == "__main__":
    main()
