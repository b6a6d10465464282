import math

import numpy as np
import pytest

from decentral_topologies import Ring


def test_one_rank_has_no_neighbor():
    assert Ring(1).neighbors(0) == () and Ring(1).edges() == ()
    assert Ring(1).mixing_matrix().tolist() == [[1.0]]
    assert Ring(1).spectral_gap() == 1.0


def test_two_ranks_have_one_neighbor_each():
    assert Ring(2).neighbors(0) == (1,) and Ring(2).neighbors(1) == (0,)
    assert Ring(2).mixing_matrix().tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("size", [3, 4, 5, 8, 33])
def test_weights_are_a_third(size):
    expected = sum(np.roll(np.eye(size), shift, axis=1) for shift in (-1, 0, 1)) / 3
    assert np.allclose(Ring(size).mixing_matrix(), expected, rtol=0, atol=1e-15)


def test_ring_of_eight_has_the_known_second_eigenvalue():
    second = (1 + 2 * math.cos(2 * math.pi / 8)) / 3
    assert round(second, 3) == 0.805
    assert Ring(8).spectral_gap() == pytest.approx(1 - second, abs=1e-12)


def test_repr():
    assert repr(Ring(8)) == "Ring(8)"
