"""Share of the communication that is hidden behind a computation as long as it.

    python benchmarks/network/overlap.py [--rate 1gbit] [--turns 3] [--systems NAME ...]
        [--json FILE]

Two hosts, a rank each. Communication alone: steps with gradients that are there at once, less what
such steps take without any. In every turn a batch is chosen so that computing alone takes as long,
and

    hidden = 1 - (step with both - computing alone) / communication alone

next to what decentral's own stats() say. 1 is perfect; coding takes processor time, which counts
as communication here. Needs root, as step.py does.
"""

import argparse

import balanced
import lab
import step
import tables
import turns
from systems import SYSTEMS

DEFAULT = (
    "ddp",
    "allreduce-none",
    "allreduce-nuqsgd",
    "allreduce-intsgd",
    "cocod-sgd",
    "d-psgd",
    "ecd-psgd",
)


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--rate", default="1gbit", help="tc's words, or none")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(DEFAULT))
    add("--turns", type=int, default=3)
    add("--steps", type=int, default=8, help="measured of each kind in a turn, at most")
    add("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args(argv)


def measure(args):
    """Yield the one run."""
    with lab.Lab(2, None if args.rate == "none" else args.rate) as hosts:
        speed, flags = hosts.link_speed(), ["--steps", args.steps]
        how = {"timeout": 200 * len(args.systems), "worker": balanced.__file__}
        found = turns.measure(hosts, args.systems, args.turns, flags, **how)
    yield {
        "hosts": 2,
        "ranks_per_host": 1,
        "rate": hosts.rate,
        "link_bits_per_s": speed,
        "mpi": "MPICH",
        "systems": {name: turns.over_turns(t) for name, t in found.items()},
    }


def main():
    args = parse_args()
    step.report(args, "overlap", measure(args), tables.overlaps)


if __name__ == "__main__":
    main()
