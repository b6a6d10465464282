import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral_topologies import Ring, Torus, lattice

side = st.integers(1, 8)


def cycle(length):
    """The adjacency of a ring by definition, apart from the code under test."""
    matrix = np.zeros((length, length), dtype=int)
    for i in range(length):
        matrix[i, (i + 1) % length] = matrix[(i + 1) % length, i] = 1
    np.fill_diagonal(matrix, 0)
    return matrix


def adjacency(topology):
    matrix = np.zeros((topology.size, topology.size), dtype=int)
    for i, j in topology.edges():
        matrix[i, j] = matrix[j, i] = 1
    return matrix


@settings(max_examples=64, deadline=None)
@given(rows=side, columns=side)
def test_it_is_the_product_of_two_rings(rows, columns):
    # The Cartesian product of the axes' rings, ranks row by row, is the definition.
    expected = np.kron(cycle(rows), np.eye(columns, dtype=int))
    expected += np.kron(np.eye(rows, dtype=int), cycle(columns))
    graph = Torus(rows * columns, rows, columns)
    assert np.array_equal(adjacency(graph), expected)
    mixing = graph.mixing_matrix()
    assert np.array_equal(mixing, mixing.T) and np.allclose(
        mixing.sum(axis=1), 1, rtol=0, atol=1e-12
    )


@settings(max_examples=64, deadline=None)
@given(rows=side, columns=side)
def test_a_side_left_out_is_inferred(rows, columns):
    size = rows * columns
    full = Torus(size, rows, columns)
    assert (full.rows, full.columns) == (rows, columns)
    assert Torus(size, rows=rows) == full == Torus(size, columns=columns)


@given(size=st.integers(1, 400))
@settings(max_examples=64, deadline=None)
def test_the_default_is_the_most_square_shape(size):
    graph = Torus(size)
    assert graph.rows * graph.columns == size and graph.rows <= graph.columns
    spans = [columns - rows for rows in range(1, size + 1) for columns in [size // rows]
             if rows * columns == size and rows <= columns]  # fmt: skip
    assert graph.columns - graph.rows == min(spans)


@pytest.mark.parametrize(
    ("rows", "columns", "build"),
    [
        (2, 2, lambda nx: nx.cycle_graph(4)),
        (2, 4, lambda nx: nx.hypercube_graph(3)),
        (1, 7, lambda nx: nx.cycle_graph(7)),
        (7, 1, lambda nx: nx.cycle_graph(7)),
        (4, 4, lambda nx: nx.hypercube_graph(4)),
        (3, 5, lambda nx: nx.grid_2d_graph(3, 5, periodic=True)),
        (1, 2, lambda nx: nx.path_graph(2)),
    ],
)
def test_known_shapes(rows, columns, build):
    nx = pytest.importorskip("networkx", reason="compares with networkx's own graphs")
    graph = nx.Graph(Torus(rows * columns, rows, columns).edges())
    assert nx.is_isomorphic(graph, build(nx))


def test_an_axis_of_two_is_one_edge():
    # Wrapped twice, the rows of the 2 x 2 torus would sum to 0.6.
    assert Torus(4).mixing_matrix() == pytest.approx(
        Ring(4).mixing_matrix()[[0, 1, 3, 2]][:, [0, 1, 3, 2]]
    )
    assert [Torus(8).degree(rank) for rank in range(8)] == [3] * 8


def test_ranks_run_along_rows():
    assert Torus(12, rows=3, columns=4).neighbors(5) == (1, 4, 6, 9)
    assert Torus(12, rows=3, columns=4).neighbors(0) == (1, 3, 4, 8)


def test_known_gap():
    # 3 x 4: eigenvalues (1 + 2 cos a + 2 cos b) / 5; the nearest to 1 has a = 0, b = 2 pi / 4.
    assert Torus(12).spectral_gap() == pytest.approx(1 - 3 / 5)


def test_repr_shows_the_shape():
    assert repr(Torus(8)) == "Torus(8, rows=2, columns=4)"
    assert Torus(8) == Torus(8, columns=4) != Torus(8, rows=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rows": 3, "columns": 5},
            "rows * columns must be 12, got 3 x 5 = 15; leave one of them out to have it inferred",
        ),
        ({"rows": 5}, "rows must divide size 12, got 5; use one of 1, 2, 3, 4, 6, 12"),
        ({"columns": 24}, "columns must divide size 12, got 24; use one of 1, 2, 3, 4, 6, 12"),
        ({"columns": 0}, "columns must be an int >= 1, got 0; use one of 1, 2, 3, 4, 6, 12"),
        ({"rows": 2.0}, "rows must be an int >= 1, got 2.0; use one of 1, 2, 3, 4, 6, 12"),
        (
            {"rows": -3, "columns": -4},
            "rows must be an int >= 1, got -3; leave it out to have it inferred",
        ),
    ],
)
def test_a_bad_shape_is_refused(options, message):
    with pytest.raises(ValueError) as error:
        Torus(12, **options)
    assert str(error.value) == f"torus: {message}"


@pytest.fixture
def log(caplog):
    lattice._warn_prime.cache_clear()
    caplog.set_level(logging.DEBUG, logger="decentral")
    yield caplog
    lattice._warn_prime.cache_clear()


def test_a_prime_size_says_once_that_it_is_a_ring(log):
    assert Torus(7).edges() == Ring(7).edges()
    Torus(7)
    assert log.messages == [
        "torus: size 7 is prime, so its torus is 1 x 7, a ring; size 8 would be 2 x 4"
    ]
    Torus(5)
    assert len(log.messages) == 2 and "size 5 is prime" in log.messages[1]


def test_it_says_nothing_where_nothing_surprises(log):
    for size in (1, 2, 3, 4, 6, 9, 25):
        Torus(size)
    Torus(7, rows=1)
    Torus(7, columns=1)
    Torus(7, 1, 7)
    assert log.messages == []
