import functools
import itertools

import numpy as np
import pytest

from decentral_topologies import Hypercube, from_name


@pytest.mark.parametrize("bits", range(7))
def test_it_is_the_product_of_its_edges(bits):
    # Per bit: keep or flip. The Kronecker sum of one edge per dimension is the definition.
    expected = np.zeros((1, 1), dtype=int)
    for _ in range(bits):
        edge = np.array([[0, 1], [1, 0]])
        expected = np.kron(expected, np.eye(2, dtype=int)) + np.kron(np.eye(len(expected)), edge)
    graph = Hypercube(2**bits)
    assert graph.edges() == tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(expected)))


@pytest.mark.parametrize("bits", range(1, 7))
def test_known_gap(bits):
    assert Hypercube(2**bits).spectral_gap() == pytest.approx(2 / (1 + bits))


@pytest.mark.parametrize("bits", range(1, 6))
def test_a_round_of_halves_along_every_axis_is_the_exact_average(bits):
    size = 2**bits
    by_bit = [[[i, j] for i, j in Hypercube(size).edges() if j - i == 1 << b] for b in range(bits)]
    halves = []
    for pairs in by_bit:
        assert sorted(itertools.chain(*pairs)) == list(range(size))  # a perfect matching
        matrix = np.eye(size) / 2
        for i, j in pairs:
            matrix[i, j] = matrix[j, i] = 1 / 2
        halves.append(matrix)
    assert np.allclose(functools.reduce(np.matmul, halves), 1 / size, rtol=0, atol=1e-15)


def test_the_sizes_that_exist_are_the_powers_of_two():
    assert [size for size in range(-1, 70) if Hypercube.exists(size)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(("size", "below", "above"), [(3, 2, 4), (6, 4, 8), (1000, 512, 1024)])
def test_another_size_is_refused_with_the_nearest(size, below, above):
    with pytest.raises(ValueError) as error:
        from_name("hypercube", size)
    assert str(error.value) == (
        f"hypercube: size must be a power of two, got {size}; the nearest are {below} and {above}"
    )
