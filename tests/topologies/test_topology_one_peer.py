import numpy as np
import pytest

from decentral_topologies import Exponential, OnePeerExponential, Ring


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_a_period_is_the_exact_average_at_powers_of_two_wherever_it_starts(size):
    graph = OnePeerExponential(size)
    for start in range(graph.period):
        product = np.eye(size)
        for step in range(start, start + graph.period):
            product = graph.mixing_matrix(step) @ product
        assert np.array_equal(product, np.full((size, size), 1 / size))  # halves are exact
    assert graph.spectral_gap() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", [3, 5, 6, 12, 33])
def test_other_sizes_come_close_in_a_period(size):
    assert 0.4 < OnePeerExponential(size).spectral_gap() < 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 33])
def test_each_step_has_one_edge_of_the_static_graph_per_rank(size):
    graph = OnePeerExponential(size)
    assert graph.period == max(1, len(Exponential(size).targets(0)))
    for step in range(graph.period):
        hop = 2**step
        mixing = (np.eye(size) + np.roll(np.eye(size), hop, axis=0)) / 2
        assert np.array_equal(graph.mixing_matrix(step), mixing)
    together = {edge for step in range(graph.period) for edge in graph.edges(step)}
    assert together == set(Exponential(size).edges())


def test_a_rank_sends_and_receives_one_message_a_step():
    graph = OnePeerExponential(6)
    assert [graph.targets(0, step) for step in range(5)] == [(1,), (2,), (4,), (1,), (2,)]
    assert [graph.sources(0, step) for step in range(4)] == [(5,), (4,), (2,), (5,)]
    assert graph.neighbors(0) == (1, 5) and graph.degree(0) == 1
    assert graph.weights(0, step=2) == {0: 0.5, 2: 0.5}
    assert graph.directed and graph.time_varying and graph.is_doubly_stochastic()


def test_two_ranks_swap_and_one_is_alone():
    assert np.array_equal(OnePeerExponential(2).mixing_matrix(7), Ring(2).mixing_matrix())
    assert OnePeerExponential(1).edges(3) == () and OnePeerExponential(1).spectral_gap() == 1
