"""One rank of overlap.py: systems beside a computation that takes as long as their communication.

    mpirun -n 2 python benchmarks/network/balanced.py --systems ecd-psgd d-psgd
    torchrun --nproc-per-node 2 benchmarks/network/balanced.py --systems ddp

All parts of a figure are measured within seconds of each other, in one job, what is compared twice,
before and after what it is compared with: the speed of a machine that others use, too, drifts.
"""

import worker
from turns import over_ranks

_PROBES = (16, 256)  # batches from which the time of others is estimated


def hidden(both, computing, communicating):
    """Return the share of the communication that adds nothing to a step."""
    return 1 - (both - computing) / communicating


def batch_for(seconds, probes):
    """Return the batch that computes for so long, given {batch: seconds} of two batches."""
    (small, fast), (large, slow) = sorted(probes.items())
    per_sample = max(1e-9, (slow - fast) / (large - small))
    return max(1, round(small + (seconds - fast) / per_sample))


def balance(name, step):
    """Return the figures of a system; step(spec) measures steps and returns their record."""

    def seconds(spec):
        return step(spec)["median_s"]

    def communicating():
        return seconds(f"{name}@free") - seconds("compute@free")

    before = communicating()
    batch = batch_for(before, {b: seconds(f"compute@{b}") for b in _PROBES})
    alone = f"compute@{batch}"
    start, both, end = seconds(alone), step(f"{name}@{batch}"), seconds(alone)
    found = {
        "batch": batch,
        "mean_s": both["median_s"],
        "compute_s": (start + end) / 2,
        "communication_s": (before + communicating()) / 2,
    }
    share = hidden(*(found[k] for k in ("mean_s", "compute_s", "communication_s")))
    own = {"stats_hidden": both["hidden"]} if "hidden" in both else {}
    return found | {"hidden": share} | own


def main():
    args = worker.parse_args()
    world = worker.World()
    for name in args.systems:
        found = balance(name, lambda s: over_ranks(world.gather(worker.measure(s, world, args))))
        worker.record({"system": name, "rank": world.rank, **found})
    world.close()


if __name__ == "__main__":
    main()
