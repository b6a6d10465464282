"""Speed of the CPU kernels as shares of memcpy, beside the same thing in torch's own operations.

    python benchmarks/kernels.py [--numel 16777216] [--block-size 8192] [--json FILE]

A share is bytes of float32 per second over those of np.copyto between two vectors of that length.
What a row compares takes turns, so that a busy machine slows all alike; the fastest round counts.
What the second thread gains is bounded by the memory: `x += 1` reads and writes as accumulating
does, and computes nothing.
"""

import argparse
import json
import os
import time
import timeit
import warnings

import numba
import numpy as np
import torch

from decentral.compressors import NUQSGD
from decentral_kernels import Quantizer, accumulate, encode, fold_key, integers, signs
from decentral_kernels.threads import GRAIN, set_num_threads, share

KEY, WEIGHT = fold_key(1), 1e-3
FAMILIES = {
    "NUQSGD": ("l2", "exponential"),
    "QSGD": ("l2", "uniform"),
    "QSGDinf": ("max", "uniform"),
}
TIMES = ("update", "memcpy", "encode", "add")
GAINS = ("encode", "add", "memcpy", "update")


# Pairs of functions: encode x, and add what that stands for to out.


def of_levels(x, out, bits, block_size, family):
    q = Quantizer(bits, block_size, *FAMILIES[family])
    scales = np.empty(q.num_blocks(len(x)), np.float32)
    codes = np.empty(q.codes_nbytes(len(x)), np.uint8)
    return (
        lambda: encode(x, KEY, q, scales, codes),
        lambda: accumulate(scales, codes, q, out, WEIGHT),
    )


