"""The torus: ranks on a grid, row by row, whose rows and columns are rings."""

from __future__ import annotations

import functools
import logging
import math

from decentral_topologies.draw import ELLIPSIS, elide
from decentral_topologies.graph import Position, Topology, positive


def _squarest(size: int) -> tuple[int, int]:
    """Return the factorization rows * columns of size that is nearest to a square, rows first."""
    rows = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
    return rows, size // rows


@functools.cache  # once per process and size
def _warn_prime(size: int) -> None:
    rows, columns = _squarest(size + 1)
    logging.getLogger("decentral").warning(
        f"torus: size {size} is prime, so its torus is 1 x {size}, a ring; "
        f"size {size + 1} would be {rows} x {columns}"
    )


class Torus(Topology):
    """The rows x columns grid with wrapped ends; rank = row * columns + column.

    An axis of length 1 adds no edge, one of length 2 a single edge. A side that is left out is
    inferred; without any, the grid is the most square one, rows <= columns.

    Raises ValueError if rows * columns is not size.
    """

    name = "torus"

    def __init__(self, size: int, rows: int | None = None, columns: int | None = None) -> None:
        """Make the torus of `size` ranks; warns where a prime size makes a ring of it."""
        super().__init__(size)
        self.rows, self.columns = self._shape(rows, columns)
        if rows is None and columns is None and self.rows == 1 and self.size >= 5:
            _warn_prime(self.size)

    def _shape(self, rows: int | None, columns: int | None) -> tuple[int, int]:
        if rows is None and columns is None:
            return _squarest(self.size)
        if columns is None:
            return self._side("rows", rows)
        if rows is None:
            return self._side("columns", columns)[::-1]
        remedy = "leave it out to have it inferred"
        rows = positive(self.name, "rows", rows, remedy)
        columns = positive(self.name, "columns", columns, remedy)
        if rows * columns != self.size:
            raise ValueError(
                f"torus: rows * columns must be {self.size}, "
                f"got {rows} x {columns} = {rows * columns}; "
                "leave one of them out to have it inferred"
            )
        return rows, columns

    def _side(self, what: str, length: int | None) -> tuple[int, int]:
        """Return the given side and the one that follows from it."""
        divisors = [d for d in range(1, self.size + 1) if self.size % d == 0]
        remedy = f"use one of {', '.join(map(str, divisors))}"
        given = positive(self.name, what, length, remedy)
        if given not in divisors:
            raise ValueError(f"torus: {what} must divide size {self.size}, got {given}; {remedy}")
        return given, self.size // given

    def _adjacent(self, rank: int, step: int) -> tuple[int, ...]:
        row, column = divmod(rank, self.columns)
        up, down = ((row + d) % self.rows * self.columns + column for d in (-1, 1))
        left, right = (row * self.columns + (column + d) % self.columns for d in (-1, 1))
        return up, down, left, right

    def layout(self) -> list[Position]:
        """Return the grid, row 0 on top."""
        cells = (divmod(rank, self.columns) for rank in range(self.size))
        return [(float(column), -float(row)) for row, column in cells]

    def sketch(self) -> str:
        """Return the grid of ranks; dashed stubs mark the axes that wrap around."""
        width = len(str(self.size - 1))
        labels = [f"{rank:{width}}" for rank in range(self.size)]
        grid = [elide(labels[at : at + self.columns]) for at in range(0, self.size, self.columns)]
        stub, margin = ("╌", "  ") if self.columns > 2 else ("", "")

        def bars(mark: str) -> str:
            cells = ((" " if cell == ELLIPSIS else mark).rjust(len(cell)) for cell in grid[0])
            return margin + "    ".join(cells)

        lines = [f"{stub} {' ── '.join(row)} {stub}".strip() for row in grid]
        body = f"\n{bars('│')}\n".join(elide(lines, margin + "⋮".rjust(width)))
        return f"{bars('╎')}\n{body}\n{bars('╎')}" if self.rows > 2 else body

    def __repr__(self) -> str:
        """Show the call that makes an equal topology, with the shape."""
        return f"Torus({self.size}, rows={self.rows}, columns={self.columns})"
