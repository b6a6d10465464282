"""What the base class does for graphs that no registered family is."""

import numpy as np
import pytest

from decentral_topologies import Ring, Star, Topology


class Bipartite(Topology):
    """Even ranks joined to all odd ones: its most negative eigenvalue is the one that counts."""

    name = "bipartite"

    def _adjacent(self, rank, step):
        return range((rank + 1) % 2, self.size, 2)


class Funnel(Topology):
    """Every rank sends to rank 0 and to the next: directed, of unequal degrees, and not normal."""

    name = "funnel"
    directed = True

    def _adjacent(self, rank, step):
        return 0, (rank + 1) % self.size

    def _sources(self, rank, step):
        return range(self.size) if rank == 0 else (rank - 1,)


class Alternating(Topology):
    """Even ranks meet the next one, odd ranks the next: undirected and time-varying."""

    name = "alternating"
    time_varying = True
    period = 2

    def _adjacent(self, rank, step):
        return ((rank + (1 if (rank + step) % 2 == 0 else -1)) % self.size,)


def test_a_directed_graph_of_unequal_degrees_needs_push_sum():
    # Rank 1 sends to 0 and 2, so a third goes each way, and rank 3 (whose next is 0) halves.
    assert Funnel(4).mixing_matrix() == pytest.approx(
        np.array([[1 / 2, 1 / 3, 1 / 3, 1 / 2], [1 / 2, 1 / 3, 0, 0], [0, 1 / 3, 1 / 3, 0],
                  [0, 0, 1 / 3, 1 / 2]])
    )  # fmt: skip
    assert not Funnel(4).is_doubly_stochastic()
    assert Funnel(4).targets(1) == (0, 2) and Funnel(4).sources(1) == (0,)
    assert Funnel(4).neighbors(2) == (0, 1, 3)
    # What W has forgotten after a step is what the second eigenvalue says, though W is not normal.
    powers = np.linalg.matrix_power(Funnel(4).mixing_matrix(), 40)
    more = np.linalg.matrix_power(Funnel(4).mixing_matrix(), 41)
    rate = np.ptp(more, axis=1).max() / np.ptp(powers, axis=1).max()
    assert 1 - Funnel(4).spectral_gap() == pytest.approx(rate, rel=0.05)


def test_an_undirected_graph_may_change_with_the_step():
    assert Alternating(4).neighbors(0) == (1,) and Alternating(4).neighbors(0, step=1) == (3,)
    assert Alternating(4).spectral_gap() == pytest.approx(1)  # two rounds of pairs are a hypercube
    assert Alternating(6).is_doubly_stochastic()
    first, second = (Alternating(6).mixing_matrix(step) for step in (0, 1))
    assert Alternating(6).spectral_gap() == pytest.approx(
        1 - np.linalg.norm(second @ first - 1 / 6, 2)
    )


def test_weights_cost_by_degree():
    # At this size the matrix would be 7 TiB.
    assert Ring(10**6).weights(0) == pytest.approx({0: 1 / 3, 1: 1 / 3, 10**6 - 1: 1 / 3})


def test_weights_of_unequal_degrees():
    # The star of 4: its center has 3 neighbors, its leaves 1, so every edge weighs 1/4.
    assert Star(4).weights(0) == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}
    assert Star(4).weights(2) == {0: 0.25, 2: 0.75}
    assert Star(4).spectral_gap() == pytest.approx(0.25)


def test_the_gap_counts_the_negative_end():
    # K_3,3 has eigenvalues 1, 1/4 four times, and -1/2.
    assert Bipartite(6).spectral_gap() == pytest.approx(0.5)


def test_numpy_integers_are_sizes_and_ranks():
    assert Ring(np.int64(5)) == Ring(5)
    assert Ring(5).neighbors(np.int32(4)) == (0, 3)
