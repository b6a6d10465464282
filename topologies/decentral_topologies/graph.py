"""What every topology is: a graph over the ranks, and the matrix that mixes along its edges."""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Position = tuple[float, float]
_ROUNDING = 1e-9


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

    A family lives in a file of its own, sets `name`, and writes `_adjacent`. A directed one also
    writes `_sources`; one that changes from step to step writes `period`, and may leave a step's
    graph unconnected as long as all of them together are not. Steps count from 0.

    Raises ValueError if size is not an int >= 1.
    """

    name: str
    directed: bool = False
    time_varying: bool = False
    from_size: bool = True  # whether the size alone is enough to make one

    def __init__(self, size: int) -> None:
        """Make the topology of `size` ranks."""
        self.size: Final = positive(self.name, "size", size, "pass the number of ranks")

    @classmethod
    def exists(cls, size: int) -> bool:
        """Tell whether the family has a graph of `size` ranks."""
        return size >= 1

    @property
    def period(self) -> int:
        """Return the number of steps after which the graphs repeat: 1 if they are all the same."""
        return 1

    @abstractmethod
    def _adjacent(self, rank: int, step: int) -> Iterable[int]:
        """Return the ranks that a valid rank sends to at a step in 0..period-1.

        Repeats and the rank itself do no harm.
        """

    def _sources(self, rank: int, step: int) -> Iterable[int]:
        """Return the ranks that a valid rank receives from, likewise."""
        return self._adjacent(rank, step)

    def targets(self, rank: int, step: int = 0) -> tuple[int, ...]:
        """Return the ranks that `rank` sends to, sorted, without itself.

        Raises ValueError if rank is not an int in 0..size-1, or step not an int >= 0.
        """
        rank = self._checked(rank)
        # A short axis names a rank twice, or itself. Dropping both here, once, keeps every family
        # free of special cases.
        return tuple(sorted(set(self._adjacent(rank, self._phase(step))) - {rank}))

    def sources(self, rank: int, step: int = 0) -> tuple[int, ...]:
        """Return the ranks that `rank` receives from, as targets() does."""
        rank = self._checked(rank)
        return tuple(sorted(set(self._sources(rank, self._phase(step))) - {rank}))

    def neighbors(self, rank: int, step: int = 0) -> tuple[int, ...]:
        """Return the ranks that `rank` sends to or receives from, as targets() does."""
        targets = self.targets(rank, step)
        if not self.directed:
            return targets
        return tuple(sorted({*targets, *self.sources(rank, step)}))

    def degree(self, rank: int, step: int = 0) -> int:
        """Return the number of ranks that `rank` sends to; Raises ValueError on a bad rank."""
        return len(self.targets(rank, step))

    def edges(self, step: int = 0) -> tuple[tuple[int, int], ...]:
        """Return every edge once, sorted: as (i, j) with i < j, or, if directed, i sends to j."""
        ranks = range(self.size)
        either = self.directed
        return tuple((i, j) for i in ranks for j in self.targets(i, step) if either or i < j)

    def weights(self, rank: int, step: int = 0) -> dict[int, float]:
        """Return row `rank` of W, {j: W_ij} for its sources and itself, by j, at a cost by degree.

        Undirected: Metropolis-Hastings weights, W_ij = 1 / (1 + max(deg_i, deg_j)), the rest on the
        diagonal: L. Xiao and S. Boyd, "Fast linear iterations for distributed averaging", Systems &
        Control Letters 53 (2004). Directed: every rank j splits what it has evenly, W_ij =
        1 / (1 + out-degree of j), so that columns sum to 1: D. Kempe, A. Dobra and J. Gehrke,
        "Gossip-based computation of aggregate information", FOCS 2003.

        Raises ValueError on a bad rank or step.
        """
        rank = self._checked(rank)
        own = self.degree(rank, step)
        if self.directed:
            row = {j: 1.0 / (1 + self.degree(j, step)) for j in self.sources(rank, step)}
            row[rank] = 1.0 / (1 + own)
        else:
            neighbors = self.neighbors(rank, step)
            row = {j: 1.0 / (1 + max(own, self.degree(j, step))) for j in neighbors}
            row[rank] = 1.0 - math.fsum(row.values())
        return dict(sorted(row.items()))

    def is_doubly_stochastic(self) -> bool:
        """Tell whether rows and columns of W sum to 1 at every step, at a cost of size * degree."""
        for step in range(self.period):
            columns = [0.0] * self.size
            for rank in range(self.size):
                row = self.weights(rank, step)
                for j, weight in row.items():
                    columns[j] += weight
                if abs(math.fsum(row.values()) - 1) > _ROUNDING:
                    return False
            if any(abs(column - 1) > _ROUNDING for column in columns):
                return False
        return True

    def mixing_matrix(self, step: int = 0) -> NDArray[np.float64]:
        """Return W, float64 [size, size], whose rows weights() tells.

        Undirected, it is symmetric and doubly stochastic; directed, its columns sum to 1.
        """
        matrix = np.zeros((self.size, self.size))
        for i in range(self.size):
            row = self.weights(i, step)
            matrix[i, list(row)] = list(row.values())
        return matrix

    def spectral_gap(self) -> float:
        """Return 1 - the second largest |eigenvalue| of W; 1 where one mixing gives the average.

        Time-varying: 1 - ||P - 11'/n||_2 of the product P of the W of one period, which is how much
        a period, not a step, takes at least from the distance to the average.
        """
        if self.size == 1:
            return 1.0
        if self.time_varying:
            steps = reversed(range(self.period))  # W of step 0 is applied first, so it stands last
            product = functools.reduce(operator.matmul, map(self.mixing_matrix, steps))
            return float(1.0 - np.linalg.norm(product - 1.0 / self.size, 2))
        mixing = self.mixing_matrix()
        spectrum = np.linalg.eigvals(mixing) if self.directed else np.linalg.eigvalsh(mixing)
        return float(1.0 - np.sort(np.abs(spectrum))[-2])

    def walks(self, chunk: int) -> Iterable[Sequence[int]]:
        """Return orders of the ranks whose every run of `chunk` has few edges to the other runs.

        None, unless the family knows better ones than 0, 1, 2, ...; place() tries them.
        """
        return ()

    def sketch(self) -> str | None:
        """Return the family's own text picture; None, and its neighbors are listed."""
        return None

    def layout(self) -> list[Position] | None:
        """Return the family's own (x, y) of each rank, about 1 apart; None for a circle."""
        return None

    def _checked(self, rank: int) -> int:
        if type(rank) is int and 0 <= rank < self.size:
            return rank  # before an error is put into words: everything asks here
        error = (
            f"{self.name}: rank must be an int in 0..{self.size - 1}, got {rank!r}; "
            f"the topology was made for size {self.size}"
        )
        rank = integer(rank, error)
        if not 0 <= rank < self.size:
            raise ValueError(error)
        return rank

    def _phase(self, step: int) -> int:
        if type(step) is int and step >= 0:
            return step % self.period
        error = f"{self.name}: step must be an int >= 0, got {step!r}; steps count from 0"
        step = integer(step, error)
        if step < 0:
            raise ValueError(error)
        return step % self.period

    def __repr__(self) -> str:
        """Show the call that makes an equal topology."""
        return f"{type(self).__name__}({self.size})"

    def __eq__(self, other: object) -> bool:
        """Compare the graphs' family, size and shape."""
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        """Hash what __eq__ compares."""
        return hash(repr(self))
