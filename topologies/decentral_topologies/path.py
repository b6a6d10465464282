"""The path: the ring without the edge that closes it."""

from __future__ import annotations

from decentral_topologies.draw import elide
from decentral_topologies.graph import Position, Topology


class Path(Topology):
    """The ranks in a line, each joined to the next; it mixes slowest of all, for comparisons."""

    name = "path"

    def _adjacent(self, rank: int, step: int) -> range:
        return range(max(rank - 1, 0), min(rank + 2, self.size))

    def layout(self) -> list[Position]:
        """Return the line."""
        return [(float(rank), 0.0) for rank in range(self.size)]

    def sketch(self) -> str:
        """Return the line."""
        return " ── ".join(elide([str(rank) for rank in range(self.size)]))
