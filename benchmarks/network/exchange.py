"""Seconds of a float32 all-reduce over links of several speeds: ours, MPI's own, and gloo's.

    python benchmarks/network/exchange.py [--hosts 4] [--ranks-per-host 1] [--turns 3]
        [--rates 100mbit 1gbit 10gbit none] [--mib 16 64] [--openmpi DIR] [--json FILE]

The wire's share is what 2 (n - 1) / n of the vector take at the speed that one connection reached
just before. Needs root, as step.py does.
"""

import step
import sums
import tables


def parse_args(argv=None):
    parser = step.flags(__doc__)
    parser.add_argument("--mib", nargs="+", type=int, choices=sums.MIB, default=list(sums.MIB))
    return parser.parse_args(argv)


def main():
    args = parse_args()
    names = [name for name, (_, mib) in sums.SUMS.items() if mib in args.mib]
    step.report(args, "exchange", step.measure(args, names), tables.exchanges)


if __name__ == "__main__":
    main()
