"""The 3-D torus: ranks in a box, plane by plane and row by row, whose axes are rings."""

from __future__ import annotations

from decentral_topologies.graph import Position
from decentral_topologies.lattice import Lattice


class Torus3D(Lattice):
    """The planes x rows x columns box with wrapped ends.

    rank = (plane * rows + row) * columns + column. An axis of length 1 adds no edge, one of length
    2 a single edge. Sides that are left out are inferred; without any, the box is the most cubic
    one, planes <= rows <= columns.

    Raises ValueError if planes * rows * columns is not size.
    """

    name = "torus3d"
    wraps = True

    def __init__(
        self,
        size: int,
        planes: int | None = None,
        rows: int | None = None,
        columns: int | None = None,
    ) -> None:
        """Make the torus of `size` ranks; warns where a prime size makes a ring of it."""
        super().__init__(size, planes=planes, rows=rows, columns=columns)
        self.planes, self.rows, self.columns = self.shape

    def layout(self) -> list[Position]:
        """Return plane 0 in front, the others behind it, up and to the right."""
        apart = 1 + 0.7 * (self.planes - 1)  # so far that no plane reaches the next rank of another
        cells = (
            divmod(rank % (self.rows * self.columns), self.columns) for rank in range(self.size)
        )
        behind = (0.7 * (rank // (self.rows * self.columns)) for rank in range(self.size))
        return [
            (column * apart + shift, -row * apart + 0.6 * shift)
            for (row, column), shift in zip(cells, behind, strict=True)
        ]
