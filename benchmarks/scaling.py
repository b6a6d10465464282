"""Draw the predicted seconds per step against the number of workers, from 2 to 100,000.

    python benchmarks/scaling.py --svg docs/scaling.svg [--million 25] [--compute 0.2] [--tables]
        [--topologies ring exponential ...]

On paper: no training is run. The model has --million parameters and --compute seconds of compute
per step on a worker with a core to spare; links of 1 Gbit/s and 100 Mbit/s, one worker per host.
Gossip is drawn on the topologies whose messages do not grow with the number of workers.
"""

import argparse

import decentral_topologies
from decentral import algorithms, compressors
from decentral.simulate import Links, Machine, Workload, predict

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536, 100_000)
RATES = {"1 Gbit/s": 1e9, "100 Mbit/s": 1e8}
BITS = {"float32": ("none", {}), "4 bits": ("nuqsgd", {"bits": 4})}
GOSSIP = {
    "float32": ("d-psgd", "sgp"),
    "4 bits": ("ecd-psgd", "deepsqueeze"),
}  # the first that fits


def compressor(precision):
    name, options = BITS[precision]
    return compressors.from_name(name, **options)


def gossip(topology, precision):
    """Return a gossip algorithm on a topology by name: the second where it is directed."""
    graph = decentral_topologies.from_name(topology, 64)
    for name in GOSSIP[precision]:
        options = {"topology": topology, "compressor": compressor(precision)}
        algorithm = algorithms.from_name(name, **options)
        if algorithm.accepts(graph):
            return algorithm
    raise ValueError(f"{topology}: expected one that {GOSSIP[precision]} take; leave it out")


def cheap(name):
    """Return whether a rank's messages stay few, by the step that is most at 64 ranks."""
    graph = decentral_topologies.from_name(name, 64)
    return max(map(graph.degree, range(64))) <= 16


def systems(topologies):
    """Return {name: (what makes the algorithm, how vectors are added up)}."""
    found = {}
    for precision in BITS:
        found[f"all-reduce, {precision}"] = (
            lambda p=precision: algorithms.from_name("allreduce", compressor=compressor(p)),
            "ring",
        )
    found["all-reduce, float32, tree"] = found["all-reduce, float32"][0], "tree"
    for topology in topologies:
        for precision in BITS:
            make = lambda t=topology, p=precision: gossip(t, p)  # noqa: E731
            found[f"{topology}, {precision}"] = make, "ring"
    return found


def curves(bandwidth, args):
    """Return {name: [(workers, seconds)]}, without the sizes that a system refuses."""
    workload = Workload.of(round(args.million * 1e6))
    links, machine = Links(bandwidth=bandwidth), Machine(compute_s=args.compute)
    found = {}
    for name, (make, sums) in systems(args.topologies).items():
        algorithm, points = make(), []
        for n in SIZES:
            try:
                step = predict(algorithm, n, workload, links, machine, sums=sums)
            except ValueError:  # a topology may want a power of two
                continue
            points.append((n, step.total))
        if points:
            found[name] = points
    return found


def draw(panels, path):
    """Draw a panel per bandwidth, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "decentral"  # the same picture from the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), sharey=True, figsize=(11, 4.6), squeeze=False)
    for axis, (title, found) in zip(axes[0], panels.items(), strict=True):
        for i, (name, points) in enumerate(found.items()):
            style = "--" if "4 bits" in name else ":" if "tree" in name else "-"
            family = name.partition(",")[0]
            families = list(dict.fromkeys(n.partition(",")[0] for n in found))
            color = f"C{families.index(family)}"
            axis.loglog(*zip(*points, strict=True), style, color=color, label=name, zorder=9 - i)
        axis.set_title(title)
        axis.set_xlabel("workers")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("s per step, predicted")
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def table(found):
    """Return a table of some sizes, in Markdown."""
    sizes = (4, 64, 1024, 16384, 100_000)
    lines = [["system", *(f"{n:,}" for n in sizes)], ["---"] * (len(sizes) + 1)]
    for name, points in found.items():
        seconds = dict(points)
        lines.append([name, *(f"{seconds[n]:.3g}" if n in seconds else "-" for n in sizes)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    known = decentral_topologies.available()
    parser.add_argument("--svg", metavar="FILE")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--million", type=float, default=25, help="parameters, in millions")
    parser.add_argument("--compute", type=float, default=0.2, help="seconds of a step")
    parser.add_argument("--topologies", nargs="+", choices=known)
    args = parser.parse_args()
    args.topologies = args.topologies or [name for name in known if cheap(name)]
    panels = {title: curves(bandwidth, args) for title, bandwidth in RATES.items()}
    for title, found in panels.items():
        if args.tables or not args.svg:
            print(f"\n{title}\n\n{table(found)}")
    if args.svg:
        draw(panels, args.svg)


if __name__ == "__main__":
    main()
