"""What every topology is: a graph over the ranks, and the matrix that mixes along its edges."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

Position = tuple[float, float]


def integer(value: object, error: str) -> int:
    """Return value as a plain int; Raises ValueError(error) if it is not an integer."""
    try:
        # A bool is an int to Python, but as a size or a rank it is a slip.
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ValueError(error)


def positive(owner: str, what: str, value: object, remedy: str) -> int:
    """Return value as a plain int; Raises ValueError if it is not an integer >= 1."""
    error = f"{owner}: {what} must be an int >= 1, got {value!r}; {remedy}"
    number = integer(value, error)
    if number < 1:
        raise ValueError(error)
    return number


class Topology(ABC):
    """A connected graph over ranks 0..size-1, a pure function of (rank, size, step).

    A family lives in a file of its own, sets `name`, and writes `_adjacent`. The families so far
    are static: they ignore `step`.

    Raises ValueError if size is not an int >= 1.
    """

    name: ClassVar[str]
    directed: ClassVar[bool] = False
    time_varying: ClassVar[bool] = False

    def __init__(self, size: int) -> None:
        """Make the topology of `size` ranks."""
        self.size: Final = positive(self.name, "size", size, "pass the number of ranks")

    @abstractmethod
    def _adjacent(self, rank: int, step: int) -> Iterable[int]:
        """Return the neighbors of a valid rank; repeats and the rank itself do no harm."""

    def neighbors(self, rank: int, step: int = 0) -> tuple[int, ...]:
        """Return the ranks joined to `rank`, sorted, without itself.

        Raises ValueError if rank is not an int in 0..size-1.
        """
        rank = self._checked(rank)
        # A short axis names a rank twice, or itself. Dropping both here, once, keeps every family
        # free of special cases.
        return tuple(sorted(set(self._adjacent(rank, step)) - {rank}))

    def degree(self, rank: int, step: int = 0) -> int:
        """Return the number of neighbors of `rank`; Raises ValueError on a bad rank."""
        return len(self.neighbors(rank, step))

    def edges(self, step: int = 0) -> tuple[tuple[int, int], ...]:
        """Return every edge once, as (i, j) with i < j, sorted."""
        ranks = range(self.size)
        return tuple((i, j) for i in ranks for j in self.neighbors(i, step) if i < j)

    def weights(self, rank: int, step: int = 0) -> dict[int, float]:
        """Return the nonzero entries {j: W_ij} of row `rank` of W, by j, at a cost by degree.

        Raises ValueError on a bad rank.
        """
        rank = self._checked(rank)
        own = self.degree(rank, step)
        neighbors = self.neighbors(rank, step)
        row = {j: 1.0 / (1 + max(own, self.degree(j, step))) for j in neighbors}
        row[rank] = 1.0 - math.fsum(row.values())
        return dict(sorted(row.items()))

    def mixing_matrix(self, step: int = 0) -> NDArray[np.float64]:
        """Return W, float64 [size, size], symmetric, doubly stochastic, > 0 on edges and diagonal.

        Metropolis-Hastings weights, W_ij = 1 / (1 + max(deg_i, deg_j)) on edges, the rest on the
        diagonal: L. Xiao and S. Boyd, "Fast linear iterations for distributed averaging", Systems &
        Control Letters 53 (2004).
        """
        matrix = np.zeros((self.size, self.size))
        for i in range(self.size):
            row = self.weights(i, step)
            matrix[i, list(row)] = list(row.values())
        return matrix

    def spectral_gap(self) -> float:
        """Return 1 - max(|lambda_2|, |lambda_n|) of W; 1 where one mixing gives the average."""
        if self.size == 1:
            return 1.0
        ascending = np.linalg.eigvalsh(self.mixing_matrix())
        return float(1.0 - max(abs(ascending[-2]), abs(ascending[0])))

    def sketch(self) -> str | None:
        """Return the family's own text picture; None, and its neighbors are listed."""
        return None

    def layout(self) -> list[Position] | None:
        """Return the family's own (x, y) of each rank, about 1 apart; None for a circle."""
        return None

    def _checked(self, rank: int) -> int:
        error = (
            f"{self.name}: rank must be an int in 0..{self.size - 1}, got {rank!r}; "
            f"the topology was made for size {self.size}"
        )
        rank = integer(rank, error)
        if not 0 <= rank < self.size:
            raise ValueError(error)
        return rank

    def __repr__(self) -> str:
        """Show the call that makes an equal topology."""
        return f"{type(self).__name__}({self.size})"

    def __eq__(self, other: object) -> bool:
        """Compare the graphs' family, size and shape."""
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        """Hash what __eq__ compares."""
        return hash(repr(self))
