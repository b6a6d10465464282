"""Draw seconds per step by system and link speed, from the JSON files of step.py.

    python benchmarks/network/plot.py runs/bench/step-*.json --svg docs/performance.svg
    python benchmarks/network/plot.py runs/bench/*.json --tables

--tables prints the table of every file instead of, or next to, the picture.
"""

import argparse
import json
from pathlib import Path

import tables

TABLES = {
    "step": tables.steps,
    "exchange": tables.exchanges,
    "accuracy": tables.accuracies,
    "overlap": tables.overlaps,
}
GROUPS = {"ddp": "#8c8c8c", "decent": "#c9a227", "compute": "#d9d9d9"}  # else decentral's
OURS = "#2f6db2"


def color(name):
    """Return the color of a system."""
    return next((c for start, c in GROUPS.items() if name.split("-")[0] == start), OURS)


def read(paths):
    """Return [(kind, run)] of files that step.py and its like wrote."""
    found = []
    for path in paths:
        content = json.loads(Path(path).read_text())
        found += [(content["kind"], run) for run in content.get("runs", [])]
    return found


def draw(runs, path):
    """Draw a row of panels per number of hosts: a bar per system, seconds on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "decentral"  # the same picture from the same figures
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    names = list(max((run["systems"] for run in runs), key=len))
    names += sorted({name for run in runs for name in run["systems"]} - set(names))
    rows = {hosts: [r for r in runs if r["hosts"] == hosts] for hosts in (r["hosts"] for r in runs)}
    width = max(map(len, rows.values()))
    size = (3.1 * width + 1.2, 4.2 * len(rows))
    figure, axes = pyplot.subplots(len(rows), width, sharey=True, figsize=size, squeeze=False)
    for row, some in zip(axes, rows.values(), strict=True):
        for axis, run in zip(row, some, strict=False):
            panel(axis, run, names)
        for axis in row[len(some) :]:
            axis.set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def panel(axis, run, names):
    """Draw one run; what was not measured, or failed, has no bar."""
    systems = {name: found for name, found in run["systems"].items() if found}
    seconds = [found["mean_s"] for found in systems.values()]
    low = [s - found["lowest_s"] for s, found in zip(seconds, systems.values(), strict=True)]
    high = [found["highest_s"] - s for s, found in zip(seconds, systems.values(), strict=True)]
    places, colors = [names.index(name) for name in systems], [color(name) for name in systems]
    bars = axis.barh(places, seconds, color=colors, xerr=(low, high), ecolor="#444444")
    axis.bar_label(bars, [f"{s:.2g}" for s in seconds], padding=4, fontsize=8)
    axis.set_xscale("log")
    limits = min(seconds) / 1.5, max(seconds) * 3
    ticks = [t for e in range(-4, 4) for t in (10.0**e, 3 * 10.0**e) if limits[0] < t < limits[1]]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlim(limits)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("s per step")
    axis.set_title(f"{run['hosts']} hosts, {run['rate'] or 'no limit'}", fontsize=10)


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--svg", metavar="FILE")
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    found = read(args.files)
    if args.tables:
        for kind, run in found:
            print(f"\n{tables.title(run)}\n\n{TABLES[kind](run)}")
    if args.svg:
        draw([run for kind, run in found if kind == "step"], args.svg)


if __name__ == "__main__":
    main()
