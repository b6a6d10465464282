import numpy as np
import pytest

from decentral_topologies import Complete


@pytest.mark.parametrize("size", [1, 2, 3, 8, 31])
def test_one_mixing_is_the_exact_average(size):
    assert np.allclose(Complete(size).mixing_matrix(), 1 / size, rtol=0, atol=1e-15)
    assert Complete(size).spectral_gap() == pytest.approx(1, abs=1e-12)
    assert len(Complete(size).edges()) == size * (size - 1) // 2


def test_neighbors_are_all_others():
    assert Complete(4).neighbors(2) == (0, 1, 3)
    assert repr(Complete(4)) == "Complete(4)"
