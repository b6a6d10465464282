"""Share of the communication that is hidden behind a computation as long as it.

    python benchmarks/network/overlap.py [--rate 1gbit] [--turns 3] [--systems NAME ...]
        [--json FILE]

Two hosts, a rank each. Communication alone: steps with gradients that are there at once, less what
such steps take on one rank. The batch is then chosen so that computing alone takes as long, and

    hidden = 1 - (step with both - computing alone) / communication alone

next to what decentral's own stats() say. 1 is perfect; coding takes processor time, which counts
as communication here. Needs root, as step.py does.
"""

import argparse

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
_PROBES = (16, 256)  # batches from which the time of others is estimated


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--rate", default="1gbit", help="tc's words, or none")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(DEFAULT))
    add("--turns", type=int, default=3)
    add("--steps", type=int, default=8, help="measured in a turn, at most")
    add("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args(argv)


def hidden(both, computing, communicating):
    """Return the share of the communication that adds nothing to a step."""
    return 1 - (both - computing) / communicating


def batch_for(seconds, probes):
    """Return the batch that computes for so long, given {batch: seconds} of two batches."""
    (small, fast), (large, slow) = sorted(probes.items())
    per_sample = max(1e-9, (slow - fast) / (large - small))
    return max(1, round(small + (seconds - fast) / per_sample))


def alone(name):
    """Return the system that computes alone in the same job as another."""
    return "compute" if turns.launch_of(name) == "gloo" else "compute-mpi"


def specs_of(name, batch):
    """Return what a turn of a system consists of, in the order that it is measured."""
    both = [f"{alone(name)}@{batch}", f"{name}@{batch}"]
    return [*both, f"{name}@free", f"{alone(name)}@free"]


def row(found, name, batch):
    """Return the figures of one turn of a system; None where a part failed."""
    parts = [found.get(spec) for spec in specs_of(name, batch)]
    if None in parts:
        return None
    computing, both, free, rest = (part["median_s"] for part in parts)
    own = {"stats_hidden": parts[1]["hidden"]} if "hidden" in parts[1] else {}
    seconds = {"mean_s": both, "compute_s": computing, "communication_s": free - rest}
    return own | seconds


def over_turns(rows, batch):
    """Return the medians of a system's turns and what they say; None without turns."""
    if not rows:
        return None
    middle = turns.over_turns(rows)
    share = hidden(middle["mean_s"], middle["compute_s"], middle["communication_s"])
    return middle | {"hidden": share, "batch": batch}


def one_turn(hosts, specs, steps):
    """Return {system: figures}, without those that failed."""
    found = turns.measure(hosts, list(dict.fromkeys(specs)), 1, ["--steps", steps])
    return {spec: t[0] for spec, t in found.items() if t}


def choose_batches(hosts, args):
    """Return {system: the batch that computes as long as it communicates}."""
    specs = [f"compute@{b}" for b in _PROBES]
    specs += [spec for name in args.systems for spec in specs_of(name, 1)[2:]]
    found = one_turn(hosts, specs, args.steps)
    probes = {b: found[f"compute@{b}"]["median_s"] for b in _PROBES}
    batches = {}
    for name in args.systems:
        free, rest = found.get(f"{name}@free"), found.get(f"{alone(name)}@free")
        if free and rest:
            batches[name] = batch_for(free["median_s"] - rest["median_s"], probes)
    return batches


def overlaps(hosts, args):
    """Return {system: medians of the turns, None where it failed}."""
    batches = choose_batches(hosts, args)
    specs = [spec for name, batch in batches.items() for spec in specs_of(name, batch)]
    rows = {name: [] for name in args.systems}
    for _ in range(args.turns):
        found = one_turn(hosts, specs, args.steps)
        for name, batch in batches.items():
            rows[name] += filter(None, [row(found, name, batch)])
    return {name: over_turns(r, batches.get(name)) for name, r in rows.items()}


def measure(args):
    """Yield the one run."""
    with lab.Lab(2, None if args.rate == "none" else args.rate) as hosts:
        speed, systems = hosts.link_speed(), overlaps(hosts, args)
    yield {
        "hosts": 2,
        "ranks_per_host": 1,
        "rate": hosts.rate,
        "link_bits_per_s": speed,
        "mpi": "MPICH",
        "systems": systems,
    }


def main():
    args = parse_args()
    step.report(args, "overlap", measure(args), tables.overlaps)


if __name__ == "__main__":
    main()
