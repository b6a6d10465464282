import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral_topologies import Complete, RandomRegular

PINNED_8 = (
    (0, 1),
    (0, 3),
    (0, 4),
    (1, 2),
    (1, 7),
    (2, 4),
    (2, 5),
    (3, 5),
    (3, 6),
    (4, 6),
    (5, 7),
    (6, 7),
)
PINNED_6 = (
    (0, 1),
    (0, 2),
    (0, 3),
    (0, 4),
    (1, 2),
    (1, 4),
    (1, 5),
    (2, 3),
    (2, 5),
    (3, 4),
    (3, 5),
    (4, 5),
)


def adjacency(topology):
    matrix = np.zeros((topology.size, topology.size), dtype=int)
    for i, j in topology.edges():
        matrix[i, j] = matrix[j, i] = 1
    return matrix


@st.composite
def sizes_and_degrees(draw):
    size = draw(st.integers(3, 24))
    degrees = [d for d in range(2, size) if size * d % 2 == 0]
    return size, draw(st.sampled_from(degrees))


@settings(max_examples=150, deadline=None)
@given(sizes_and_degrees(), st.integers(0, 2**70))
def test_it_is_regular_simple_and_connected(shape, seed):
    size, degree = shape
    graph = RandomRegular(size, degree, seed)
    matrix = adjacency(graph)
    assert np.array_equal(matrix.sum(axis=1), np.full(size, degree))
    assert graph.neighbors(size - 1) == tuple(np.flatnonzero(matrix[-1]))
    # The number of walks between any two ranks, of some length: connected by definition.
    assert np.linalg.matrix_power(np.eye(size) + matrix, size).all()


@pytest.mark.parametrize(("size", "degree"), [(100, 3), (101, 4), (64, 2), (64, 40), (200, 21)])
def test_it_is_a_function_of_size_degree_and_seed(size, degree):
    again = [RandomRegular(size, degree, 7).edges() for _ in range(2)]
    assert again[0] == again[1]
    others = {RandomRegular(size, degree, seed).edges() for seed in range(5)}
    assert len(others) == 5
    assert RandomRegular(size, degree, 0) != RandomRegular(size, degree, 1)


def test_the_draw_does_not_change_between_versions():
    # Ranks may run other versions of NumPy, and a resumed run must find the graph that it had.
    assert RandomRegular(8, 3, seed=1).edges() == PINNED_8
    assert RandomRegular(6, 4, seed=1).edges() == PINNED_6


def test_every_graph_of_a_size_comes_up():
    # There are 70 labeled cubic graphs on 6 ranks: 10 times K_3,3 and 60 prisms.
    drawn = [RandomRegular(6, 3, seed).edges() for seed in range(700)]
    assert len(set(drawn)) == 70
    # Cycles on 5 ranks: 4! / 2, each as likely as the others.
    cycles = [RandomRegular(5, 2, seed).edges() for seed in range(600)]
    counts = [cycles.count(cycle) for cycle in set(cycles)]
    assert len(counts) == math.factorial(4) // 2 and min(counts) > 25 and max(counts) < 85


def test_it_mixes_fast_at_a_small_degree():
    # The second eigenvalue of a random d-regular graph is near 2 sqrt(d - 1), J. Friedman 2008.
    gaps = [RandomRegular(128, 4, seed).spectral_gap() for seed in range(3)]
    assert min(gaps) > 0.9 * (1 - (1 + 2 * math.sqrt(3)) / 5)


def test_the_default_degree_is_3_or_on_odd_sizes_4_or_what_is_possible():
    degrees = {size: RandomRegular(size).degree(0) for size in range(1, 10)}
    assert degrees == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 3, 7: 4, 8: 3, 9: 4}
    assert repr(RandomRegular(9, seed=2)) == "RandomRegular(9, degree=4, seed=2)"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16])
def test_the_largest_degree_is_the_complete_graph(size):
    assert RandomRegular(size, size - 1).edges() == Complete(size).edges()


def test_least_and_largest_degrees():
    assert RandomRegular(1, 0).edges() == () and RandomRegular(2, 1).edges() == ((0, 1),)
    pairs_left_out = set(itertools.combinations(range(8), 2)) - set(RandomRegular(8, 6).edges())
    assert sorted(itertools.chain(*pairs_left_out)) == list(range(8))


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (5, {"degree": 3}, "size * degree must be even, got 5 * 3 = 15; use degree 2 or 4"),
        (4, {"degree": 4}, "degree must be 2..3 at size 4, got 4; leave it out to have one chosen"),
        (4, {"degree": 1}, "degree must be 2..3 at size 4, got 1; leave it out to have one chosen"),
        (2, {"degree": 2}, "degree must be 1 at size 2, got 2; leave it out to have one chosen"),
        (1, {"degree": 1}, "degree must be 0 at size 1, got 1; leave it out to have one chosen"),
        (9, {"degree": 2.0}, "degree must be 2..8 at size 9, got 2.0; leave it out to have one "
                             "chosen"),
        (8, {"seed": -1}, "seed must be an int >= 0, got -1; all ranks need the same one"),
        (8, {"seed": "a"}, "seed must be an int >= 0, got 'a'; all ranks need the same one"),
    ],
)  # fmt: skip
def test_an_impossible_graph_is_refused(size, options, message):
    with pytest.raises(ValueError) as error:
        RandomRegular(size, **options)
    assert str(error.value) == f"random-regular: {message}"
