"""What every registered topology must hold, whatever its family."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import decentral_topologies
from decentral_topologies import Complete, Ring, Topology, Torus, available, from_name, options_of

SIZES = range(1, 65)


@pytest.fixture(params=SIZES, ids=lambda size: f"n{size}")
def size(request):
    return request.param


@pytest.fixture(params=available())
def topology(request, size):
    return from_name(request.param, size)


class Star(Topology):
    """A graph of unequal degrees, which no registered family is."""

    name = "star"

    def _adjacent(self, rank, step):
        return range(self.size) if rank == 0 else (0, 0, rank)


class Bipartite(Topology):
    """Even ranks joined to all odd ones: its most negative eigenvalue is the one that counts."""

    name = "bipartite"

    def _adjacent(self, rank, step):
        return range((rank + 1) % 2, self.size, 2)


def adjacency(topology):
    matrix = np.zeros((topology.size, topology.size), dtype=bool)
    for rank in range(topology.size):
        matrix[rank, list(topology.neighbors(rank))] = True
    return matrix


def test_mixing_matrix_is_symmetric_and_doubly_stochastic(topology):
    mixing = topology.mixing_matrix()
    assert mixing.dtype == np.float64 and mixing.shape == (topology.size, topology.size)
    assert np.array_equal(mixing, mixing.T)
    assert np.abs(mixing.sum(axis=0) - 1).max() <= 1e-12
    assert np.abs(mixing.sum(axis=1) - 1).max() <= 1e-12


def test_mixing_matrix_is_positive_exactly_on_edges_and_diagonal(topology):
    mixing = topology.mixing_matrix()
    expected = adjacency(topology) | np.eye(topology.size, dtype=bool)
    assert np.array_equal(mixing > 0, expected)
    assert np.array_equal(mixing != 0, expected)


def test_neighbors_are_sorted_plain_ints_without_self_and_mutual(topology):
    for rank in range(topology.size):
        neighbors = topology.neighbors(rank)
        assert isinstance(neighbors, tuple) and all(type(j) is int for j in neighbors)
        assert list(neighbors) == sorted(set(neighbors) - {rank})
        assert all(0 <= j < topology.size for j in neighbors)
        assert topology.degree(rank) == len(neighbors)
    assert np.array_equal(adjacency(topology), adjacency(topology).T)


def test_edges_are_the_upper_triangle(topology):
    upper = np.argwhere(np.triu(adjacency(topology)))
    assert topology.edges() == tuple((int(i), int(j)) for i, j in upper)


def test_weights_are_the_row_of_the_matrix_by_metropolis_hastings(topology):
    mixing = topology.mixing_matrix()
    degrees = adjacency(topology).sum(axis=1)
    for rank in range(topology.size):
        weights = topology.weights(rank)
        assert list(weights) == sorted({rank, *topology.neighbors(rank)})
        row = np.zeros(topology.size)
        row[list(weights)] = list(weights.values())
        assert np.array_equal(row, mixing[rank])
        for j in topology.neighbors(rank):
            assert weights[j] == 1 / (1 + max(degrees[rank], degrees[j]))


def test_graph_is_connected(topology):
    reached = np.eye(topology.size, dtype=bool)[0]
    graph = adjacency(topology)
    for _ in range(topology.size):
        reached |= graph[reached].any(axis=0)
    assert reached.all()


def test_spectral_gap_is_the_norm_of_what_is_left_after_mixing(topology):
    # Independent of eigenvalues: W - 11'/n is W without its average, and its 2-norm comes by SVD.
    left = topology.mixing_matrix() - 1 / topology.size
    assert topology.spectral_gap() == pytest.approx(1 - np.linalg.norm(left, 2), abs=1e-12)
    assert 0 < topology.spectral_gap() <= 1 + 1e-12


def test_repr_makes_an_equal_topology(topology):
    again = eval(repr(topology), {c.__name__: c for c in (Ring, Torus, Complete)})
    assert again == topology and hash(again) == hash(topology)
    assert topology != from_name(topology.name, topology.size + 1)
    assert topology != topology.size


def test_static_topologies_ignore_the_step(topology):
    assert not topology.directed and not topology.time_varying
    rank = topology.size - 1
    assert topology.neighbors(rank, step=5) == topology.neighbors(rank)
    assert topology.weights(rank, step=5) == topology.weights(rank)
    assert topology.edges(step=5) == topology.edges()
    assert np.array_equal(topology.mixing_matrix(step=5), topology.mixing_matrix())


def test_weights_cost_by_degree():
    # At this size the matrix would be 7 TiB.
    assert Ring(10**6).weights(0) == pytest.approx({0: 1 / 3, 1: 1 / 3, 10**6 - 1: 1 / 3})


def test_weights_of_unequal_degrees():
    # The star of 4: its center has 3 neighbors, its leaves 1, so every edge weighs 1/4.
    assert Star(4).weights(0) == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}
    assert Star(4).weights(2) == {0: 0.25, 2: 0.75}
    assert Star(4).spectral_gap() == pytest.approx(0.25)


def test_the_gap_counts_the_negative_end():
    # K_3,3 has eigenvalues 1, 1/4 four times, and -1/2.
    assert Bipartite(6).spectral_gap() == pytest.approx(0.5)


def test_the_registry_names_classes():
    assert available() == ("ring", "torus", "complete")
    for name, family in {"ring": Ring, "torus": Torus, "complete": Complete}.items():
        assert type(from_name(name, 6)) is family and family.name == name
    assert options_of("torus") == ("rows", "columns") and options_of("ring") == ()
    assert from_name("torus", 12, columns=6) == Torus(12, rows=2)


def test_numpy_integers_are_sizes_and_ranks():
    assert Ring(np.int64(5)) == Ring(5)
    assert Ring(5).neighbors(np.int32(4)) == (0, 3)


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("bad", [0, -1, 2.0, "4", None, True])
def test_a_bad_size_is_refused(name, bad):
    with pytest.raises(ValueError) as error:
        from_name(name, bad)
    assert str(error.value) == (
        f"{name}: size must be an int >= 1, got {bad!r}; pass the number of ranks"
    )


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("method", ["neighbors", "degree", "weights"])
@pytest.mark.parametrize("bad", [-1, 4, 1.0, None, False])
def test_a_bad_rank_is_refused(name, method, bad):
    with pytest.raises(ValueError) as error:
        getattr(from_name(name, 4), method)(bad)
    assert str(error.value) == (
        f"{name}: rank must be an int in 0..3, got {bad!r}; the topology was made for size 4"
    )


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError) as error:
        from_name("mesh", 4)
    assert str(error.value) == "topology: name must be one of ring, torus, complete, got 'mesh'"


def test_an_unknown_option_names_those_it_takes():
    with pytest.raises(ValueError) as error:
        from_name("torus", 4, row=2)
    assert str(error.value) == (
        "torus: options must be among rows, columns, got 'row'; leave it out"
    )
    with pytest.raises(ValueError) as error:
        from_name("ring", 4, rows=2)
    assert str(error.value) == "ring: takes no options, got 'rows'; leave it out"


def test_importing_it_loads_no_drawing_and_no_training_library():
    heavy = ["networkx", "matplotlib", "torch", "numba", "mpi4py", "decentral"]
    code = f"import sys, decentral_topologies; print([m for m in {heavy} if m in sys.modules])"
    root = Path(decentral_topologies.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
