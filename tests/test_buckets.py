"""Buckets: which coordinates travel together, and their way to the flat vector and back."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.buckets import MAX_BUCKETS, Buckets, copy_into, same_memory

MIB = 2**20
UNIT = 1024  # what a large parameter is cut at multiples of


def parameter(*shape, dtype=torch.float32):
    values = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.nn.Parameter(values.reshape(shape).to(dtype))


def named(*sizes):
    return [(f"p{i}", parameter(size)) for i, size in enumerate(sizes)]


def names(buckets):
    return [b.names for b in buckets]


def cap(numel):
    """Return the cap in MiB that so many float32 just fit."""
    return 4 * numel / MIB


def one(*pairs):
    """Return Buckets that hold the (name, parameter) pairs in this order, in one bucket."""
    buckets = Buckets(reversed(pairs), 25.0)
    assert len(buckets) == 1
    return buckets


def mixed():
    """Return all dtypes that train, with a matrix, a volume and a 0-dim parameter."""
    return one(
        ("half", parameter(2, 3, dtype=torch.float16)),
        ("scalar", parameter(dtype=torch.float64)),
        ("brain", parameter(4, dtype=torch.bfloat16)),
        ("double", parameter(2, 1, 2, dtype=torch.float64)),
        ("single", parameter(3)),
    )


def gathered(buckets, tensors=None):
    """Return the only device's flat vector as it is after gather()."""
    tensors = buckets.parameters if tensors is None else tensors
    [flat] = buckets.gather(tensors, buckets.empty())
    return flat


def test_reverse_order_in_one_bucket():
    assert names(Buckets(named(1, 2, 3), 25.0)) == [["p2", "p1", "p0"]]


@pytest.mark.parametrize(
    "numel, expected",
    [
        (10, [["p3", "p2", "p1", "p0"]]),  # 4 + 3 + 2 + 1 just fit
        (9, [["p3", "p2", "p1"], ["p0"]]),
        (6, [["p3"], ["p2", "p1", "p0"]]),
        (5, [["p3"], ["p2"], ["p1", "p0"]]),
        (1, [["p3"], ["p2"], ["p1"], ["p0"]]),
    ],
)
def test_cap_is_in_mib_of_float32(numel, expected):
    assert names(Buckets(named(1, 2, 3, 4), cap(numel))) == expected


def test_cap_counts_what_travels_and_not_the_dtype():
    parameters = [("a", parameter(4, dtype=torch.float64)), ("b", parameter(4, dtype=torch.half))]
    assert names(Buckets(parameters, cap(8))) == [["b", "a"]]
    assert names(Buckets(parameters, cap(7))) == [["b"], ["a"]]


def test_large_ones_travel_alone_and_small_ones_together_though_one_is_between():
    buckets = Buckets(named(1, 1, 100, 1, 3, 1), cap(5))
    assert names(buckets) == [["p4"], ["p2"], ["p5", "p3", "p1", "p0"]]
    assert [b.alone for b in buckets] == [True, True, False]
    assert [b.first for b in buckets] == [0, 1, 2]


@pytest.mark.parametrize(
    "numel, limit, expected",
    [
        (UNIT, 1, [UNIT]),
        (UNIT + 1, 1, [UNIT, 1]),
        (4 * UNIT, UNIT, [UNIT] * 4),
        (4 * UNIT, 4 * UNIT, [4 * UNIT]),
        (4 * UNIT + 1, 4 * UNIT, [3 * UNIT, UNIT + 1]),  # equal pieces, to a unit
        (10_000, 4 * UNIT, [4 * UNIT, 3 * UNIT, 10_000 - 7 * UNIT]),
    ],
)
def test_larger_than_the_cap_is_cut_at_units(numel, limit, expected):
    buckets = Buckets(named(numel), cap(limit))
    assert [b.numel for b in buckets] == expected
    assert [(b.names, b.indices, b.numels) for b in buckets] == [
        (["p0"], [0], [n]) for n in expected
    ]
    assert buckets.holding == [list(range(len(expected)))]


