import math

import numpy as np
import pytest

from decentral_topologies import Complete, Exponential


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 33, 64])
def test_it_sends_to_the_powers_of_two_ahead(size):
    hops = [2**k for k in range(size) if 2**k < size]
    assert len(hops) == math.ceil(math.log2(size))
    expected = sum((np.roll(np.eye(size), hop, axis=0) for hop in hops), np.eye(size))
    expected /= 1 + len(hops)
    graph = Exponential(size)
    assert np.allclose(graph.mixing_matrix(), expected, rtol=0, atol=1e-15)
    assert graph.directed and not graph.time_varying and graph.is_doubly_stochastic()


def test_the_edges_have_a_direction():
    graph = Exponential(6)
    assert graph.targets(5) == (0, 1, 3) and graph.sources(5) == (1, 3, 4)
    assert graph.neighbors(5) == (0, 1, 3, 4)
    assert (5, 0) in graph.edges() and (0, 5) not in graph.edges()
    assert graph.weights(5) == {1: 0.25, 3: 0.25, 4: 0.25, 5: 0.25}


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_the_gap_at_powers_of_two_is_that_of_the_paper(size):
    assert Exponential(size).spectral_gap() == pytest.approx(2 / (1 + math.log2(size)))


@pytest.mark.parametrize("size", [3, 5, 6, 7, 9, 20, 63])
def test_the_gap_of_other_sizes_is_no_smaller(size):
    # The same paper's bound; the eigenvalues of a circulant are the Fourier transform of a row.
    spectrum = np.abs(np.fft.fft(Exponential(size).mixing_matrix()[:, 0]))
    gap = Exponential(size).spectral_gap()
    assert gap == pytest.approx(1 - np.sort(spectrum)[-2])
    assert gap >= 2 / (1 + math.ceil(math.log2(size))) - 1e-12


def test_up_to_three_ranks_it_is_complete():
    for size in (1, 2, 3):
        assert np.allclose(Exponential(size).mixing_matrix(), Complete(size).mixing_matrix())
