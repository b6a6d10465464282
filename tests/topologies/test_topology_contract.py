"""What every registered topology must hold, whatever its family."""

import numpy as np
import pytest

import decentral_topologies
from decentral_topologies import (
    Graph,
    Placed,
    Star,
    available,
    from_name,
)

SIZES = range(1, 65)


def a_graph(size):
    """A binary tree and a few edges more: degrees are unequal, and the hub has by far the most."""
    return Graph(size, [(i, i // 2) for i in range(1, size)] + [(0, i) for i in range(3, size, 5)])


FAMILIES = {
    **{name: lambda size, name=name: from_name(name, size) for name in available()},
    "graph": a_graph,
    "placed": lambda size: Placed(Star(size), range(size - 1, -1, -1)),
    "placed-directed": lambda size: Placed(
        from_name("one-peer-exponential", size), np.roll(range(size), 3)
    ),
}


@pytest.fixture(params=FAMILIES, scope="module")
def topologies(request):
    """One family at all its sizes: a test of each would take most of its time to start."""
    sizes = (n for n in SIZES if request.param not in available() or request.param in available(n))
    return [FAMILIES[request.param](size) for size in sizes]


def sent(topology, step=0):
    """Who sends to whom, bool [receiver, sender]."""
    matrix = np.zeros((topology.size, topology.size), dtype=bool)
    for rank in range(topology.size):
        matrix[list(topology.targets(rank, step)), rank] = True
    return matrix


def steps_of(topologies):
    return [(t, step) for t in topologies for step in range(t.period)]


def test_columns_of_the_mixing_matrix_sum_to_1_and_undirected_it_is_symmetric(topologies):
    for topology, step in steps_of(topologies):
        mixing = topology.mixing_matrix(step)
        assert mixing.dtype == np.float64 and mixing.shape == (topology.size, topology.size)
        assert np.abs(mixing.sum(axis=0) - 1).max() <= 1e-12, topology
        if not topology.directed:
            assert np.array_equal(mixing, mixing.T), topology


def test_is_doubly_stochastic_tells_what_the_matrix_does(topologies):
    for topology in topologies:
        matrices = [topology.mixing_matrix(step) for step in range(topology.period)]
        sums = np.array([[m.sum(axis=0), m.sum(axis=1)] for m in matrices])
        assert topology.is_doubly_stochastic() == (np.abs(sums - 1).max() <= 1e-9)
        assert topology.is_doubly_stochastic(), topology  # as all families so far are


def test_mixing_matrix_is_positive_exactly_on_edges_and_diagonal(topologies):
    for topology, step in steps_of(topologies):
        mixing = topology.mixing_matrix(step)
        expected = sent(topology, step) | np.eye(topology.size, dtype=bool)
        assert np.array_equal(mixing > 0, expected), topology
        assert np.array_equal(mixing != 0, expected), topology


def test_targets_sources_and_neighbors_are_sorted_plain_ints_that_agree(topologies):
    for topology, step in steps_of(topologies):
        matrix = sent(topology, step)
        for rank in range(topology.size):
            for ask, expected in (
                (topology.targets, matrix[:, rank]),
                (topology.sources, matrix[rank]),
                (topology.neighbors, matrix[rank] | matrix[:, rank]),
            ):
                ranks = ask(rank, step)
                assert isinstance(ranks, tuple) and all(type(j) is int for j in ranks)
                assert ranks == tuple(np.flatnonzero(expected)), topology
            assert not matrix[rank, rank]
            assert topology.degree(rank, step) == matrix[:, rank].sum()
        assert topology.directed or np.array_equal(matrix, matrix.T)


def test_edges_are_the_upper_triangle_or_if_directed_all(topologies):
    for topology, step in steps_of(topologies):
        pairs = sent(topology, step).T  # sender first
        expected = np.argwhere(pairs if topology.directed else np.triu(pairs))
        assert topology.edges(step) == tuple((int(i), int(j)) for i, j in expected)


def test_weights_are_the_row_of_the_matrix_by_their_formula(topologies):
    for topology, step in steps_of(topologies):
        mixing = topology.mixing_matrix(step)
        degrees = sent(topology, step).sum(axis=0)
        for rank in range(topology.size):
            weights = topology.weights(rank, step)
            assert list(weights) == sorted({rank, *topology.sources(rank, step)})
            row = np.zeros(topology.size)
            row[list(weights)] = list(weights.values())
            assert np.array_equal(row, mixing[rank])
            for j in topology.sources(rank, step):
                shared = degrees[j] if topology.directed else max(degrees[rank], degrees[j])
                assert weights[j] == 1 / (1 + shared), topology


def test_a_period_connects_every_rank_with_every_other(topologies):
    for topology in topologies:
        graph = sum(sent(topology, step) for step in range(topology.period))
        for one_way in (graph, graph.T):
            reached = np.eye(topology.size, dtype=bool)[0]
            for _ in range(topology.size):
                reached |= one_way[:, reached].any(axis=1)
            assert reached.all(), topology


def test_spectral_gap_is_the_norm_of_what_is_left_after_mixing(topologies):
    # Independent of eigenvalues: W - 11'/n is W without its average, and its 2-norm comes by SVD.
    # For one step that is the gap of a normal W, as the undirected and the circulant ones are.
    for topology in topologies:
        left = np.eye(topology.size) - 1 / topology.size
        for step in range(topology.period):
            left = topology.mixing_matrix(step) @ left
        gap = topology.spectral_gap()
        assert gap == pytest.approx(1 - np.linalg.norm(left, 2), abs=1e-12), topology
        assert 0 < gap <= 1 + 1e-12


def test_repr_makes_an_equal_topology(topologies):
    for topology in topologies:
        again = eval(repr(topology), vars(decentral_topologies).copy())
        assert again == topology and hash(again) == hash(topology)
        assert topology != topology.size
    assert len(set(topologies)) == len(topologies)


def test_steps_count_from_0_and_repeat_after_a_period(topologies):
    for topology in topologies:
        period, rank = topology.period, topology.size - 1
        assert type(period) is int and (period == 1 or topology.time_varying)
        graphs = {topology.edges(step) for step in range(period)}
        assert len(graphs) == period  # no period is longer than it must be
        for step in range(3):
            later = step + 7 * period
            assert topology.neighbors(rank, later) == topology.neighbors(rank, step)
            assert topology.weights(rank, later) == topology.weights(rank, step)
            assert topology.edges(later) == topology.edges(step)
    assert topologies[0].edges(0) == topologies[0].edges()


METHODS = ["targets", "sources", "neighbors", "degree", "weights"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_bad_rank_or_step_is_refused(name, method):
    topology = FAMILIES[name](4)
    ask = getattr(topology, method)
    for bad in (-1, 4, 1.0, None, False):
        with pytest.raises(ValueError) as error:
            ask(bad)
        assert str(error.value) == (
            f"{topology.name}: rank must be an int in 0..3, got {bad!r}; "
            "the topology was made for size 4"
        )
    for bad in (-1, 1.0, None):
        with pytest.raises(ValueError) as error:
            ask(0, step=bad)
        assert str(error.value) == (
            f"{topology.name}: step must be an int >= 0, got {bad!r}; steps count from 0"
        )
