"""The random regular graph: equal degrees, the edges drawn from a seed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral_topologies.graph import Topology, integer

Table = NDArray[np.int64]


class RandomRegular(Topology):
    """A connected graph in which every rank has `degree` neighbors, drawn by `seed`.

    It depends on (size, degree, seed) alone, so that all ranks make the same one. By default the
    degree is 3, on odd sizes, which have no such graph, 4, and at most size - 1. Drawn by pairing
    stubs (B. Bollobas, European Journal of Combinatorics 1, 1980), where loops and double edges are
    then switched away: nearly uniform, which is all that a fast mixing needs.

    Raises ValueError if there is no connected graph of that size and degree.
    """

    name = "random-regular"

    def __init__(self, size: int, degree: int | None = None, seed: int = 0) -> None:
        """Draw the graph of `size` ranks."""
        super().__init__(size)
        default = min(3 + self.size % 2, self.size - 1)
        self._degree = default if degree is None else self._possible(degree)
        error = f"{self.name}: seed must be an int >= 0, got {seed!r}; all ranks need the same one"
        self.seed = integer(seed, error)
        if self.seed < 0:
            raise ValueError(error)
        self._table = _connected(self.size, self._degree, self.seed)

    def _possible(self, degree: int) -> int:
        n = self.size
        # Two ranks need degree 1, and from three on, degree 1 makes pairs that are not connected.
        least, most = min(2, n - 1), n - 1
        wanted = f"{least}..{most}" if least < most else str(most)
        error = (
            f"{self.name}: degree must be {wanted} at size {n}, got {degree!r}; "
            "leave it out to have one chosen"
        )
        degree = integer(degree, error)
        if not least <= degree <= most:
            raise ValueError(error)
        if n * degree % 2:
            raise ValueError(
                f"{self.name}: size * degree must be even, got {n} * {degree} = {n * degree}; "
                f"use degree {degree - 1} or {degree + 1}"
            )
        return degree

    def _adjacent(self, rank: int, step: int) -> list[int]:
        return self._table[rank].tolist()

    def __repr__(self) -> str:
        """Show the call that makes an equal topology, with the degree and the seed."""
        return f"RandomRegular({self.size}, degree={self._degree}, seed={self.seed})"


def _connected(size: int, degree: int, seed: int) -> Table:
    """Return the neighbors of every rank, int64 [size, degree], of the first connected draw."""
    # Raw words are the same in all versions of NumPy; shuffle() need not be.
    draws = (np.random.PCG64([seed, attempt]) for attempt in itertools.count())
    if degree == 2:  # a cycle is the only connected one; pairing would hardly ever draw it
        cycle = _shuffled(size, next(draws))
        return _table(np.stack([cycle, np.roll(cycle, 1)], axis=1), size, degree)
    tables = (_drawn(size, degree, raw) for raw in draws)
    return next(table for table in tables if table is not None and _is_connected(table))


def _drawn(size: int, degree: int, draws: Any) -> Table | None:
    """Return the neighbors of every rank, or None if this draw came to nothing."""
    if 2 * degree >= size:  # too dense to switch edges in: what it leaves out is drawn
        left_out = _drawn(size, size - 1 - degree, draws)
        return None if left_out is None else _complement(left_out)
    pairs = _simple(_shuffled(size * degree, draws).reshape(-1, 2) % size, size, draws)
    return _table(pairs, size, degree) if 2 * len(pairs) == size * degree else None


def _table(pairs: Table, size: int, degree: int) -> Table:
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return both[np.lexsort(both.T[::-1])][:, 1].reshape(size, degree)


def _shuffled(count: int, draws: Any) -> Table:
    return np.argsort(draws.random_raw(count), kind="stable")


def _complement(table: Table) -> Table:
    size, degree = table.shape
    joined = ~np.eye(size, dtype=bool)
    np.put_along_axis(joined, table, False, axis=1)
    return np.nonzero(joined)[1].reshape(size, size - 1 - degree)


def _simple(pairs: Table, size: int, draws: Any) -> Table:
    """Return the pairs with loops and repeats switched away; fewer, where that did not succeed.

    A bad pair ab and a good one cd become ac and bd, which leaves all degrees as they are.
    """
    pairs = np.sort(pairs, axis=1)
    _, first = np.unique(pairs @ [size, 1], return_index=True)
    good = np.zeros(len(pairs), dtype=bool)
    good[first] = True
    good &= pairs[:, 0] != pairs[:, 1]
    kept = [(a, b) for a, b in pairs[good].tolist()]
    present = set(kept)
    bad = pairs[~good].tolist()
    for _ in range(100 * len(bad) if kept else 0):
        if not bad:
            break
        at, turn = divmod(int(draws.random_raw()) % (2 * len(kept)), 2)
        c, d = kept[at][::-1] if turn else kept[at]
        new = [(min(pair), max(pair)) for pair in zip(bad[-1], (c, d), strict=True)]
        if any(a == b for a, b in new) or not present.isdisjoint(new) or new[0] == new[1]:
            continue
        bad.pop()
        present.remove(kept[at])
        present.update(new)
        kept[at] = new[0]
        kept.append(new[1])
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _is_connected(table: Table) -> bool:
    reached = np.zeros(len(table), dtype=bool)
    edge = np.zeros(1, dtype=np.int64)
    while edge.size:
        reached[edge] = True
        edge = np.unique(table[edge])
        edge = edge[~reached[edge]]
    return bool(reached.all())
