"""Predicted and measured seconds per step over shaped links, side by side, in one run.

    python benchmarks/network/predict.py [--hosts 4 8] [--rates 100mbit 1gbit]
        [--systems allreduce-none ...] [--turns 1] [--json FILE]

First it measures what the model of decentral.simulate needs, in the same lab and with all hosts at
work: computing alone, coding, the links, the processor time of a byte. Then it trains. Needs root,
as step.py does; the 16 configurations take about six minutes.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import lab
import mlp
import tables
import turns
from systems import SYSTEMS

import decentral
from decentral.algorithms import GossipAlgorithm
from decentral.simulate import Links, Machine, Workload, predict

DEFAULT = ("allreduce-none", "allreduce-fixed", "d-psgd", "ecd-psgd-fixed")
_COSTS = str(Path(__file__).with_name("costs.py"))
_SUM_MIB = 16


def parse_args(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    ours = [name for name, kind in SYSTEMS.items() if hasattr(kind, "algorithm")]
    add("--hosts", nargs="+", type=int, default=[4, 8])
    add("--rates", nargs="+", default=["100mbit", "1gbit"], help="tc's words")
    add("--systems", nargs="+", choices=ours, default=list(DEFAULT))
    add("--turns", type=int, default=1)
    add("--steps", type=int, default=12, help="measured in a turn, at most")
    add("--budget", type=float, default=6.0, help="seconds a turn for a system's steps, about")
    add("--batch", type=int, default=16, help="per rank")
    add("--bits", type=int, default=4)
    add("--timeout", type=float, default=300, help="seconds for one job")
    add("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args(argv)


def compressor_of(system, bits):
    """Return the compressor of a system as systems.py makes it."""
    kind = SYSTEMS[system]
    options = {"bits": bits} if kind.takes_bits(kind) else {}
    options |= {"coding": kind.coding} if kind.coding else {}
    return decentral.compressors.from_name(kind.compressor, **options)


def algorithm_of(system, bits):
    """Return the algorithm of a system as systems.py makes it, without ranks."""
    name = SYSTEMS[system].algorithm
    return decentral.algorithms.from_name(name, compressor=compressor_of(system, bits))


def _kind(system):
    return type(algorithm_of(system, bits=4))


def costs(hosts, args, bits_per_s):
    """Return what costs.py finds, over hosts: of the slowest link, and the median of coding."""
    mb = min(60.0, bits_per_s / 8 / 1e6)  # a second, if that is not too much memory
    names = sorted({SYSTEMS[s].compressor for s in args.systems})
    command = [_COSTS, "--mb", mb, "--bits", args.bits, "--compressors", *names]
    result = hosts.gloo([*map(str, command), "--addresses", *hosts.addresses], timeout=120)
    if result.error:
        raise SystemExit(f"predict: {result.error}")
    speeds = {}  # of the slowest host, which the others wait for
    for pattern in ("neighbors", "all"):
        tries = zip(*(r[pattern] for r in result.records), strict=True)
        speeds[pattern] = statistics.median(map(min, tries))
    coding = {}
    for name in names:
        found = [r[f"coding {name}"] for r in result.records]
        coding[name] = {k: statistics.median(f[k] for f in found) for k in found[0]}
    return {"bits_per_s": speeds, "coding": coding}


def measure(hosts, args):
    """Return what the model needs, and the systems' figures, of one lab."""
    speed = hosts.link_speed()
    found = {"link_bits_per_s": speed, **costs(hosts, args, speed)}
    # worker.py goes by the first step, in which gossip does not wait for messages yet.
    slowest = 2 * 4 * mlp.parameter_count() * 8 / speed
    steps = max(2, min(args.steps, round(args.budget / slowest)))
    flags = ["--steps", steps, "--budget", args.budget, "--batch", args.batch]
    flags += ["--bits", args.bits]
    again = f"compute-mpi@{args.batch}"  # last, too: a machine changes its speed
    names = ["compute-mpi", f"sum-decentral-{_SUM_MIB}", *args.systems, again]
    systems = turns.measure(hosts, names, args.turns, flags, timeout=args.timeout)
    found["systems"] = {name: turns.over_turns(t) for name, t in systems.items()}
    alone = [found["systems"][name] for name in ("compute-mpi", again)]
    found["compute_s"] = statistics.fmean(s["mean_s"] for s in alone if s)
    return found


def model_of(system, found, hosts):
    """Return the links and the machine of a system, of what was measured."""
    speed, gossip = found["link_bits_per_s"], issubclass(_kind(system), GossipAlgorithm)
    several = found["bits_per_s"]["neighbors" if gossip else "all"]
    links = Links(bandwidth=speed, goodput=1.0, fairness=min(1.0, several / speed))
    cores = len(os.sched_getaffinity(0)) / hosts
    total = found["systems"][f"sum-decentral-{_SUM_MIB}"]
    sent = 2 * (hosts - 1) / hosts * _SUM_MIB * 2**20
    machine = Machine(
        compute_s=found["compute_s"],
        cores=cores,
        network_s_per_byte=total["cpu_s"] / sent * max(1.0, 1 / cores),
        **found["coding"][SYSTEMS[system].compressor],
    )
    return links, machine


def compare(found, hosts, args):
    """Return predicted and measured seconds of every system, and the error as a share."""
    workload = Workload.of(mlp.perceptron())
    rows = {}
    for system in args.systems:
        links, machine = model_of(system, found, hosts)
        step = predict(algorithm_of(system, args.bits), hosts, workload, links, machine)
        real = found["systems"][system]
        row = {"predicted": step._asdict()}
        if real:
            row |= {"measured_s": real["mean_s"], "error": step.total / real["mean_s"] - 1}
            row["bytes_sent"] = real["bytes_sent"]
        rows[system] = row
    return rows


def table(runs):
    """Return the table of all configurations."""
    head = ["hosts", "links", "system", "predicted s", "measured s", "error"]
    head += ["computing", "coding", "wire"]
    lines = []
    for run in runs:
        for system, row in run["comparison"].items():
            step = row["predicted"]
            cells = [str(run["hosts"]), run["rate"], system, f"{step['total']:.3f}"]
            cells += [tables.number(row.get("measured_s"), "{:.3f}")]
            cells += [tables.number(row.get("error"), "{:+.0%}")]
            lines.append(cells + [f"{step[k]:.3f}" for k in ("compute", "coding", "wire")])
    return tables.markdown(head, lines)


def main():
    args, runs, start = parse_args(), [], time.perf_counter()
    for rate in args.rates:
        for hosts in args.hosts:
            with lab.Lab(hosts, rate) as built:
                found = measure(built, args)
            run = {"hosts": hosts, "rate": rate, "measured": found}
            runs.append(run | {"comparison": compare(found, hosts, args)})
            if args.json:
                Path(args.json).parent.mkdir(parents=True, exist_ok=True)
                content = {"kind": "predict", "bits": args.bits, "batch": args.batch, "runs": runs}
                Path(args.json).write_text(json.dumps(content, indent=1))
            seconds = time.perf_counter() - start
            print(f"{hosts} hosts, {rate}: done after {seconds:.0f} s", flush=True)
    print(f"\n{table(runs)}\n")
    errors = [abs(r["error"]) for run in runs for r in run["comparison"].values() if "error" in r]
    print(f"{len(errors)} configurations, largest error {max(errors, default=0):.0%}")


if __name__ == "__main__":
    main()
