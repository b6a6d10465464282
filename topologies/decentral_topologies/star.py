"""The star: rank 0 joined to all others, as a parameter server is."""

from __future__ import annotations

from collections.abc import Iterable

from decentral_topologies.draw import circle
from decentral_topologies.graph import Position, Topology


class Star(Topology):
    """Rank 0, the hub, joined to every other rank, and no other edge; all edges weigh 1/size."""

    name = "star"

    def _adjacent(self, rank: int, step: int) -> Iterable[int]:
        return (0,) if rank else range(self.size)

    def degree(self, rank: int, step: int = 0) -> int:
        """Return size - 1 of the hub and 1 of the others; Raises ValueError on a bad rank."""
        # Without this, weights() of a leaf would list the hub's neighbors.
        self._phase(step)
        return 1 if self._checked(rank) else self.size - 1

    def layout(self) -> list[Position]:
        """Return the hub in the middle of a circle of the others."""
        return [(0.0, 0.0), *circle(self.size - 1)]
