"""The complete graph: each rank joined to all others."""

from __future__ import annotations

from decentral_topologies.graph import Topology


class Complete(Topology):
    """The complete graph: W_ij = 1/size everywhere, so that one mixing gives the exact average."""

    name = "complete"

    def _adjacent(self, rank: int, step: int) -> range:
        return range(self.size)

    def degree(self, rank: int, step: int = 0) -> int:
        """Return size - 1; Raises ValueError on a bad rank."""
        # Without this, weights() would list n neighbors of n neighbors.
        self._checked(rank)
        self._phase(step)
        return self.size - 1
