import math

import numpy as np
import pytest

from decentral_topologies import Graph, Ring, Star, from_name

WIRING = """\
# leaf switches of two racks
0 1
1 2   # the cable in the floor
\t2   3

3 0
"""


@pytest.fixture
def wiring(tmp_path):
    def write(text):
        path = tmp_path / "wiring.txt"
        path.write_text(text)
        return path

    return write


def test_it_has_the_edges_given_in_any_order_once():
    graph = Graph(4, [(3, 0), (1, 2), (0, 1), (2, 3), (1, 0), [2, 3]])
    assert graph.edges() == Ring(4).edges()
    assert np.array_equal(graph.mixing_matrix(), Ring(4).mixing_matrix())
    assert graph == from_name("graph", 4, edges=iter(Ring(4).edges()))
    assert repr(Graph(2, [(1, 0)])) == "Graph(2, edges=[(0, 1)])"


def test_without_weights_they_are_metropolis_hastings():
    graph = Graph(5, Star(5).edges())
    assert np.array_equal(graph.mixing_matrix(), Star(5).mixing_matrix())


def test_weights_of_ones_own_leave_the_rest_on_the_diagonal():
    graph = Graph(3, [(1, 0, 0.5), (1, 2, 0.25)])
    expected = [[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0, 0.25, 0.75]]
    assert np.array_equal(graph.mixing_matrix(), expected)
    assert graph.is_doubly_stochastic()
    ascending = np.linalg.eigvalsh(expected)
    assert graph.spectral_gap() == pytest.approx(1 - max(ascending[1], -ascending[0]))
    assert repr(graph) == "Graph(3, edges=[(0, 1, 0.5), (1, 2, 0.25)])"
    assert graph != Graph(3, [(0, 1), (1, 2)])


def test_rows_may_sum_to_1_in_decimals():
    # Three times 0.1 and 0.7 is 0.9999999999999999 or so: the diagonal must not become -1e-16.
    graph = Graph(5, [(0, 1, 0.1), (0, 2, 0.1), (0, 3, 0.1), (0, 4, 0.7), (1, 2, 0.2)])
    assert graph.weights(0) == {0: 0.0, 1: 0.1, 2: 0.1, 3: 0.1, 4: 0.7}
    triangle = Graph(3, [(0, 1, 0.5), (1, 2, 0.5), (2, 0, 0.5)])
    assert triangle.spectral_gap() == pytest.approx(0.5)


def test_one_rank_needs_no_edge():
    assert Graph(1, []).neighbors(0) == () and Graph(1, []).weights(0) == {0: 1.0}
    assert eval(repr(Graph(1, []))) == Graph(1, ())


def test_it_reads_a_file(wiring):
    path = wiring(WIRING)
    assert Graph.read(path) == Graph.read(str(path)) == Graph(4, Ring(4).edges())
    assert from_name("graph", 4, edges=str(path)) == Graph(4, path) == Graph.read(path)


def test_it_reads_weights(wiring):
    path = wiring("0 1 0.5\n1 2 1e-1 # a slow link\n")
    assert Graph.read(path).weights(1) == pytest.approx({0: 0.5, 1: 0.4, 2: 0.1})


@pytest.mark.parametrize("line", ["1", "0 1 2 3", "a b", "0 1.0", "0 1 fast", "0, 1"])
def test_a_line_that_is_no_edge_is_named(wiring, line):
    path = wiring(f"# switches\n0 1\n\n  {line} # rack 3\n")
    with pytest.raises(ValueError) as error:
        Graph.read(path)
    assert str(error.value) == (
        f"graph: {path}, line 4: must be 'i j' or 'i j weight', got '{line} # rack 3'; "
        "a comment starts with #"
    )


def test_a_file_must_have_edges(wiring):
    path = wiring("# nothing yet\n")
    with pytest.raises(ValueError) as error:
        Graph.read(path)
    assert str(error.value) == f"graph: {path} must have a line per edge, got none; list the edges"
    with pytest.raises(FileNotFoundError):
        Graph.read(path.with_name("nowhere"))