def test_what_is_left_of_a_cut_parameter_shares_no_bucket_with_the_next():
    buckets = Buckets(named(10, 20, 3 * UNIT, 30), cap(2 * UNIT))
    assert names(buckets) == [["p2"], ["p2"], ["p3", "p1", "p0"]]
    assert [b.numels for b in buckets] == [[2 * UNIT], [UNIT], [30, 20, 10]]
    assert buckets.holding == [[2], [0, 1], [2], [2]]  # by parameter, in the order of backward
    assert [b.first for b in buckets] == [0, 0, 2]


@pytest.mark.parametrize("bad", (0, -1.0, float("nan")))
def test_bad_cap(bad):
    expected = f"bucket_cap_mb must be positive, got {bad}; 8 is usual"
    with pytest.raises(ValueError, match=expected):
        Buckets(named(1), bad)


def test_too_many_buckets():
    at_most = [("p", torch.nn.Parameter(torch.empty(MAX_BUCKETS * UNIT, device="meta")))]
    assert len(Buckets(at_most, cap(UNIT))) == MAX_BUCKETS
    too_many = [*at_most, ("one more", parameter(1))]
    with pytest.raises(ValueError, match=r"cuts the model into 16385 buckets.* at most 16384 are"):
        Buckets(too_many, cap(UNIT))


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 30), st.integers(0, 5 * UNIT)), min_size=1, max_size=12),
    st.one_of(st.integers(1, 40), st.integers(1, 3 * UNIT)),
)
def test_every_coordinate_once_and_no_bucket_that_could_be_larger(sizes, limit):
    buckets = Buckets(named(*sizes), cap(limit))
    assert [p.numel() for p in buckets.parameters] == sizes[::-1]
    pieces = [(i, n) for b in buckets for i, n in zip(b.indices, b.numels, strict=True)]
    for i, size in enumerate(sizes[::-1]):
        assert sum(n for j, n in pieces if j == i) == size
        assert buckets.holding[i] == [k for k, b in enumerate(buckets) if i in b.indices]
    for large in (True, False):
        kind = [i for i, _ in pieces if (sizes[::-1][i] > limit / 2) == large]
        assert kind == sorted(kind)
    assert [b.start for b in buckets] == [0, *itertools.accumulate(b.numel for b in buckets)][:-1]
    largest = -(-max(limit, UNIT) // UNIT) * UNIT
    for b in buckets:
        assert b.numel == sum(b.numels)
        assert b.numel <= limit or (b.numel <= largest and b.alone)
        assert b.alone == (len(b.indices) == 1)
        assert buckets[b.first].indices[0] == b.indices[0]
    shared = [b for b in buckets if sizes[::-1][b.indices[0]] <= limit / 2]
    for b, following in itertools.pairwise(shared):
        assert b.numel + following.numels[0] > limit


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_name_at_any_coordinate(sizes):
    pairs = named(*sizes)
    [bucket] = one(*pairs)
    expected = [name for name, p in pairs for _ in range(p.numel())]
    assert [bucket.name_at(i) for i in range(bucket.numel)] == expected


def test_name_at_edges():
    [bucket] = one(
        ("a", parameter(3)), ("none", parameter(0)), ("b", parameter()), ("c", parameter(2))
    )
    assert [bucket.name_at(i) for i in range(6)] == ["a", "a", "a", "b", "c", "c"]


def test_name_at_in_a_bucket_that_begins_inside_a_parameter():
    buckets = Buckets([("a", parameter(2)), ("b", parameter(UNIT + 3))], cap(UNIT))
    assert [buckets[1].name_at(i) for i in range(3)] == ["b"] * 3
    assert [buckets[2].name_at(i) for i in range(2)] == ["a"] * 2


def test_gather_lays_parameters_end_to_end_as_float32():
    flat = gathered(mixed())
    assert flat.dtype == torch.float32 and not flat.requires_grad
    assert flat.tolist() == [*range(1, 7), 1, *range(1, 5), *range(1, 5), *range(1, 4)]


def test_a_bucket_is_a_slice_of_the_flat_vector():
    buckets = Buckets(named(3, UNIT + 2, 4), cap(UNIT))
    [flat] = everything = buckets.gather(buckets.parameters, buckets.empty())
    slices = [b.of(everything) for b in buckets]
    assert torch.cat(slices).equal(flat) and flat.numel() == UNIT + 9
    assert [s.data_ptr() - flat.data_ptr() for s in slices] == [4 * b.start for b in buckets]
    assert [len(s) for s in slices] == [UNIT, 2, 7]


@pytest.mark.parametrize("bits", (8, 11, 24))  # significant bits of bfloat16, float16, float32
def test_scatter_undoes_gather_in_every_dtype(bits):
    """Values that a dtype can hold come back bit for bit."""
    rng = torch.Generator().manual_seed(bits)
    buckets = mixed()
    with torch.no_grad():
        for p in buckets.parameters:
            p.copy_(torch.randint(-(2**bits), 2**bits, p.shape, generator=rng) / 2**bits)
    before = [p.detach().clone() for p in buckets.parameters]
    flat = buckets.gather(buckets.parameters, buckets.empty())
    with torch.no_grad():
        for p in buckets.parameters:
            p.zero_()
    buckets.scatter(flat)
    for p, own in zip(buckets.parameters, before, strict=True):
        assert p.dtype == own.dtype and p.shape == own.shape and p.requires_grad
        assert torch.equal(p, own)


def test_scatter_rounds_to_the_parameter_s_dtype():
    buckets = mixed()
    buckets.scatter([torch.full_like(flat, 1 / 3) for flat in buckets.empty()])
    for p in buckets.parameters:
        assert (p == torch.tensor(1 / 3, dtype=torch.float32).to(p.dtype)).all()


def test_none_counts_as_zeros():
    buckets = one(("a", parameter(2)), ("b", parameter()), ("c", parameter(1, 2)))
    flat = [torch.full((5,), float("nan"))]  # what was there must not show
    gradients = [None, torch.tensor(7.0), None]
    assert buckets.gather(gradients, flat) is flat
    assert flat[0].tolist() == [0, 0, 7, 0, 0]


def test_a_gradient_may_lie_in_memory_in_any_order():
    buckets = one(("a", parameter(2, 3)))
    transposed = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).t()
    assert gathered(buckets, [transposed]).tolist() == [1, 3, 5, 2, 4, 6]


