"""The ring: each rank between two others."""

from __future__ import annotations

from decentral_topologies.draw import elide
from decentral_topologies.graph import Topology


class Ring(Topology):
    """The cycle of `size` ranks: weights 1/3 from three on, one neighbor on two, none on one."""

    name = "ring"

    def _adjacent(self, rank: int, step: int) -> tuple[int, int]:
        return (rank - 1) % self.size, (rank + 1) % self.size

    def sketch(self) -> str:
        """Return the ring as a loop of two lines, clockwise from rank 0."""
        labels = [str(rank) for rank in range(self.size)]
        if self.size < 3:
            return " ── ".join(labels)
        half = (self.size + 1) // 2
        top = " ── ".join(elide(labels[:half]))
        bottom = " ── ".join(elide(labels[half:])[::-1])
        width = max(len(top), len(bottom)) + 2
        lines = (f" {line} ".center(width, "─") for line in (top, bottom))
        return "╭─{}─╮\n╰─{}─╯".format(*lines)