def test_it_takes_a_networkx_graph():
    nx = pytest.importorskip("networkx", reason="passes networkx's own graphs")
    assert Graph(10, nx.petersen_graph()).spectral_gap() == pytest.approx(1 - 2 / 4)
    weighted = nx.path_graph(3)
    nx.set_edge_attributes(weighted, 0.25, "weight")
    assert Graph(3, weighted) == Graph(3, [(0, 1, 0.25), (1, 2, 0.25)])
    with pytest.raises(ValueError, match=r"graph must be undirected, got DiGraph .*to_undirected"):
        Graph(2, nx.DiGraph([(0, 1)]))
    with pytest.raises(ValueError, match=r"two different ranks in 0\.\.1, .*got \('a', 'b', None"):
        Graph(2, nx.Graph([("a", "b")]))


PASS = "pass pairs (i, j), triples (i, j, weight), a networkx graph or the path of a file of them"
BOTH = "weights are the same in both directions"


def link(got):
    return f"an edge must be two different ranks in 0..2, and a weight or not, got {got}; {PASS}"


def weight(got):
    return (
        f"the weight of edge (0, 1) must be a number above 0 and at most 1, got {got}; "
        "leave the edge out if nothing is to be sent"
    )


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (None, f"edges must be given, got none; {PASS}"),
        (3, f"edges must be what Graph takes, got 3; {PASS}"),
        ([(0, 1), (1, 3)], link("(1, 3)")),
        ([(0, 1), (1, -2)], link("(1, -2)")),
        ([(0, 1), (2, 2)], link("(2, 2)")),
        ([(0, 1.0), (1, 2)], link("(0, 1.0)")),
        ([(0, True), (1, 2)], link("(0, True)")),
        ([0, 1], link("0")),
        ([(0, 1, 0.5, 2)], link("(0, 1, 0.5, 2)")),
        (["01", "12"], link("'01'")),
        ([(0, 1, 0), (1, 2, 0.5)], weight("0")),
        ([(0, 1, -0.5), (1, 2, 0.5)], weight("-0.5")),
        ([(0, 1, math.nan), (1, 2, 0.5)], weight("nan")),
        ([(0, 1, 1.5), (1, 2, 0.5)], weight("1.5")),
        ([(0, 1, "much"), (1, 2, 0.5)], weight("'much'")),
        (
            [(0, 1, 0.5), (1, 0, 0.4), (1, 2, 0.5)],
            f"edge (0, 1) must have one weight, got 0.5 and 0.4; {BOTH}",
        ),
        (
            [(0, 1, 0.5), (1, 2)],
            "all edges or none must have a weight, got none for edge (1, 2); "
            "give it one, or leave all out",
        ),
        (
            [(0, 1, 0.5), (1, 2, 0.6)],
            "the weights of rank 1's edges must sum to at most 1, got 1.1; scale them down",
        ),
        (
            [(0, 1)],
            "all ranks must be connected, got no way from rank 0 to rank 2; add an edge",
        ),
    ],
)
def test_a_bad_graph_is_refused(edges, message):
    with pytest.raises(ValueError) as error:
        Graph(3, edges)
    assert str(error.value) == f"graph: {message}"


def test_a_graph_that_would_swap_for_ever_is_refused():
    swap = r"some rank must keep a share, .*graph of two sides, .*; scale weights down"
    with pytest.raises(ValueError, match=swap):
        Graph(2, [(0, 1, 1.0)])
    with pytest.raises(ValueError, match=swap):
        Graph(4, [(i, j, 0.5) for i, j in Ring(4).edges()])
    Graph(4, [(i, j, 0.499) for i, j in Ring(4).edges()])
    Graph(5, [(i, j, 0.5) for i, j in Ring(5).edges()])