def test_gather_wants_one_tensor_per_parameter():
    buckets = one(("a", parameter(2)), ("b", parameter(2)))
    with pytest.raises(ValueError, match="zip"):
        buckets.gather([torch.ones(2)], buckets.empty())


def test_a_sparse_gradient_is_refused():
    with pytest.raises(ValueError, match=r"sparse gradients cannot travel.* with sparse=False"):
        copy_into(torch.zeros(2), torch.zeros(2).to_sparse())


def test_views_are_windows_on_the_flat_vector():
    buckets = mixed()
    [flat] = everything = [torch.zeros(18)]
    views = buckets.views(everything)
    assert [v.shape for v in views] == [p.shape for p in buckets.parameters]
    for i, view in enumerate(views):
        view.fill_(i)
    assert flat.tolist() == [0] * 6 + [1] + [2] * 4 + [3] * 4 + [4] * 3


def test_devices_do_not_share_a_bucket():
    """The meta device stands in for a second GPU."""
    there = torch.nn.Parameter(torch.empty(2, device="meta"))
    buckets = Buckets([("a", parameter(2)), ("b", there), ("c", parameter(3))], 25.0)
    assert names(buckets) == [["c"], ["b"], ["a"]]
    flat = buckets.empty()
    slices = [b.of(flat) for b in buckets]
    assert [(s.device.type, len(s)) for s in slices] == [("cpu", 3), ("meta", 2), ("cpu", 2)]
    assert [v.device.type for v in buckets.views(flat)] == ["cpu", "meta", "cpu"]
    assert buckets.holding == [[0], [1], [2]]
    assert same_memory(buckets.views(flat)[2], slices[2])
