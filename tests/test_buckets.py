"""Buckets: which parameters travel together, and their way to the flat vector and back."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.buckets import Bucket, make_buckets

MIB = 2**20


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


def mixed():
    """Return a bucket of all dtypes that train, with a matrix, a volume and a 0-dim parameter."""
    return Bucket(
        [
            ("half", parameter(2, 3, dtype=torch.float16)),
            ("scalar", parameter(dtype=torch.float64)),
            ("brain", parameter(4, dtype=torch.bfloat16)),
            ("double", parameter(2, 1, 2, dtype=torch.float64)),
            ("single", parameter(3)),
        ]
    )


def test_reverse_order_in_one_bucket():
    assert names(make_buckets(named(1, 2, 3), 25.0)) == [["p2", "p1", "p0"]]


@pytest.mark.parametrize(
    "numel, expected",
    [
        (10, [["p3", "p2", "p1", "p0"]]),  # 4 + 3 + 2 + 1 just fit
        (9, [["p3", "p2", "p1"], ["p0"]]),
        (6, [["p3"], ["p2", "p1", "p0"]]),
        (1, [["p3"], ["p2"], ["p1"], ["p0"]]),
    ],
)
def test_cap_is_in_mib_of_float32(numel, expected):
    assert names(make_buckets(named(1, 2, 3, 4), cap(numel))) == expected


def test_cap_counts_what_travels_and_not_the_dtype():
    parameters = [("a", parameter(4, dtype=torch.float64)), ("b", parameter(4, dtype=torch.half))]
    assert names(make_buckets(parameters, cap(8))) == [["b", "a"]]
    assert names(make_buckets(parameters, cap(7))) == [["b"], ["a"]]


def test_larger_than_the_cap_travels_alone():
    assert names(make_buckets(named(1, 1, 100, 1, 1), cap(5))) == [
        ["p4", "p3"],
        ["p2"],
        ["p1", "p0"],
    ]


@pytest.mark.parametrize("bad", (0, -1.0, float("nan")))
def test_bad_cap(bad):
    expected = f"bucket_cap_mb must be positive, got {bad}; PyTorch's DDP uses 25"
    with pytest.raises(ValueError, match=expected):
        make_buckets(named(1), bad)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_every_parameter_once_and_no_bucket_that_could_be_larger(sizes, limit):
    parameters = named(*sizes)
    buckets = make_buckets(parameters, cap(limit))
    flat = [pair for b in buckets for pair in zip(b.names, b.parameters, strict=True)]
    assert [(n, id(p)) for n, p in flat] == [(n, id(p)) for n, p in reversed(parameters)]
    for b in buckets:
        assert b.numel == sum(p.numel() for p in b.parameters)
        assert b.numel <= limit or len(b.parameters) == 1
    for b, following in itertools.pairwise(buckets):
        assert b.numel + following.parameters[0].numel() > limit


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_name_at_any_coordinate(sizes):
    bucket = Bucket(named(*sizes))
    expected = [name for name, p in named(*sizes) for _ in range(p.numel())]
    assert [bucket.name_at(i) for i in range(bucket.numel)] == expected


def test_name_at_edges():
    bucket = Bucket(
        [("a", parameter(3)), ("none", parameter(0)), ("b", parameter()), ("c", parameter(2))]
    )
    assert [bucket.name_at(i) for i in range(6)] == ["a", "a", "a", "b", "c", "c"]


def test_gather_lays_parameters_end_to_end_as_float32():
    bucket = mixed()
    flat = bucket.gather(bucket.parameters, bucket.empty())
    assert flat.dtype == torch.float32 and not flat.requires_grad
    expected = [*range(1, 7), 1, *range(1, 5), *range(1, 5), *range(1, 4)]
    assert flat.tolist() == expected


@pytest.mark.parametrize("bits", (8, 11, 24))  # significant bits of bfloat16, float16, float32
def test_scatter_undoes_gather_in_every_dtype(bits):
    """Values that a dtype can hold come back bit for bit."""
    rng = torch.Generator().manual_seed(bits)
    bucket = mixed()
    with torch.no_grad():
        for p in bucket.parameters:
            p.copy_(torch.randint(-(2**bits), 2**bits, p.shape, generator=rng) / 2**bits)
    before = [p.detach().clone() for p in bucket.parameters]
    flat = bucket.gather(bucket.parameters, bucket.empty())
    with torch.no_grad():
        for p in bucket.parameters:
            p.zero_()
    bucket.scatter(flat)
    for p, own in zip(bucket.parameters, before, strict=True):
        assert p.dtype == own.dtype and p.shape == own.shape and p.requires_grad
        assert torch.equal(p, own)


def test_scatter_rounds_to_the_parameter_s_dtype():
    bucket = mixed()
    bucket.scatter(torch.full((bucket.numel,), 1 / 3))
    for p in bucket.parameters:
        assert (p == torch.tensor(1 / 3, dtype=torch.float32).to(p.dtype)).all()


def test_none_counts_as_zeros():
    bucket = Bucket([("a", parameter(2)), ("b", parameter()), ("c", parameter(1, 2))])
    flat = torch.full((bucket.numel,), float("nan"))  # what was there must not show
    gradients = [None, torch.tensor(7.0), None]
    assert bucket.gather(gradients, flat) is flat
    assert flat.tolist() == [0, 0, 7, 0, 0]


def test_a_gradient_may_lie_in_memory_in_any_order():
    bucket = Bucket([("a", parameter(2, 3))])
    transposed = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).t()
    assert bucket.gather([transposed], bucket.empty()).tolist() == [1, 3, 5, 2, 4, 6]


def test_gather_wants_one_tensor_per_parameter():
    bucket = Bucket([("a", parameter(2)), ("b", parameter(2))])
    with pytest.raises(ValueError, match="zip"):
        bucket.gather([torch.ones(2)], bucket.empty())


def test_views_are_windows_on_the_flat_vector():
    bucket = mixed()
    flat = torch.zeros(bucket.numel)
    views = bucket.views(flat)
    assert [v.shape for v in views] == [p.shape for p in bucket.parameters]
    for i, view in enumerate(views):
        view.fill_(i)
    assert flat.tolist() == [0] * 6 + [1] + [2] * 4 + [3] * 4 + [4] * 3


def test_devices_do_not_share_a_bucket():
    """The meta device stands in for a second GPU."""
    there = torch.nn.Parameter(torch.empty(2, device="meta"))
    buckets = make_buckets([("a", parameter(2)), ("b", there), ("c", parameter(2))], 25.0)
    assert names(buckets) == [["c"], ["b"], ["a"]]
    assert [b.empty().device.type for b in buckets] == ["cpu", "meta", "cpu"]
