"""Size and speed of codes of varying length on a Gaussian vector: the table of docs/papers.md.

    python benchmarks/coding.py [--numel 4194304] [--rounds 7]

One thread, block 8192; bits per coordinate with tables and lengths, without scales and header; the
fastest of the rounds counts, in millions of coordinates per second.
"""

import argparse
import time

import numpy as np

from decentral_kernels import Quantizer, encode, fold_key
from decentral_kernels.coding import CODINGS, coder

CASES = {
    "NUQSGD, 4 bits": (4, "l2", "exponential"),
    "QSGD, 4 bits": (4, "l2", "uniform"),
    "QSGDinf, 4 bits": (4, "max", "uniform"),
    "QSGDinf, 8 bits": (8, "max", "uniform"),
}


def packed_codes(bits, norm, levels, numel):
    q = Quantizer(bits, 8192, norm, levels)
    x = np.random.default_rng(0).standard_normal(numel).astype(np.float32)
    codes = np.empty(q.codes_nbytes(numel), np.uint8)
    encode(x, fold_key(1), q, np.empty(q.num_blocks(numel), np.float32), codes)
    return codes


def fastest(rounds, function):
    times = []
    for _ in range(rounds + 1):  # the first compiles
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numel", type=int, default=1 << 22)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    n = args.numel
    print("| codes | coder | bits | encode | decode |\n|---|---|---|---|---|")
    for name, (bits, norm, levels) in CASES.items():
        codes = packed_codes(bits, norm, levels, n)
        for kind in CODINGS:
            made = coder(kind, bits, True)
            out, back = np.empty(made.max_nbytes(n), np.uint8), np.empty_like(codes)
            size = made.encode(codes, n, out)
            to = fastest(args.rounds, lambda c=made, x=codes, o=out: c.encode(x, n, o))
            stream = out[:size]
            fro = fastest(args.rounds, lambda c=made, s=stream, b=back: c.decode(s, n, b))
            speeds = f"{n / to / 1e6:.0f} | {n / fro / 1e6:.0f}"
            print(f"| {name} | {kind} | {8 * size / n:.2f} | {speeds} |", flush=True)


if __name__ == "__main__":
    main()
