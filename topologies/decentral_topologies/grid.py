"""The grid: ranks in rows and columns whose ends are not joined."""

from __future__ import annotations

from decentral_topologies.lattice import Lattice2D


class Grid(Lattice2D):
    """The rows x columns grid, its ends open; rank = row * columns + column.

    A side that is left out is inferred; without any, the grid is the most square one, rows <=
    columns.

    Raises ValueError if rows * columns is not size.
    """

    name = "grid"
    wraps = False
