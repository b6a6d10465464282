"""Tables of the network benchmarks, in Markdown, from the dictionaries of their JSON files."""


def ratio(systems, name, base):
    """Return seconds per step of a system as a share of another's; None where one is missing."""
    if not systems.get(name) or not systems.get(base):
        return None
    return systems[name]["mean_s"] / systems[base]["mean_s"]


def number(value, pattern="{:.2f}"):
    """Return a cell; a dash for what was not measured."""
    return "-" if value is None else pattern.format(value)


def markdown(head, rows):
    """Return a table of strings."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def title(run):
    """Return one line that says where a run was measured."""
    rate = run["rate"] or "no limit"
    ranks = run["ranks_per_host"]
    return (
        f"{run['hosts']} hosts, {ranks} rank{'s' if ranks > 1 else ''} each, {rate} "
        f"(one connection carries {run['link_bits_per_s'] / 1e9:.3g} Gbit/s), {run['mpi']}"
    )


def steps(run):
    """Return the table of a run of step.py."""
    systems = run["systems"]
    head = ["system", "s per step (range)", "of ddp", "of ddp-fp16", "MB sent per rank and step"]
    head += ["processor s", "hidden"]
    rows = []
    for name, found in systems.items():
        if not found:
            rows.append([name, "failed", *["-"] * (len(head) - 2)])
            continue
        spread = f"{found['lowest_s']:.3f} to {found['highest_s']:.3f}"
        sent = found["wire_bytes"] / run["ranks_per_host"] / 1e6
        rows.append(
            [
                name,
                f"{found['mean_s']:.3f} ({spread})",
                number(ratio(systems, name, "ddp")),
                number(ratio(systems, name, "ddp-fp16")),
                number(sent),
                number(found["cpu_s"], "{:.3f}"),
                number(found.get("hidden")),
            ]
        )
    return markdown(head, rows)


def wire_seconds(mib, ranks, bits_per_s):
    """Return what an all-reduce of so many MiB takes at least, one rank per host."""
    return 2 * (ranks - 1) / ranks * mib * 2**20 * 8 / bits_per_s


def exchanges(run):
    """Return the table of a run of exchange.py."""
    systems = run["systems"]
    rows = []
    for mib in sorted({int(name.split("-")[2]) for name in systems}):
        least = wire_seconds(mib, run["hosts"], run["link_bits_per_s"])
        for who in ("decentral", "mpi", "gloo"):
            found = systems.get(f"sum-{who}-{mib}")
            if not found:
                continue
            share = ratio(systems, f"sum-{who}-{mib}", f"sum-gloo-{mib}")
            cells = [f"{found['mean_s']:.3f}", number(share), number(found["mean_s"] / least)]
            rows.append([f"{mib} MiB", who, *cells, f"{found['cpu_s']:.3f}"])
    return markdown(["float32", "by", "s", "of gloo", "of the wire", "processor s"], rows)


def accuracies(run):
    """Return the table of a run of accuracy.py."""
    systems, target = run["systems"], run["target"]
    base = (systems.get("ddp") or {}).get("seconds")
    rows = []
    for name, found in systems.items():
        if not found:
            rows.append([name, "failed", "-", "-", "-"])
            continue
        share = number(found["seconds"] / base if base else None)
        cells = [f"{found['seconds']:.1f}", share, f"{found['steps']:g}"]
        rows.append([name, *cells, f"{found['reached']} of {run['seeds']}"])
    head = ["system", f"s to an accuracy of {target}", "of ddp", "steps", "seeds that reached it"]
    return markdown(head, rows)


def overlaps(run):
    """Return the table of a run of overlap.py."""
    head = ["system", "batch", "s computing", "s communicating", "s for both", "hidden (range)"]
    rows = []
    for name, found in run["systems"].items():
        if not found:
            rows.append([name, "failed", *["-"] * 5])
            continue
        seconds = [f"{found[k]:.3f}" for k in ("compute_s", "communication_s", "mean_s")]
        low, high = min(found["shares"]), max(found["shares"])
        share = f"{found['hidden']:.2f} ({low:.2f} to {high:.2f})"
        rows.append(
            [name, f"{found['batch']:.0f}", *seconds, share, number(found.get("stats_hidden"))]
        )
    return markdown([*head, "stats()'s hidden"], rows)
