"""Before the first step: ranks compare what must agree, and start equal."""

import pytest
import torch

from decentral import startup
from decentral.communicators import run_local
from decentral.startup import MismatchError, broadcast_tensors, check_agreement

SAME = [("depth", 3), ("width", "a")]


def complaints(*lists):
    """Return what check_agreement says on each rank; None where it is content."""

    def rank(comm):
        try:
            check_agreement(comm, lists[comm.rank])
        except MismatchError as error:
            return str(error)
        return None

    return run_local(len(lists), rank)


def assert_all_say(said, expected):
    assert (
        said == [f"{expected}; all ranks must construct the same model, algorithm and options"] * 4
    )


@pytest.mark.parametrize("size", (1, 2, 4))
def test_equal_lists_pass(size):
    assert complaints(*[SAME] * size) == [None] * size
    assert complaints(*[[]] * size) == [None] * size


def test_one_odd_rank_is_named_on_every_rank():
    odd = [("depth", 3), ("width", "b")]
    assert_all_say(
        complaints(SAME, SAME, odd, SAME),
        "ranks do not agree on width: rank 2 got 'b', rank 0 has 'a'",
    )


def test_two_odd_ranks_are_named():
    one, other = [("depth", 4), ("width", "a")], [("depth", 5), ("width", "b")]
    assert_all_say(
        complaints(SAME, one, SAME, other),
        "ranks do not agree on depth: ranks 1, 3 got 4, rank 0 has 3",
    )


def test_when_rank_0_is_the_odd_one_the_others_are_named():
    assert_all_say(
        complaints([("depth", 9)], *[[("depth", 3)]] * 3),
        "ranks do not agree on depth: ranks 1, 2, 3 got 3, rank 0 has 9",
    )


def test_the_first_item_that_differs_is_named_not_the_last():
    odd = [("depth", 3), ("width", "b"), ("height", 2)]
    same = [*SAME, ("height", 1)]
    assert_all_say(
        complaints(same, odd, same, same),
        "ranks do not agree on width: rank 1 got 'b', rank 0 has 'a'",
    )


def test_a_list_that_ends_early():
    assert_all_say(
        complaints(SAME, SAME, SAME, SAME[:1]),
        "ranks do not agree on the next item: rank 3 got nothing more, rank 0 has width",
    )


def test_a_list_that_goes_on():
    longer = [*SAME, ("height", 1)]
    assert_all_say(
        complaints(SAME, longer, SAME, longer),
        "ranks do not agree on the next item: ranks 1, 3 got height, rank 0 has nothing more",
    )


def test_equal_values_of_different_items_differ():
    other = [("depth", 3), ("girth", "a")]
    assert_all_say(
        complaints(SAME, SAME, other, SAME),
        "ranks do not agree on the next item: rank 2 got girth, rank 0 has width",
    )


def special_values(dtype, rank):
    """Return tensors that a detour over float32, or a comparison by value, would spoil."""
    if dtype == torch.bool:
        return [torch.tensor([rank == 0, rank != 0, True])]
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        return [torch.tensor([info.min, info.max, info.max - 1, rank], dtype=dtype)]
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    values = [0.0, -0.0, tiny / 2, huge, float("inf"), float("nan"), 1 / 3, rank]
    return [torch.tensor(values, dtype=dtype)]


def some_tensors(dtype, rank):
    """Return tensors of a dtype that differ on every rank in all that can differ."""
    rng = torch.Generator().manual_seed(1000 + rank)
    shapes = ((), (0,), (1,), (7,), (3, 0, 2), (3, 5))
    random = [torch.randint(0, 100, s, generator=rng).to(dtype) for s in shapes]
    matrix = torch.randint(0, 100, (4, 6), generator=rng).to(dtype)
    return [*special_values(dtype, rank), *random, matrix.t(), matrix[::2, 1]]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)


@pytest.mark.parametrize("root", (0, 2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast_is_exact(dtype, root):
    def rank(comm):
        tensors = some_tensors(dtype, comm.rank)
        broadcast_tensors(comm, tensors, root)
        return [(t.dtype, t.shape, bits(t)) for t in tensors]

    expected = [(t.dtype, t.shape, bits(t)) for t in some_tensors(dtype, root)]
    assert run_local(3, rank) == [expected] * 3


def all_dtypes(rank):
    """Return tensors of all dtypes, mixed, so that one may start at any byte of a message."""
    return [t for dtype in (torch.bool, *DTYPES) for t in some_tensors(dtype, rank)]


@pytest.mark.parametrize("root", (0, 1))
@pytest.mark.parametrize("chunk", (1, 40, 333, 1 << 26))
def test_broadcast_over_the_chunk_limit(chunk, root, monkeypatch):
    """Where a batch ends must not show, be it in the middle or after the last tensor."""
    monkeypatch.setattr(startup, "_CHUNK", chunk)

    def rank(comm):
        tensors = all_dtypes(comm.rank)
        broadcast_tensors(comm, tensors, root)
        return [bits(t) for t in tensors]

    assert run_local(3, rank) == [[bits(t) for t in all_dtypes(root)]] * 3


def test_chunks_bound_the_messages(monkeypatch):
    """More than one message, none longer than the limit and the tensor that crossed it."""
    monkeypatch.setattr(startup, "_CHUNK", 100)

    def rank(comm):
        lengths = []
        broadcast = comm.broadcast
        comm.broadcast = lambda data, root: (lengths.append(data.nbytes), broadcast(data, root))
        broadcast_tensors(comm, [torch.zeros(15) for _ in range(5)])
        return lengths

    assert run_local(2, rank) == [[120, 120, 60]] * 2


def test_broadcast_of_parameters_and_of_nothing():
    """A leaf that requires gradients may be written, and keeps requiring them."""

    def rank(comm):
        parameter = torch.nn.Parameter(torch.full((3,), float(comm.rank)))
        broadcast_tensors(comm, iter([parameter]), root=1)
        broadcast_tensors(comm, [])
        return parameter.tolist(), parameter.requires_grad, parameter.grad_fn

    assert run_local(2, rank) == [([1.0, 1.0, 1.0], True, None)] * 2


def test_alone_nothing_changes():
    def rank(comm):
        tensor = torch.tensor([1.5, float("nan")])
        broadcast_tensors(comm, [tensor])
        return bits(tensor), comm.bytes_sent

    assert run_local(1, rank) == [(bits(torch.tensor([1.5, float("nan")])), 0)]
