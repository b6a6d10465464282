"""What grids and tori share: ranks along the lines of a box, and how its sides are found."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterator

import numpy as np

from decentral_topologies.draw import ELLIPSIS, elide
from decentral_topologies.graph import Position, Topology, positive


def most_even(size: int, axes: int) -> tuple[int, ...]:
    """Return the factors of size, as many as axes, ascending, whose sum is the least."""
    if axes == 1:
        return (size,)
    if axes == 2:
        short = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
        return short, size // short
    shortest = itertools.takewhile(lambda d: d**axes <= size, itertools.count(1))
    factors = ((d, *most_even(size // d, axes - 1)) for d in shortest if size % d == 0)
    first, *rest = sorted(min(factors, key=sum))
    return (first, *rest)


def times(*sides: int) -> str:
    """Return the sides as text, 3 x 4."""
    return " x ".join(map(str, sides))


@functools.cache  # once per process, family and size
def _warn_prime(name: str, size: int, axes: int, line: str) -> None:
    shape, next_shape = (times(*most_even(n, axes)) for n in (size, size + 1))
    logging.getLogger("decentral").warning(
        f"{name}: size {size} is prime, so its {name} is {shape}, a {line}; "
        f"size {size + 1} would be {next_shape}"
    )


class Lattice(Topology):
    """A box of ranks, numbered along its last axis first, each joined to the next on every axis.

    A family says whether the ends of an axis are joined too; then an axis of length 2 still has a
    single edge, and one of length 1 none. Sides that are left out are inferred, as even as possible
    and ascending.

    Raises ValueError if the product of the sides is not size.
    """

    wraps: bool

    def __init__(self, size: int, **sides: int | None) -> None:
        """Make the lattice of `size` ranks; warns where a prime size makes a line of it."""
        super().__init__(size)
        self.sides = self._inferred(sides)
        if self.size >= 5 and set(sides.values()) == {None} and max(self.shape) == self.size:
            _warn_prime(self.name, self.size, len(sides), "ring" if self.wraps else "path")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the lengths of the axes."""
        return tuple(self.sides.values())

    def _inferred(self, sides: dict[str, int | None]) -> dict[str, int]:
        given = {what: length for what, length in sides.items() if length is not None}
        if len(given) == len(sides):
            return self._checked_product(given)
        left = self.size
        for what, length in given.items():
            given[what] = self._checked_side(what, length, left)
            left //= given[what]
        others = iter(most_even(left, len(sides) - len(given)))
        return {what: given[what] if what in given else next(others) for what in sides}

    def _checked_product(self, sides: dict[str, int]) -> dict[str, int]:
        remedy = "leave it out to have it inferred"
        sides = {what: positive(self.name, what, side, remedy) for what, side in sides.items()}
        product = math.prod(sides.values())
        if product != self.size:
            raise ValueError(
                f"{self.name}: {' * '.join(sides)} must be {self.size}, "
                f"got {times(*sides.values())} = {product}; "
                "leave one of them out to have it inferred"
            )
        return sides

    def _checked_side(self, what: str, length: int, left: int) -> int:
        divisors = [d for d in range(1, left + 1) if left % d == 0]
        remedy = f"use one of {', '.join(map(str, divisors))}"
        length = positive(self.name, what, length, remedy)
        if length not in divisors:
            whole = f"size {left}" if left == self.size else f"{left}, what the other sides leave"
            raise ValueError(f"{self.name}: {what} must divide {whole}, got {length}; {remedy}")
        return length

    def _adjacent(self, rank: int, step: int) -> Iterator[int]:
        stride = 1
        for length in reversed(self.shape):
            at = rank // stride % length
            for to in (at - 1, at + 1):
                if self.wraps or 0 <= to < length:
                    yield rank + (to % length - at) * stride
            stride *= length

    def walks(self, chunk: int) -> Iterator[list[int]]:
        """Return orders that go along the axes in turn, or tile by tile, for each shape of tile."""
        ranks = np.arange(self.size)
        for turned in itertools.permutations(range(len(self.shape))):
            yield ranks.reshape(self.shape).transpose(turned).ravel().tolist()
        for tile in _boxes(chunk, self.shape):
            # Each axis becomes two: which tile, and where in it.
            pairs = [(side // t, t) for side, t in zip(self.shape, tile, strict=True)]
            split = ranks.reshape([length for pair in pairs for length in pair])
            axes = range(split.ndim)
            yield split.transpose([*axes[::2], *axes[1::2]]).ravel().tolist()

    def __repr__(self) -> str:
        """Show the call that makes an equal topology, with the shape."""
        sides = ", ".join(f"{what}={length}" for what, length in self.sides.items())
        return f"{type(self).__name__}({self.size}, {sides})"


class Lattice2D(Lattice):
    """Rows x columns: rank = row * columns + column."""

    def __init__(self, size: int, rows: int | None = None, columns: int | None = None) -> None:
        """Make the lattice of `size` ranks; warns where a prime size makes a line of it."""
        super().__init__(size, rows=rows, columns=columns)
        self.rows, self.columns = self.shape

    def layout(self) -> list[Position]:
        """Return the grid, row 0 on top."""
        cells = (divmod(rank, self.columns) for rank in range(self.size))
        return [(float(column), -float(row)) for row, column in cells]

    def sketch(self) -> str:
        """Return the grid of ranks; dashed stubs mark the axes that wrap around."""
        width = len(str(self.size - 1))
        labels = [f"{rank:{width}}" for rank in range(self.size)]
        grid = [elide(labels[at : at + self.columns]) for at in range(0, self.size, self.columns)]
        stub, margin = ("╌", "  ") if self.wraps and self.columns > 2 else ("", "")

        def bars(mark: str) -> str:
            cells = ((" " if cell == ELLIPSIS else mark).rjust(len(cell)) for cell in grid[0])
            return margin + "    ".join(cells)

        lines = [f"{stub} {' ── '.join(row)} {stub}".strip() for row in grid]
        body = f"\n{bars('│')}\n".join(elide(lines, margin + "⋮".rjust(width)))
        return f"{bars('╎')}\n{body}\n{bars('╎')}" if self.wraps and self.rows > 2 else body


def _boxes(volume: int, within: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Return every box of that volume whose sides divide the sides of the one it lies in."""
    if not within:
        if volume == 1:
            yield ()
        return
    for side in range(1, min(volume, within[0]) + 1):
        if volume % side == 0 and within[0] % side == 0:
            for rest in _boxes(volume // side, within[1:]):
                yield side, *rest
