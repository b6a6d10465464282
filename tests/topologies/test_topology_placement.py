import itertools

import numpy as np
import pytest

from decentral_topologies import (
    Complete,
    Exponential,
    Graph,
    Grid,
    Hypercube,
    OnePeerExponential,
    Path,
    Placed,
    RandomRegular,
    Ring,
    Star,
    Torus,
    Torus3D,
    available,
    crossing,
    from_name,
    place,
)


def round_robin(size, hosts):
    return [rank % hosts for rank in range(size)]


def groupings(places, sizes):
    """Every way to split the places into hosts of these sizes, hosts of one size in any order."""
    if not sizes:
        yield ()
        return
    first, *rest = places  # whose host is chosen first, so that equal hosts are not exchanged
    for size in sorted(set(sizes)):
        others = list(sizes)
        others.remove(size)
        for more in itertools.combinations(rest, size - 1):
            group = {first, *more}
            for groups in groupings([p for p in rest if p not in group], others):
                yield (group, *groups)


def least(topology, sizes):
    """The fewest edges that any placement has to cut, by trying all."""
    edges = [e for step in range(topology.period) for e in topology.edges(step)]
    cut = min(
        sum(not any(i in group and j in group for group in groups) for i, j in edges)
        for groups in groupings(list(range(topology.size)), sizes)
    )
    return cut


