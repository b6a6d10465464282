"""Placement: who takes which place in a topology, so that few edges run between hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral_topologies.graph import Position, Topology, integer

Ints = NDArray[np.int64]
LARGEST = 32768  # ranks; beyond, counting the edges alone takes seconds
LARGEST_IMPROVED = 2048
PASSES = 4


class Placed(Topology):
    """A topology over the same ranks in another order: order[p] is the rank that has place p.

    Raises ValueError if the order is not one of all ranks.
    """

    name = "placed"

    def __init__(self, topology: Topology, order: Iterable[int]) -> None:
        """Lay the topology over the ranks in that order."""
        self.name = topology.name
        self.directed, self.time_varying = topology.directed, topology.time_varying
        super().__init__(topology.size)
        self.topology = topology
        self.order = self._permutation(order)
        self._place = {rank: place for place, rank in enumerate(self.order)}

    def _permutation(self, order: Iterable[int]) -> tuple[int, ...]:
        error = (
            f"{self.name}: order must hold every rank in 0..{self.size - 1} once, got {order!r}; "
            "order[p] is the rank that has place p"
        )
        ranks = tuple(integer(rank, error) for rank in order)
        if sorted(ranks) != list(range(self.size)):
            raise ValueError(error)
        return ranks

    @property
    def period(self) -> int:
        """Return the topology's own."""
        return self.topology.period

    def _adjacent(self, rank: int, step: int) -> Iterable[int]:
        return (self.order[place] for place in self.topology.targets(self._place[rank], step))

    def _sources(self, rank: int, step: int) -> Iterable[int]:
        return (self.order[place] for place in self.topology.sources(self._place[rank], step))

    def degree(self, rank: int, step: int = 0) -> int:
        """Return the degree of the rank's place; Raises ValueError on a bad rank."""
        return self.topology.degree(self._place[self._checked(rank)], step)

    def weights(self, rank: int, step: int = 0) -> dict[int, float]:
        """Return row `rank` of W, see Topology.weights: that of the rank's place."""
        row = self.topology.weights(self._place[self._checked(rank)], step)
        return dict(sorted((self.order[place], weight) for place, weight in row.items()))

    def spectral_gap(self) -> float:
        """Return the topology's own, which the order does not change."""
        return self.topology.spectral_gap()

    def layout(self) -> list[Position] | None:
        """Return the topology's own, with the ranks at their places."""
        places = self.topology.layout()
        return places and [places[self._place[rank]] for rank in range(self.size)]

    def __repr__(self) -> str:
        """Show the call that makes an equal topology, with the order."""
        return f"Placed({self.topology!r}, order={self.order})"


def crossing(topology: Topology, hosts: Sequence[int]) -> int:
    """Return how many edges join ranks of different hosts, over all steps of a period.

    hosts[r] is the number of the host of rank r. Raises ValueError if it is not an int per rank.
    """
    at = _checked(topology, hosts)
    return _crossing(_links(topology), at)


def place(topology: Topology, hosts: Sequence[int]) -> Topology:
    """Return the topology laid over the ranks so that few edges join different hosts.

    hosts[r] is the number of the host of rank r. It is the topology itself where nothing better was
    found, else a Placed one. All ranks find the same, from integers alone. The ring, whose hosts
    are then runs of it, is optimal: each of k > 1 hosts has at least two edges that leave it, each
    edge leaves two, so that k is the least, and k runs have k. Others are ours, without a bound:
    the family's own walks and a host by host growth, then swaps of two places while that helps.
    Beyond 2048 ranks there are no swaps, beyond 32768 nothing is tried.

    Raises ValueError if hosts is not an int per rank.
    """
    at = _checked(topology, hosts)
    if topology.size > LARGEST or len(set(at.tolist())) == 1:
        return topology
    graph = topology.topology if isinstance(topology, Placed) else topology
    order = topology.order if isinstance(topology, Placed) else range(topology.size)
    links = _links(graph)
    best = given = at[list(order)]
    for labels in (*_candidates(graph, links, at), given):
        better = _swapped(links, labels) if topology.size <= LARGEST_IMPROVED else labels
        if _crossing(links, better) < _crossing(links, best):
            best = better
    if best is given:
        return topology
    ranks = np.empty(topology.size, dtype=np.int64)
    ranks[np.argsort(best, kind="stable")] = np.argsort(at, kind="stable")
    natural = np.array_equal(ranks, np.arange(topology.size))
    return graph if natural else Placed(graph, ranks.tolist())


