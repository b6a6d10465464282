import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral_topologies import Grid, Path, Torus, lattice

side = st.integers(1, 8)


def line(length):
    """The adjacency of a path by definition, apart from the code under test."""
    return np.eye(length, k=1, dtype=int) + np.eye(length, k=-1, dtype=int)


@settings(max_examples=64, deadline=None)
@given(rows=side, columns=side)
def test_it_is_the_product_of_two_paths(rows, columns):
    expected = np.kron(line(rows), np.eye(columns, dtype=int))
    expected += np.kron(np.eye(rows, dtype=int), line(columns))
    graph = Grid(rows * columns, rows, columns)
    assert graph.edges() == tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(expected)))
    assert len(graph.edges()) == 2 * rows * columns - rows - columns


def test_corners_and_borders_have_fewer_neighbors():
    assert Grid(12, rows=3).neighbors(5) == (1, 4, 6, 9)
    assert Grid(12, rows=3).neighbors(0) == (1, 4)
    assert Grid(12, rows=3).neighbors(7) == (3, 6, 11)


def test_weights_of_unequal_degrees():
    # 2 x 3: corners have 2 neighbors, the middle ones 3.
    assert Grid(6).weights(0) == pytest.approx({0: 5 / 12, 1: 1 / 4, 3: 1 / 3})
    assert Grid(6).weights(1) == pytest.approx({0: 1 / 4, 1: 1 / 4, 2: 1 / 4, 4: 1 / 4})


def test_axes_of_two_are_as_on_the_torus():
    assert Grid(4).edges() == Torus(4).edges()


def test_the_shape_is_found_as_the_torus_finds_it():
    assert (Grid(12).rows, Grid(12).columns) == (3, 4)
    assert Grid(12, rows=6) == Grid(12, columns=2) != Grid(12)
    assert repr(Grid(8)) == "Grid(8, rows=2, columns=4)"
    with pytest.raises(ValueError, match=r"^grid: rows must divide size 12, got 5; use one of 1, "):
        Grid(12, rows=5)
    with pytest.raises(ValueError, match=r"^grid: rows \* columns must be 12, got 3 x 5 = 15; "):
        Grid(12, 3, 5)


def test_a_prime_size_says_once_that_it_is_a_path(caplog):
    lattice._warn_prime.cache_clear()
    caplog.set_level(logging.DEBUG, logger="decentral")
    assert Grid(7).edges() == Path(7).edges()
    Grid(7)
    assert caplog.messages == [
        "grid: size 7 is prime, so its grid is 1 x 7, a path; size 8 would be 2 x 4"
    ]
    lattice._warn_prime.cache_clear()