@pytest.mark.parametrize(
    ("topology", "hosts", "optimum"),
    [
        (Ring(8), round_robin(8, 2), 2),
        (Ring(8), round_robin(8, 4), 4),
        (Ring(9), [0, 1, 1, 0, 2, 0, 1, 0, 2], 3),
        (Ring(2), [0, 1], 1),
        (Torus(8), round_robin(8, 2), 4),
        (Torus(8), round_robin(8, 4), 8),
        (Torus(9), round_robin(9, 3), 9),
        (Torus(10), [1, 0, 1, 0, 0, 1, 1, 0, 1, 1], 4),
        (Torus(12), round_robin(12, 2), 6),
        (Torus(12), round_robin(12, 3), 12),
        (Torus(12), round_robin(12, 4), 12),
        (Torus3D(8), round_robin(8, 4), 8),
        (Grid(9), round_robin(9, 3), 6),
        (Grid(12), round_robin(12, 3), 6),
        (Path(7), [0, 1, 0, 1, 0, 1, 0], 1),
        (Star(7), [0, 1, 0, 1, 1, 1, 0], 3),
        (Hypercube(8), [0, 1, 1, 0, 1, 0, 0, 1], 4),
        (Complete(6), round_robin(6, 3), 12),
        (Exponential(8), round_robin(8, 2), None),
        (OnePeerExponential(8), [0, 1, 1, 0, 1, 0, 0, 1], None),
        (RandomRegular(10, 3), round_robin(10, 2), None),
        (Graph(8, [(0, 4), (4, 1), (1, 5), (5, 0), (0, 2), (2, 6), (6, 3), (3, 7), (7, 2)]),
         round_robin(8, 2), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_small_cases_are_optimal(topology, hosts, optimum):
    by_all = least(topology, np.bincount(hosts).tolist())
    assert optimum in (None, by_all)
    assert crossing(place(topology, hosts), hosts) == by_all


@pytest.mark.parametrize("seed", range(20))
def test_a_ring_has_one_edge_per_host_however_ranks_lie(seed):
    hosts = np.random.default_rng(seed).integers(0, 7, size=50).tolist()
    assert crossing(place(Ring(50), hosts), hosts) == len(set(hosts))


@pytest.mark.parametrize(
    ("topology", "hosts", "crossed"),
    [
        # 8 ranks a host are tiles of 2 x 4 with 10 edges inside, of 2048.
        (Torus(1024), 128, 2048 - 128 * 10),
        (Torus(1024), 64, 2048 - 64 * 24),
        (Grid(1024), 128, 1984 - 128 * 10),
        (Torus3D(1000), 125, 3000 - 125 * 12),
        (Hypercube(1024), 128, 5120 - 128 * 12),
        (Ring(1024), 128, 128),
    ],
    ids=repr,
)
def test_large_lattices_are_cut_into_tiles(topology, hosts, crossed):
    names = round_robin(1024, hosts)[: topology.size]
    assert crossing(place(topology, names), names) == crossed


@pytest.mark.parametrize("name", available(16))
def test_it_is_the_same_graph_and_never_worse(name):
    graph = from_name(name, 16)
    for seed in range(5):
        hosts = np.random.default_rng(seed).integers(0, 4, size=16).tolist()
        placed = place(graph, hosts)
        assert crossing(placed, hosts) <= crossing(graph, hosts)
        assert place(graph, hosts) == placed  # all ranks find the same
        again = place(placed, hosts)
        assert crossing(again, hosts) <= crossing(placed, hosts)
        assert placed.spectral_gap() == graph.spectral_gap()
        assert placed.is_doubly_stochastic()
        if placed is not graph:
            order = list(placed.order)
            for step in range(graph.period):
                mixing = placed.mixing_matrix(step)
                assert np.array_equal(mixing[order][:, order], graph.mixing_matrix(step))


@pytest.mark.parametrize("name", available(8))
def test_it_is_the_topology_itself_where_nothing_is_to_gain(name):
    graph = from_name(name, 8)
    assert place(graph, [3] * 8) is graph
    assert place(graph, range(8)) is graph
    assert crossing(graph, [3] * 8) == 0


def test_blocks_of_ranks_are_left_as_they_are():
    assert place(Ring(12), np.arange(12) // 4) == Ring(12)
    assert place(Torus(16), np.arange(16) // 4) == Torus(16)


def test_very_large_ones_are_left_as_they_are():
    graph = Torus(200 * 200)
    assert place(graph, round_robin(graph.size, 10)) is graph


def test_a_placed_one_can_be_placed_anew():
    away = Placed(Ring(6), (0, 2, 4, 1, 3, 5))
    assert place(away, [0, 0, 0, 1, 1, 1]) == Ring(6)
    assert place(away, [0, 1, 0, 1, 0, 1]) is away


def test_all_steps_of_a_period_are_counted():
    graph = OnePeerExponential(4)
    assert crossing(graph, [0, 0, 1, 1]) == 2 + 4
    assert crossing(graph, [0, 1, 0, 1]) == 4 + 0
    assert crossing(Exponential(4), [0, 1, 0, 1]) == 4


def test_the_order_says_who_has_which_place():
    graph = Placed(Path(4), (2, 0, 3, 1))
    assert graph.edges() == ((0, 2), (0, 3), (1, 3))
    assert graph.weights(2) == {0: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}
    assert graph.layout() == [(1, 0), (3, 0), (0, 0), (2, 0)]
    assert repr(graph) == "Placed(Path(4), order=(2, 0, 3, 1))"
    assert Placed(Ring(3), range(3)).layout() is None
    one_way = Placed(OnePeerExponential(4), (2, 0, 3, 1))
    assert one_way.directed and one_way.time_varying and one_way.period == 2
    assert one_way.targets(2) == (0,) and one_way.sources(2, step=1) == (3,)


def test_weights_of_ones_own_move_with_the_ranks():
    graph = Placed(Graph(3, [(0, 1, 0.5), (1, 2, 0.25)]), (1, 2, 0))
    assert graph.weights(2) == {0: 0.25, 1: 0.5, 2: 0.25}


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 1), (0, 1, 3), (0, 1, 2.0)])
def test_a_bad_order_is_refused(order):
    with pytest.raises(ValueError) as error:
        Placed(Ring(3), order)
    assert str(error.value) == (
        f"ring: order must hold every rank in 0..2 once, got {order!r}; "
        "order[p] is the rank that has place p"
    )


@pytest.mark.parametrize("ask", [place, crossing])
def test_bad_hosts_are_refused(ask):
    with pytest.raises(ValueError) as error:
        ask(Ring(4), [0, 1, 2])
    assert str(error.value) == (
        "place: hosts must be the number of the host of each of 4 ranks, got 3 of them; "
        "gather it from all ranks"
    )
    with pytest.raises(ValueError) as error:
        ask(Ring(3), [0, "node2", 1])
    assert str(error.value) == (
        "place: the host of rank 1 must be an int, got 'node2'; number the hosts"
    )
