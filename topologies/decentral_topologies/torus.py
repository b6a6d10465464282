"""The torus: ranks on a grid, row by row, whose rows and columns are rings."""

from __future__ import annotations

from decentral_topologies.lattice import Lattice2D


class Torus(Lattice2D):
    """The rows x columns grid with wrapped ends; rank = row * columns + column.

    An axis of length 1 adds no edge, one of length 2 a single edge. A side that is left out is
    inferred; without any, the grid is the most square one, rows <= columns.

    Raises ValueError if rows * columns is not size.
    """

    name = "torus"
    wraps = True