def of_signs(x, out):
    residual, left = np.zeros_like(x), np.empty_like(x)
    scales = np.empty(2 * -(-len(x) // 64), np.float32)
    bits = np.empty(signs.signs_nbytes(len(x)), np.uint8)
    return (
        lambda: signs.sign_encode(x, residual, left, 64, scales, bits),
        lambda: signs.sign_decode(scales, bits, 64, out, WEIGHT, add=True),
    )


def of_powers(x, out):
    exponents, bits = np.empty(len(x), np.uint8), np.empty(signs.signs_nbytes(len(x)), np.uint8)
    return (
        lambda: signs.natural_encode(x, KEY, exponents, bits),
        lambda: signs.natural_decode(exponents, bits, out, WEIGHT, add=True),
    )


def of_integers(x, out):
    whole = np.empty(len(x), np.int8)
    return (
        lambda: integers.round_to_integers(x, 3.0, KEY, 0, True, (-16.0, 15.0), whole),
        lambda: integers.expand_integers(whole, WEIGHT, out, add=True),
    )


def torch_int8(x, out):
    """Torch's affine quantization: one scale from the largest |x|, to the nearest level."""
    x, out, kept = torch.from_numpy(x), torch.from_numpy(out), []

    def compress():
        scale = float(x.abs().max()) / 127
        kept[:] = [torch.quantize_per_tensor(x, scale, 0, torch.qint8)]

    return compress, lambda: out.add_(kept[0].dequantize(), alpha=WEIGHT)


def torch_levels(x, out, block_size, exponential, bits=4):
    """(NU)QSGD as GRACE writes compressors: operations on whole tensors, a byte per code."""
    rows, sums = (torch.as_tensor(v).view(-1, block_size) for v in (x, out))
    s, kept = 2 ** (bits - 1) - (2 if exponential else 1), []

    def compress():
        norm = rows.norm(dim=1, keepdim=True)
        r = rows.abs() / norm
        if exponential:
            k = torch.log2(r).floor().clamp(-s - 1, 0)  # r is in [2^k, 2^(k + 1)), or below 2^-s
            low = torch.where(k < -s, 0.0, torch.exp2(k))
            level, up = k + s + 1, (r - low) / torch.exp2(k.clamp(min=-s))
        else:
            level = (r * s).floor()
            up = r * s - level
        level += torch.rand_like(r) < up
        kept[:] = norm, (level * rows.sign()).to(torch.int8)

    def add():
        norm, level = kept[0], kept[1].float()
        if exponential:
            value = level.sign() * torch.exp2(level.abs() - 1 - s)
        else:
            value = level / s
        sums.add_(value * norm, alpha=WEIGHT)

    return compress, add


def of_memory(x):
    """Add to a vector in place, and copy x; neither finds its vector in a cache."""
    target, sums = np.zeros_like(x), np.zeros_like(x)
    return (
        lambda: share(lambda a, b: np.add(sums[a:b], 1, out=sums[a:b]), len(x), GRAIN),
        lambda: share(lambda a, b: np.copyto(target[a:b], x[a:b]), len(x), GRAIN),
    )


def measure(name, pair, memory, rounds, threads=(1, 2)):
    times = {(what, count): [] for count in threads for what in TIMES}
    for turn in range(rounds + 1):  # the first one compiles
        for count in threads:
            set_num_threads(count)
            for what, function in zip(TIMES, (*memory, *pair), strict=True):
                start = time.perf_counter()
                function()
                times[what, count] += [time.perf_counter() - start] * (turn > 0)
    set_num_threads(1)
    row = {f"{what} {count}": min(t) for (what, count), t in times.items()}
    shares = [row["memcpy 1"] / row[f"{what} 1"] for what in ("encode", "add")]
    gains = [row[f"{what} 1"] / row[f"{what} 2"] for what in GAINS] if 2 in threads else []
    cells = [name, f"{1e3 * row['memcpy 1']:.1f}", *(f"{v:.2f}" for v in shares + gains)]
    print("|", " | ".join(cells), "|", flush=True)
    return {"what": name} | row


def overheads(numel=1024):
    """Return microseconds per call; steps count up, as they do in training."""
    x, out = np.random.default_rng(0).standard_normal((2, numel)).astype(np.float32)
    kernels, compressor = of_levels(x, out, 4, 8192, "NUQSGD"), NUQSGD(bits=4)
    payload, steps = compressor.encode(x, (0, 0, 0, 0)), iter(range(1 << 40))
    calls = {
        "kernels.encode": kernels[0],
        "kernels.accumulate": kernels[1],
        "NUQSGD.encode": lambda: compressor.encode(x, (0, next(steps), 0, 0), out=payload),
        "NUQSGD.accumulate": lambda: compressor.accumulate(payload, out, WEIGHT),
    }
    return {n: 2e3 * min(timeit.repeat(f, number=500, repeat=40)) for n, f in calls.items()}


def machine():
    with open("/proc/cpuinfo") as lines:
        model = next((li.split(": ")[1].strip() for li in lines if "model name" in li), "")
    cpu = f"{model} ({numba.core.codegen.ll.get_host_cpu_name()})"
    versions = f"numba {numba.__version__}, torch {torch.__version__}"
    return f"{cpu}, {os.cpu_count()} cores, {versions}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numel", type=int, default=1 << 24, help="a multiple of the block size")
    parser.add_argument("--block-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "torch.quantize_per_tensor")
    x = np.random.default_rng(0).standard_normal(args.numel, dtype=np.float32)
    out, memory = np.zeros_like(x), of_memory(x)
    print(f"{machine()}; {args.numel} coordinates, shares with one thread\n")
    heads = "encode | accumulate | two threads: encode | accumulate | memcpy | x += 1"
    print(f"| kernel | memcpy, ms | {heads} |\n|---|---|---|---|---|---|---|---|")
    ours = [
        (f"{family}, {bits} bits", of_levels(x, out, bits, args.block_size, family))
        for bits in (4, 2, 8, 3, 5, 6, 7)
        for family in FAMILIES
    ]
    rest = {"EF-SignSGD": of_signs, "natural": of_powers, "IntSGD, 8 bits": of_integers}
    ours += [(name, pair(x, out)) for name, pair in rest.items()]
    rows = [measure(name, pair, memory, args.rounds) for name, pair in ours]
    print("\n| torch, one thread | memcpy, ms | encode | accumulate |\n|---|---|---|---|")
    theirs = [
        ("quantize_per_tensor, 8 bits", torch_int8(x, out)),
        ("QSGD, 4 bits, a byte each", torch_levels(x, out, args.block_size, exponential=False)),
        ("NUQSGD, 4 bits, a byte each", torch_levels(x, out, args.block_size, exponential=True)),
    ]
    rows += [measure(name, pair, memory, 3, threads=(1,)) for name, pair in theirs]
    calls = overheads()
    print("\n| call with 1,024 coordinates | microseconds |\n|---|---|")
    print("\n".join(f"| {name} | {us:.1f} |" for name, us in calls.items()))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine(), "seconds": rows, "microseconds": calls}, file)


if __name__ == "__main__":
    main()
