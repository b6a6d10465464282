"""Pictures of a topology: text for the terminal, and a drawing with networkx and matplotlib."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral_topologies.graph import Position, Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ELLIPSIS = "…"


def elide(items: Sequence[str], filler: str = ELLIPSIS, limit: int = 10) -> list[str]:
    """Return the items, or, if more than limit, those at both ends around the filler."""
    if len(items) <= limit:
        return list(items)
    end = limit // 2
    return [*items[:end], filler, *items[-end:]]


def to_text(topology: Topology) -> str:
    """Return a text picture of step 0, then a line: edges, degree, spectral gap."""
    return f"{topology.sketch() or _neighbor_list(topology)}\n{_summary(topology)}"


def draw(topology: Topology, path_or_axes: str | os.PathLike[str] | Axes | None = None) -> Figure:
    """Draw into the given axes, or on a new figure, saved if given a path, and return the figure.

    Directed edges are arrows; of a topology that changes with the step, step 0 is drawn.

    Raises ImportError if networkx or matplotlib is missing, ValueError on a file extension that
    matplotlib cannot write.
    """
    networkx = _needed("networkx")
    matplotlib_figure = _needed("matplotlib.figure")
    if path_or_axes is None or isinstance(path_or_axes, (str, os.PathLike)):
        side = 4 + math.sqrt(topology.size) / 2
        # Not through pyplot: that would keep the figure alive and may open a window.
        axes = matplotlib_figure.Figure(figsize=(side, side), layout="constrained").add_subplot()
    else:
        axes = path_or_axes
    _draw_graph(networkx, topology, axes)
    figure: Figure = axes.figure
    if isinstance(path_or_axes, (str, os.PathLike)):
        figure.savefig(path_or_axes)
    return figure


def _neighbor_list(topology: Topology) -> str:
    width = len(str(topology.size - 1))
    link = " → " if topology.directed else ": "
    lines = []
    for rank in range(topology.size):
        targets = " ".join(elide([f"{j:{width}}" for j in topology.targets(rank)]))
        lines.append(f"{rank:{width}}{link}{targets}" if targets else f"{rank:{width}}")
    return "\n".join(elide(lines, "⋮".rjust(width)))


def _summary(topology: Topology) -> str:
    edges = len(topology.edges())
    degrees = sorted({topology.degree(rank) for rank in range(topology.size)})
    degree = str(degrees[0]) if len(degrees) == 1 else f"{degrees[0]} to {degrees[-1]}"
    summary = (
        f"{topology.name} of {topology.size}: {edges} {'directed ' * topology.directed}"
        f"edge{'' if edges == 1 else 's'}, degree {degree}, "
        f"spectral gap {topology.spectral_gap():.3g}"
    )
    if topology.period > 1:
        summary += f"\nthis is step 0 of {topology.period}; the gap is that of all of them"
    return summary


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"draw: needs {module}, and importing it failed with '{error}'; "
            "pip install decentral[examples]"
        ) from error


def _draw_graph(networkx: Any, topology: Topology, axes: Any) -> None:
    positions = topology.layout() or circle(topology.size)
    at = dict(enumerate(positions))
    graph = (networkx.DiGraph if topology.directed else networkx.Graph)(topology.edges())
    graph.add_nodes_from(at)
    curved = [edge for edge in topology.edges() if _hidden(edge, positions)]
    straight = sorted(set(topology.edges()) - set(curved))
    style = {"ax": axes, "edge_color": "#7a8794", "width": 1.4, "node_size": 320}
    networkx.draw_networkx_edges(graph, at, edgelist=straight, **style)
    for i, j in curved:
        # The same height for long and short arcs, so that none runs through the next row's ranks.
        # arrows=True selects patches that can bend; only on a directed graph they have heads.
        bend = f"arc3,rad={0.8 / math.dist(at[i], at[j])}"
        networkx.draw_networkx_edges(
            graph, at, edgelist=[(i, j)], arrows=True, connectionstyle=bend, **style
        )
    networkx.draw_networkx_nodes(graph, at, ax=axes, node_color="#2f6f9f", node_size=320)
    networkx.draw_networkx_labels(graph, at, ax=axes, font_color="white", font_size=9)
    axes.set_title(_summary(topology), fontsize=10)
    _frame(axes, positions)


def _frame(axes: Any, positions: list[Position]) -> None:
    # Limits of our own: a grid of one row has no height from which to take a margin.
    xs, ys = zip(*positions, strict=True)
    axes.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
    axes.set_ylim(min(ys) - 0.6, max(ys) + 0.6)
    axes.set_aspect("equal")
    axes.set_axis_off()


def circle(size: int) -> list[Position]:
    """Return positions about 1 apart, clockwise from rank 0 on top."""
    radius = max(1.0, size / (2 * math.pi))
    turns = (2 * math.pi * rank / size for rank in range(size))
    return [(radius * math.sin(turn), radius * math.cos(turn)) for turn in turns]


def _hidden(edge: tuple[int, int], positions: list[Position]) -> bool:
    """Tell whether a straight line would run through another rank, as a torus' wrap does."""
    start, end = (np.array(positions[rank]) for rank in edge)
    others = np.delete(np.array(positions), edge, axis=0) - start
    along = end - start
    off_line = np.abs(others[:, 0] * along[1] - others[:, 1] * along[0]) / np.linalg.norm(along)
    share = others @ along / (along @ along)
    return bool(np.any((off_line < 1e-6) & (share > 0) & (share < 1)))