def _checked(topology: Topology, hosts: Sequence[int]) -> Ints:
    """Return the host of every rank, int64 [size], numbered from 0 without gaps."""
    if len(hosts) != topology.size:
        raise ValueError(
            f"place: hosts must be the number of the host of each of {topology.size} ranks, "
            f"got {len(hosts)} of them; gather it from all ranks"
        )
    for rank, host in enumerate(hosts):
        integer(
            host, f"place: the host of rank {rank} must be an int, got {host!r}; number the hosts"
        )
    return np.unique(np.asarray(hosts), return_inverse=True)[1].astype(np.int64)


def _links(topology: Topology) -> Ints:
    """Return the edges of all steps of a period, int64 [edges, 2]."""
    edges = [edge for step in range(topology.period) for edge in topology.edges(step)]
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def _crossing(links: Ints, labels: Ints) -> int:
    return int(np.count_nonzero(labels[links[:, 0]] != labels[links[:, 1]]))


def _candidates(graph: Topology, links: Ints, at: Ints) -> Iterator[Ints]:
    """Return hosts by place, int64 [size] each, for the swaps to start from."""
    by_host = np.sort(at)
    sizes = np.bincount(at)
    usual = int(np.argmax(np.bincount(sizes)))
    for walk in (range(graph.size), *graph.walks(usual)):
        labels = np.empty_like(at)
        labels[list(walk)] = by_host
        yield labels
    if graph.size <= LARGEST_IMPROVED:
        yield _grown(_lists(links, graph.size), sizes)


def _lists(links: Ints, size: int) -> list[Any]:
    """Return the neighbors of every place, as often as there are edges to them."""
    both = np.concatenate([links, links[:, ::-1]])
    both = both[np.lexsort(both.T[::-1])]
    return np.split(both[:, 1], np.searchsorted(both[:, 0], np.arange(1, size)))


def _grown(neighbors: Sequence[Any], sizes: Ints) -> Ints:
    """Return hosts by place: the largest host first takes places with most edges to its own."""
    labels = np.full(len(neighbors), -1)
    free = np.array([len(near) for near in neighbors])  # edges to places that nobody has yet
    for host in np.argsort(-sizes, kind="stable"):
        inside = np.zeros(len(neighbors), dtype=np.int64)
        for _ in range(sizes[host]):
            # Most edges inside, then fewest that would be cut, then the first place.
            score = np.where(labels < 0, inside * (1 + free.max()) - free, np.iinfo(np.int64).min)
            at = int(np.argmax(score))
            labels[at] = host
            np.add.at(inside, neighbors[at], 1)
            np.subtract.at(free, neighbors[at], 1)
    return labels


def _swapped(links: Ints, labels: Ints) -> Ints:
    """Return the labels after swaps of two places, as long as each cuts fewer edges."""
    neighbors = _lists(links, len(labels))
    labels = labels.copy()
    to = np.zeros((len(labels), int(labels.max()) + 1), dtype=np.int64)  # edges, by place and host
    np.add.at(to, (links[:, 0], labels[links[:, 1]]), 1)
    np.add.at(to, (links[:, 1], labels[links[:, 0]]), 1)
    places = np.arange(len(labels))
    for _ in range(PASSES):
        before = labels.copy()
        for p in places:
            own = labels[p]
            gain = to[p, labels] - to[p, own] + to[:, own] - to[places, labels]
            np.subtract.at(gain, neighbors[p], 2)  # an edge between the two stays cut
            gain[labels == own] = 0
            q = int(np.argmax(gain))
            if gain[q] > 0:
                for at, old, new in ((p, own, labels[q]), (q, labels[q], own)):
                    np.subtract.at(to, (neighbors[at], old), 1)
                    np.add.at(to, (neighbors[at], new), 1)
                labels[p], labels[q] = labels[q], own
        if np.array_equal(before, labels):
            break
    return labels
