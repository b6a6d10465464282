import numpy as np
import pytest

from decentral_topologies import Path, Ring


@pytest.mark.parametrize("size", [1, 2, 3, 8, 31])
def test_it_is_the_ring_without_the_edge_that_closes_it(size):
    closing = {(0, size - 1)} if size > 2 else set()
    assert set(Path(size).edges()) == set(Ring(size).edges()) - closing


def test_weights_are_a_third_and_the_ends_keep_two():
    expected = np.eye(5) / 3 + np.eye(5, k=1) / 3 + np.eye(5, k=-1) / 3
    expected[0, 0] = expected[4, 4] = 2 / 3
    assert np.allclose(Path(5).mixing_matrix(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [3, 8, 20])
def test_known_gap(size):
    # W = I - L/3, and the path's Laplacian has eigenvalues 2 - 2 cos(pi k / n).
    assert Path(size).spectral_gap() == pytest.approx((2 - 2 * np.cos(np.pi / size)) / 3)
    assert repr(Path(size)) == f"Path({size})"
