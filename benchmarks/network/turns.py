"""Measure systems in turns in one lab, so that a busy machine slows all of them alike."""

import statistics
import sys
from pathlib import Path

import sums
from systems import SYSTEMS

WORKER = str(Path(__file__).with_name("worker.py"))


def launch_of(spec):
    """Return which job a system runs in."""
    name = spec.partition("@")[0]
    kind = SYSTEMS[name] if name in SYSTEMS else sums.SUMS[name][0]
    return kind.launch


def measure(
    lab, systems, turns, flags=(), ranks_per_host=1, timeout=300, openmpi=None, worker=WORKER
):
    """Return {system: [one dictionary per turn]}, medians over ranks, in the order of `systems`.

    What fails is said on standard error, and has fewer turns, or none.
    """
    found = {name: [] for name in systems}
    for turn in range(turns):
        for launch in ("gloo", "mpi"):
            names = [name for name in systems if launch_of(name) == launch]
            if not names:
                continue
            command = [worker, "--systems", *names, *map(str, flags)]
            if launch == "gloo":
                result = lab.gloo(command, ranks_per_host, timeout)
            else:
                result = lab.mpi(command, ranks_per_host, timeout, openmpi)
            if result.error:
                print(f"turn {turn + 1}, {launch}: {result.error}", file=sys.stderr, flush=True)
            for name in names:
                records = [r for r in result.records if r["system"] == name]
                if len(records) == lab.hosts * ranks_per_host:
                    found[name].append(over_ranks(records))
    return found


def over_ranks(records):
    """Return the median over ranks of every number that is measured per rank."""
    keys = records[0].keys() - {"system", "rank", "size", "steps_s"}
    return {k: statistics.median(r[k] for r in records) for k in keys}


def over_turns(turns):
    """Return the median over turns, and what was found in each; None without turns."""
    if not turns:
        return None
    middle = {k: statistics.median(t[k] for t in turns) for k in turns[0]}
    seconds = [t["mean_s"] for t in turns]
    middle |= {"seconds": seconds, "lowest_s": min(seconds), "highest_s": max(seconds)}
    return middle | ({"shares": [t["hidden"] for t in turns]} if "hidden" in middle else {})
