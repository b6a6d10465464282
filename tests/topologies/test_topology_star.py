import numpy as np
import pytest

from decentral_topologies import Star


@pytest.mark.parametrize("size", [1, 2, 3, 8, 31])
def test_every_edge_ends_at_the_hub_and_weighs_1_nth(size):
    star = Star(size)
    assert star.edges() == tuple((0, j) for j in range(1, size))
    assert star.neighbors(0) == tuple(range(1, size))
    assert all(star.neighbors(j) == (0,) for j in range(1, size))
    assert star.weights(0) == pytest.approx(dict.fromkeys(range(size), 1 / size))


@pytest.mark.parametrize("size", [3, 8, 31])
def test_known_gap(size):
    # W = I - L/n, and the star's Laplacian has eigenvalues 0, 1 (n - 2 times) and n.
    assert Star(size).spectral_gap() == pytest.approx(1 / size)


def test_a_leaf_is_asked_without_listing_the_hub():
    star = Star(10**9)  # the hub's neighbors would be gigabytes
    assert star.weights(7) == pytest.approx({0: 1e-9, 7: 1 - 1e-9})
    assert star.degree(0) == 10**9 - 1


def test_the_hub_is_drawn_in_the_middle():
    hub, *leaves = Star(7).layout()
    assert hub == (0, 0) and all(np.hypot(*leaf) == pytest.approx(1) for leaf in leaves)
    assert Star(1).layout() == [(0, 0)] and repr(Star(1)) == "Star(1)"
