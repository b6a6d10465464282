"""Seconds of training until a test accuracy, over links of several speeds.

    python benchmarks/network/accuracy.py [--hosts 4] [--rates 100mbit 1gbit] [--target 0.97]
        [--systems NAME ...] [--seeds 3] [--json FILE]

The task is trainer.py's. A seed is one start of every system; the table has the medians. Needs
root, as step.py does.
"""

import argparse
import statistics
import sys
from pathlib import Path

import lab
import step
import tables
import turns
from systems import SYSTEMS

TRAINER = str(Path(__file__).with_name("trainer.py"))
DEFAULT = ("ddp", "ddp-fp16", "ddp-powersgd", "decent-dp", "allreduce-nuqsgd")
DEFAULT += ("allreduce-intsgd", "ecd-psgd")


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4)
    add("--rates", nargs="+", default=["1gbit"], help="tc's words, or none")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(DEFAULT))
    add("--target", type=float, default=0.97)
    add("--lr", type=float, default=0.1)
    add("--seeds", type=int, default=3)
    add("--timeout", type=float, default=600, help="seconds for one job")
    add("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args(argv)


def train(hosts, args, seed):
    """Return {system: rank 0's record} of one seed."""
    records = {}
    for launch in ("gloo", "mpi"):
        names = [name for name in args.systems if turns.launch_of(name) == launch]
        if not names:
            continue
        flags = ["--target", args.target, "--lr", args.lr, "--seed", seed]
        command = [TRAINER, "--systems", *names, *map(str, flags)]
        result = getattr(hosts, launch)(command, timeout=args.timeout)
        if result.error:
            print(f"seed {seed}, {launch}: {result.error}", file=sys.stderr, flush=True)
        records |= {r["system"]: r for r in result.records if r["rank"] == 0}
    return records


def over_seeds(found):
    """Return medians, and how many of the seeds reached the target; None without records."""
    if not found:
        return None
    keys = ("steps", "seconds", "accuracy")
    medians = {k: statistics.median(r[k] for r in found) for k in keys}
    return medians | {"reached": sum(r["reached"] for r in found), "runs": found}


def measure(args):
    """Yield a dictionary for every link speed."""
    for rate in args.rates:
        with lab.Lab(args.hosts, None if rate == "none" else rate) as hosts:
            speed = hosts.link_speed()
            seeds = [train(hosts, args, seed) for seed in range(args.seeds)]
        systems = {n: over_seeds([s[n] for s in seeds if n in s]) for n in args.systems}
        yield {
            "hosts": args.hosts,
            "ranks_per_host": 1,
            "rate": hosts.rate,
            "link_bits_per_s": speed,
            "mpi": "MPICH",
            "target": args.target,
            "seeds": args.seeds,
            "systems": systems,
        }


def main():
    args = parse_args()
    step.report(args, "accuracy", measure(args), tables.accuracies)


if __name__ == "__main__":
    main()
