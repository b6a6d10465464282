"""Seconds per training step over links of several speeds: decentral, PyTorch's DDP, decent-dp.

    python benchmarks/network/step.py [--hosts 4] [--ranks-per-host 1] [--turns 3]
        [--rates 100mbit 1gbit 10gbit none] [--systems NAME ...] [--openmpi DIR] [--json FILE]

The hosts are namespaces of this machine (lab.py), so it needs root. Every turn starts the systems
anew, those over gloo in one job and those over MPI in another, and takes a few steps with each; the
table has the median of the turns. Bytes are what left a host's eth0, headers included.
"""

import argparse
import json
from pathlib import Path

import lab
import tables
import turns
from systems import SYSTEMS


def flags(description):
    """Return the parser with the flags that step.py and exchange.py share."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4)
    add("--ranks-per-host", type=int, default=1)
    add("--rates", nargs="+", default=["100mbit", "1gbit", "10gbit", "none"], help="tc's words")
    add("--turns", type=int, default=3)
    add("--steps", type=int, default=20, help="measured in a turn, at most")
    add("--budget", type=float, default=4.0, help="seconds a turn for a system's steps, about")
    add("--openmpi", metavar="DIR", help="use the Open MPI installed there instead of MPICH")
    add("--timeout", type=float, default=300, help="seconds for one job")
    add("--json", metavar="FILE", help="write all figures here")
    return parser


def parse_args(argv=None):
    parser = flags(__doc__)
    names = [n for n in SYSTEMS if n != "compute-mpi" and not n.endswith("-fixed")]
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=names)
    parser.add_argument("--batch", type=int, default=16, help="per rank")
    parser.add_argument("--bits", type=int, default=4)
    return parser.parse_args(argv)


def measure(args, systems, worker_flags=()):
    """Yield a dictionary for every link speed: where it was measured, and each system's figures."""
    bounds = ["--steps", args.steps, "--budget", args.budget, *worker_flags]
    for rate in args.rates:
        with lab.Lab(args.hosts, None if rate == "none" else rate) as hosts:
            speed = hosts.link_speed()
            found = turns.measure(
                hosts,
                systems,
                args.turns,
                bounds,
                args.ranks_per_host,
                args.timeout,
                args.openmpi,
            )
        yield {
            "hosts": args.hosts,
            "ranks_per_host": args.ranks_per_host,
            "rate": hosts.rate,
            "link_bits_per_s": speed,
            "mpi": "Open MPI" if args.openmpi else "MPICH",
            "systems": {name: turns.over_turns(t) for name, t in found.items()},
        }


def report(args, kind, runs, table):
    """Print every run as it comes, and write them all to --json."""
    done = []
    for run in runs:
        done.append(run)
        print(f"\n{tables.title(run)}\n\n{table(run)}", flush=True)
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps({"kind": kind, "runs": done}, indent=1))


def main():
    args = parse_args()
    worker_flags = ["--batch", args.batch, "--bits", args.bits]
    report(args, "step", measure(args, args.systems, worker_flags), tables.steps)


if __name__ == "__main__":
    main()
