"""A graph of one's own: edges from a list, from networkx, or from a file of a cluster's wiring."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from decentral_topologies.graph import Topology, integer

Link = tuple[int, int]
Edge = tuple[int, int] | tuple[int, int, float]
_WANTED = "pairs (i, j), triples (i, j, weight), a networkx graph or the path of a file of them"


class Graph(Topology):
    """The graph with the given edges, and weights of one's own where they are given.

    Args:
        edges: pairs (i, j) of ranks, in either order; or triples (i, j, weight), of which weight is
            W_ij = W_ji and the rest of every row goes on the diagonal; or an undirected networkx
            graph over 0..size-1, whose attribute `weight`, if there, is the weight; or the path of
            a file, see read(). Without weights they are Metropolis-Hastings'.

    Raises:
        ValueError: an edge or a weight is not valid, a row sums to more than 1, the graph is not
            connected, or its mixing would go back and forth for ever.
    """

    name = "graph"
    from_size = False

    def __init__(
        self, size: int, edges: Iterable[Edge] | str | os.PathLike[str] | Any | None = None
    ) -> None:
        """Make the graph of `size` ranks."""
        super().__init__(size)
        if edges is None:
            raise ValueError(f"{self.name}: edges must be given, got none; pass {_WANTED}")
        self._links = self._validated(_listed(edges))
        self._rows: list[dict[int, float | None]] = [{} for _ in range(self.size)]
        for (i, j), weight in self._links.items():
            self._rows[i][j] = self._rows[j][i] = weight
        self._check_rows()
        self._check_reach()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Graph:
        """Return the graph of a text file with a line 'i j' or 'i j weight' per edge.

        What follows a # is a comment. The size is the largest rank plus 1.

        Raises ValueError on a line that is neither, and where Graph does.
        """
        edges = _read(path)
        if not edges:
            raise ValueError(
                f"graph: {os.fspath(path)} must have a line per edge, got none; list the edges"
            )
        return cls(1 + max(max(edge[:2]) for edge in edges), edges)

    def _validated(self, edges: Iterable[Any]) -> Mapping[Link, float | None]:
        links: dict[Link, float | None] = {}
        for edge in edges:
            (i, j), weight = self._link(edge), self._weight(edge)
            if links.setdefault((i, j), weight) != weight:
                raise ValueError(
                    f"{self.name}: edge ({i}, {j}) must have one weight, got {links[i, j]!r} and "
                    f"{weight!r}; weights are the same in both directions"
                )
        bare = [link for link, weight in links.items() if weight is None]
        if bare and len(bare) < len(links):
            raise ValueError(
                f"{self.name}: all edges or none must have a weight, got none for edge {bare[0]}; "
                "give it one, or leave all out"
            )
        return dict(sorted(links.items()))

    def _link(self, edge: Any) -> Link:
        error = (
            f"{self.name}: an edge must be two different ranks in 0..{self.size - 1}, "
            f"and a weight or not, got {edge!r}; pass {_WANTED}"
        )
        if not isinstance(edge, tuple | list) or len(edge) not in (2, 3):
            raise ValueError(error)
        i, j = sorted(integer(rank, error) for rank in edge[:2])
        if not 0 <= i < j < self.size:
            raise ValueError(error)
        return i, j

    def _weight(self, edge: Any) -> float | None:
        if len(edge) == 2 or edge[2] is None:
            return None
        try:
            weight = float(edge[2])
        except (TypeError, ValueError):
            weight = math.nan
        if not 0 < weight <= 1:
            raise ValueError(
                f"{self.name}: the weight of edge ({edge[0]}, {edge[1]}) must be a number above 0 "
                f"and at most 1, got {edge[2]!r}; leave the edge out if nothing is to be sent"
            )
        return weight

    def _check_rows(self) -> None:
        for rank, row in enumerate(self._rows):
            total = math.fsum(weight or 0.0 for weight in row.values())
            if total > 1 + 1e-9:
                raise ValueError(
                    f"{self.name}: the weights of rank {rank}'s edges must sum to at most 1, "
                    f"got {total:.6g}; scale them down"
                )

    def _check_reach(self) -> None:
        hops = {0: 0}
        queue = [0]
        for rank in queue:  # which grows on the way
            new = [j for j in self._rows[rank] if j not in hops]
            hops |= dict.fromkeys(new, hops[rank] + 1)
            queue += new
        if len(hops) < self.size:
            lost = next(rank for rank in range(self.size) if rank not in hops)
            raise ValueError(
                f"{self.name}: all ranks must be connected, got no way from rank 0 to rank {lost}; "
                "add an edge"
            )
        parts = all((hops[i] + hops[j]) % 2 for i, j in self._links)
        if self.size > 1 and parts and all(self._own(rank) <= 0 for rank in range(self.size)):
            raise ValueError(
                f"{self.name}: some rank must keep a share, got rows that sum to 1 without the "
                "diagonal on a graph of two sides, which would swap for ever; scale weights down"
            )

    def _own(self, rank: int) -> float:
        """Return W_ii as far as weights of one's own say; 1 without any."""
        left = 1.0 - math.fsum(weight or 0.0 for weight in self._rows[rank].values())
        return left if left > 1e-9 else 0.0  # ten times 0.1 is not quite 1

    def _adjacent(self, rank: int, step: int) -> Iterable[int]:
        return self._rows[rank]

    def weights(self, rank: int, step: int = 0) -> dict[int, float]:
        """Return row `rank` of W, see Topology.weights; the weights of one's own if there are."""
        row = super().weights(rank, step)
        given = self._rows[rank]
        if None in given.values() or not given:
            return row
        return {j: self._own(rank) if j == rank else given[j] or 0.0 for j in row}

    def __repr__(self) -> str:
        """Show the call that makes an equal topology, with its edges."""
        edges = [link if w is None else (*link, w) for link, w in self._links.items()]
        return f"Graph({self.size}, edges={edges})"


def _listed(edges: Any) -> Iterable[Any]:
    """Return what was passed as edges as an iterable of pairs and triples."""
    if isinstance(edges, str | os.PathLike):
        return _read(edges)
    if hasattr(edges, "is_directed") and hasattr(edges, "edges"):  # without importing networkx
        if edges.is_directed():
            raise ValueError(
                f"graph: a networkx graph must be undirected, got {edges}; pass its to_undirected()"
            )
        return list(edges.edges(data="weight"))
    if not isinstance(edges, Iterable):
        raise ValueError(f"graph: edges must be what Graph takes, got {edges!r}; pass {_WANTED}")
    return edges


def _read(path: str | os.PathLike[str]) -> list[Edge]:
    edges: list[Edge] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("#")[0].split()
        if fields:
            edges.append(_parsed(fields, f"{os.fspath(path)}, line {number}", line))
    return edges


def _parsed(fields: list[str], where: str, line: str) -> Edge:
    try:
        if len(fields) == 2:
            return int(fields[0]), int(fields[1])
        i, j, weight = fields
        return int(i), int(j), float(weight)
    except ValueError:
        raise ValueError(
            f"graph: {where}: must be 'i j' or 'i j weight', got {line.strip()!r}; "
            "a comment starts with #"
        ) from None
