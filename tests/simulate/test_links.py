"""Seconds per step on paper: small cases by hand, what must not get slower, and many workers."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decentral_topologies
from decentral import algorithms, compressors
from decentral.simulate import Link, Links, Machine, Workload, measure_coding, predict

MB = Workload((250_000,), (1.0,))  # a bucket of 1 MB of float32
FREE = {  # a machine that does nothing but compute
    "encode_bytes_per_s": float("inf"),
    "decode_bytes_per_s": float("inf"),
    "copy_bytes_per_s": float("inf"),
    "network_s_per_byte": 0.0,
    "message_s": 0.0,
}
PLAIN = {"bandwidth": 1e8, "latency": 0.0, "goodput": 1.0, "fairness": 1.0}


def algorithm(name="allreduce", compressor="none", topology="ring", **options):
    c = compressors.from_name(compressor, **options)
    return algorithms.from_name(name, topology=topology, compressor=c)


def seconds(a, n, links=PLAIN, machine=FREE, model=MB, **options):
    compute = {"compute_s": 0.0} | machine
    return predict(a, n, model, Links(**links), Machine(**compute), **options).total


def test_ring_of_four_by_hand():
    # 2 * 3/4 of 1 MB is 1.5 MB, which take .12 s at 100 Mbit/s
    assert seconds(algorithm(), 4) == pytest.approx(0.12)
    assert seconds(algorithm(), 4, PLAIN | {"latency": 0.01}) == pytest.approx(0.12 + 6 * 0.01)
    assert seconds(algorithm(), 4, PLAIN | {"goodput": 0.5}) == pytest.approx(0.24)


def test_tree_by_hand():
    # twice the vector, and up and down two levels
    links = PLAIN | {"latency": 0.01}
    assert seconds(algorithm(), 4, links, sums="tree") == pytest.approx(0.16 + 4 * 0.01)


def test_gossip_by_hand():
    # a message of 1,000,032 bytes to each of two neighbors
    wire = 2 * 8 * 1_000_032 / 1e8
    assert seconds(algorithm("d-psgd"), 5) == pytest.approx(wire)
    assert seconds(algorithm("d-psgd"), 2) == pytest.approx(wire / 2)
    assert seconds(algorithm("d-psgd"), 5, PLAIN | {"fairness": 0.8}) == pytest.approx(wire / 0.8)
    assert seconds(algorithm("d-psgd"), 5, machine=FREE | {"compute_s": 0.1}) == pytest.approx(wire)
    assert seconds(algorithm("d-psgd"), 5, machine=FREE | {"compute_s": 1.0}) == pytest.approx(1.0)


def test_all_reduce_begins_with_the_first_bucket():
    # forward .3 s; backward .6 s, half of it until the first bucket; two buckets of .12 s each
    model = Workload((250_000, 250_000), (0.5, 1.0))
    machine = FREE | {"compute_s": 1.0, "forward": 0.3, "optimizer": 0.1}
    assert seconds(algorithm(), 4, machine=machine, model=model) == pytest.approx(0.9 + 0.12 + 0.1)
    slow = PLAIN | {"bandwidth": 1e7}  # 1.2 s each
    assert seconds(algorithm(), 4, slow, machine, model) == pytest.approx(0.6 + 2.4 + 0.1)


def test_processor_time_is_hidden_only_where_there_is_a_core_for_it():
    machine = FREE | {"compute_s": 1.0, "network_s_per_byte": 1e-7, "optimizer": 0.0}
    two = seconds(algorithm("d-psgd"), 3, machine=machine | {"cores": 2})
    one = seconds(algorithm("d-psgd"), 3, machine=machine | {"cores": 1})
    assert two == pytest.approx(1.0) and one == pytest.approx(1.0 + 2 * 1_000_032 * 1e-7)


def test_shared_machine():
    machine = Machine(1.0, cores=2).shared(workers=8, cores=2)
    assert machine.compute_s == 4.0 and machine.cores == 0.25
    assert machine.encode_bytes_per_s == Machine(1.0).encode_bytes_per_s / 4
    alone = Machine(1.0).shared(workers=1, cores=16)
    assert alone.compute_s == 1.0 and alone.cores == 16


def test_local_steps_divide_the_exchange():
    machine = FREE | {"compute_s": 0.01}
    every = predict(algorithm(), 4, MB, Links(**PLAIN), Machine(**machine))
    fourth = predict(algorithm(), 4, MB, Links(**PLAIN), Machine(**machine), local_steps=4)
    assert fourth.bytes_sent == every.bytes_sent / 4
    assert fourth.waiting == pytest.approx(every.waiting / 4)


def test_a_slow_link_counts_for_those_who_use_it():
    links = PLAIN | {"exceptions": {(0, 1): Link(1e6, 0.5)}}
    slow = 8 * 1_000_032 / 1e6
    assert seconds(algorithm("d-psgd"), 6, links) == pytest.approx(slow + 0.5)
    # 0 and 1 are no neighbors on a ring: the link is not used
    links = PLAIN | {"exceptions": {(1, 3): Link(1e6, 0.5)}}
    assert seconds(algorithm("d-psgd"), 6, links) == seconds(algorithm("d-psgd"), 6)
    # far away from those that are looked at among many
    links = PLAIN | {"exceptions": {(777, 778): Link(1e6, 0.5)}}
    assert seconds(algorithm("d-psgd"), 5000, links) == pytest.approx(slow + 0.5)


def test_hosts_with_several_ranks():
    # the ring crosses every host's interface once; on a ring of gossip, both ways
    links = PLAIN | {"per_host": 4, "local_bandwidth": float("inf")}
    assert seconds(algorithm(), 8, links) == pytest.approx(8 * 1_750_000 / 1e8)
    wire = 2 * 8 * 1_000_032 / 1e8
    assert seconds(algorithm("d-psgd"), 16, links) == pytest.approx(wire)
    # all on one host: nothing is slow
    assert seconds(algorithm(), 4, links) == 0


def test_one_worker_only_computes():
    for name in ("allreduce", "d-psgd"):
        step = predict(algorithm(name), 1, MB, Links(), Machine(0.5))
        assert step.total == pytest.approx(0.5)
        assert step.bytes_sent == 0 and step.waiting == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("topology", decentral_topologies.available())
def test_every_topology_by_its_degree(topology):
    graph = decentral_topologies.from_name(topology, 16)
    degree = max(graph.degree(r) for r in range(16))
    step = predict(algorithm("d-psgd", topology=topology), 16, MB, Links(), Machine(0.1))
    assert step.bytes_sent == degree * 1_000_032


@pytest.mark.timeout(60)  # a tenth of a second; worker by worker it would not end
@pytest.mark.parametrize("system", (("allreduce", "none"), ("allreduce", "nuqsgd")))
@pytest.mark.parametrize("sums", ("ring", "tree"))
def test_a_hundred_thousand_workers(system, sums):
    step = predict(algorithm(*system), 100_000, 100_000_000, Links(), Machine(0.5), sums=sums)
    assert step.total > 1


@pytest.mark.parametrize("topology", ("ring", "torus"))
def test_gossip_costs_as_much_among_a_hundred_thousand(topology):
    few, many = (
        predict(algorithm("ecd-psgd", "nuqsgd", topology), n, 10_000_000, Links(), Machine(0.1))
        for n in (64, 100_000)
    )
    assert few == many


SYSTEMS = [("allreduce", "none"), ("allreduce", "nuqsgd"), ("allreduce", "intsgd")]
SYSTEMS += [("d-psgd", "none"), ("ecd-psgd", "nuqsgd")]
positive = st.floats(1e-3, 1e3)
WORSE = [  # of Links or Machine, and whether less of it is worse
    ("bandwidth", True),
    ("goodput", True),
    ("fairness", True),
    ("latency", False),
    ("compute_s", False),
    ("encode_bytes_per_s", True),
    ("decode_bytes_per_s", True),
    ("copy_bytes_per_s", True),
    ("network_s_per_byte", False),
    ("message_s", False),
]


@settings(max_examples=60, deadline=None)
@given(
    system=st.sampled_from(SYSTEMS),
    n=st.sampled_from((2, 3, 8, 100)),
    which=st.sampled_from(WORSE),
    factor=st.floats(0.01, 1.0),
    scale=positive,
    cores=st.sampled_from((0.5, 2.0)),
)
def test_nothing_better_makes_a_step_slower(system, n, which, factor, scale, cores):
    links, machine = Links(bandwidth=1e9 * scale), Machine(0.1, cores=cores)
    name, less_is_worse = which
    change = factor if less_is_worse else 1 / factor

    def worse(thing):
        if not hasattr(thing, name):
            return thing
        return dataclasses.replace(thing, **{name: getattr(thing, name) * change})

    a = algorithm(*system)
    better = predict(a, n, 3_000_000, links, machine)
    later = predict(a, n, 3_000_000, worse(links), worse(machine))
    assert later.total >= better.total * (1 - 1e-12)
    assert better.total >= machine.compute_s * (1 - 1e-12)
    assert better.bytes_sent == later.bytes_sent


@settings(max_examples=40, deadline=None)
@given(system=st.sampled_from(SYSTEMS), n=st.integers(1, 100), numel=st.integers(1 << 18, 10**7))
def test_more_parameters_are_never_faster(system, n, numel):
    a = algorithm(*system)
    steps = [predict(a, n, size, Links(), Machine(0.0)) for size in (numel, 2 * numel + 4096)]
    assert steps[0].total <= steps[1].total


def test_workload_has_the_optimizers_buckets():
    from torch import nn

    model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 10))
    found = Workload.of(model, bucket_cap_mb=2)
    assert sum(found.numels) == found.numel == 1_011_010
    assert len(found.numels) == len(found.ready) > 2
    assert max(found.ready) == 1.0 and min(found.ready) > 0
    assert Workload.of(1_000_000, 1).numels == Workload.of(1_000_000, 1.0).numels


def test_coding_is_measured():
    found = measure_coding(compressors.from_name("none"), numel=1024, seconds=1e-3)
    assert all(v > 0 for v in found)
    Machine(0.1, **found._asdict())


@pytest.mark.parametrize(
    "call",
    (
        lambda: Links(bandwidth=0),
        lambda: Links(latency=-1),
        lambda: Links(goodput=float("nan")),
        lambda: Links(exceptions={(0, 1): (0, 1)}),
        lambda: Links(per_host=0),
        lambda: Machine(-1.0),
        lambda: Machine(1.0, cores=0),
        lambda: Machine(1.0, encode_bytes_per_s=0),
        lambda: Machine(1.0, forward=0.7, optimizer=0.7),
        lambda: Machine(1.0).shared(0, 2),
        lambda: Workload.of(0),
        lambda: predict(algorithm(), 0, MB, Links(), Machine(1)),
        lambda: predict(algorithm(), 2, MB, Links(), Machine(1), local_steps=0),
        lambda: predict(algorithm(), 2, MB, Links(), Machine(1), sums="star"),
        lambda: predict(algorithm("allreduce", "intsgd"), 128, MB, Links(), Machine(1)),
        lambda: measure_coding(compressors.from_name("none"), numel=0),
    ),
)
def test_errors(call):
    with pytest.raises(ValueError, match=r"got|cannot hold"):
        call()
