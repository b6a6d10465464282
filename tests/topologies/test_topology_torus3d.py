import itertools
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral_topologies import Hypercube, Ring, Torus, Torus3D, lattice

side = st.integers(1, 5)


def laplacian(length):
    """That of a ring by definition: of length 2 a single edge, of length 1 none."""
    graph = np.zeros((length, length), dtype=int)
    for i in range(length):
        graph[i, (i + 1) % length] = graph[(i + 1) % length, i] = 1
    np.fill_diagonal(graph, 0)
    return np.diag(graph.sum(axis=1)) - graph


def kronecker_sum(*matrices):
    total = np.zeros((1, 1), dtype=int)
    for matrix in matrices:
        total = np.kron(total, np.eye(len(matrix), dtype=int)) + np.kron(
            np.eye(len(total), dtype=int), matrix
        )
    return total


@settings(max_examples=64, deadline=None)
@given(planes=side, rows=side, columns=side)
def test_it_is_the_product_of_three_rings(planes, rows, columns):
    expected = kronecker_sum(laplacian(planes), laplacian(rows), laplacian(columns))
    graph = Torus3D(planes * rows * columns, planes, rows, columns)
    actual = np.zeros_like(expected)
    for i, j in graph.edges():
        actual[i, j] = actual[j, i] = -1
    actual -= np.diag(actual.sum(axis=1))
    assert np.array_equal(actual, expected)
    # All degrees are equal, so W = I - L / (1 + degree).
    degree = sum(min(length - 1, 2) for length in (planes, rows, columns))
    mixing = np.eye(graph.size) - expected / (1 + degree)
    assert np.allclose(graph.mixing_matrix(), mixing, rtol=0, atol=1e-15)


def test_an_axis_of_two_is_one_edge_and_one_of_one_none():
    assert Torus3D(8).edges() == Hypercube(8).edges()
    assert [Torus3D(2 * 2 * 3).degree(rank) for rank in range(12)] == [4] * 12
    assert Torus3D(12, planes=1).edges() == Torus(12).edges()
    assert Torus3D(7, 1, 7, 1).edges() == Ring(7).edges()


def test_ranks_run_along_rows_then_planes():
    # Plane 1, row 1, column 1 of 3 x 3 x 3, and the corner, from which everything wraps.
    assert Torus3D(27).neighbors(13) == (4, 10, 12, 14, 16, 22)
    assert Torus3D(27).neighbors(0) == (1, 2, 3, 6, 9, 18)


@given(size=st.integers(1, 300))
@settings(max_examples=64, deadline=None)
def test_the_default_is_the_most_cubic_shape(size):
    shape = Torus3D(size).shape
    sums = [sum(s) for a in range(1, size + 1) if size % a == 0 for b in range(1, size // a + 1)
            if size // a % b == 0 for s in [(a, b, size // a // b)]]  # fmt: skip
    assert math.prod(shape) == size and list(shape) == sorted(shape) and sum(shape) == min(sums)


@settings(max_examples=64, deadline=None)
@given(planes=side, rows=side, columns=side)
def test_a_side_left_out_is_inferred(planes, rows, columns):
    sides = {"planes": planes, "rows": rows, "columns": columns}
    full = Torus3D(math.prod(sides.values()), **sides)
    for left_out in sides:
        given = {what: length for what, length in sides.items() if what != left_out}
        assert Torus3D(full.size, **given) == full


def test_two_sides_left_out_are_as_even_as_possible():
    assert Torus3D(48, rows=3).shape == (4, 3, 4)
    assert Torus3D(48, planes=4).shape == (4, 3, 4)
    assert repr(Torus3D(30)) == "Torus3D(30, planes=2, rows=3, columns=5)"


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (
            {"planes": 2, "rows": 2, "columns": 2},
            "planes * rows * columns must be 12, got 2 x 2 x 2 = 8; "
            "leave one of them out to have it inferred",
        ),
        ({"planes": 5}, "planes must divide size 12, got 5; use one of 1, 2, 3, 4, 6, 12"),
        (
            {"planes": 3, "columns": 3},
            "columns must divide 4, what the other sides leave, got 3; use one of 1, 2, 4",
        ),
        ({"rows": 1.0}, "rows must be an int >= 1, got 1.0; use one of 1, 2, 3, 4, 6, 12"),
    ],
)
def test_a_bad_shape_is_refused(sides, message):
    with pytest.raises(ValueError) as error:
        Torus3D(12, **sides)
    assert str(error.value) == f"torus3d: {message}"


def test_a_prime_size_says_once_that_it_is_a_ring(caplog):
    lattice._warn_prime.cache_clear()
    caplog.set_level(logging.DEBUG, logger="decentral")
    Torus3D(7), Torus3D(7), Torus3D(4), Torus3D(9), Torus3D(11, planes=1)
    assert caplog.messages == [
        "torus3d: size 7 is prime, so its torus3d is 1 x 1 x 7, a ring; size 8 would be 2 x 2 x 2"
    ]
    lattice._warn_prime.cache_clear()


@pytest.mark.parametrize("size", [8, 27, 60, 64])
def test_no_two_ranks_are_drawn_on_each_other(size):
    at = Torus3D(size).layout()
    assert min(math.dist(a, b) for a, b in itertools.combinations(at, 2)) > 0.6
