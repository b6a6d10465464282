"""Accumulation, parameters without gradients, groups and frozen parameters."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, on_ranks, shard
from torch import nn

SIZE = 3


def one_step_on(*data):
    """Return the model after plain SGD on the sum of the losses."""
    model = mlp()
    sum(loss_on(model, d) for d in data).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return cases.parameters(model)


@pytest.mark.parametrize("compressed", ("none", "nuqsgd"))
def test_no_sync_only_accumulates(compressed):
    """Nothing travels inside, and the gradients stay this rank's."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("allreduce", compressed))
        before = comm.bytes_sent
        with opt.no_sync():
            for step in range(2):
                loss_on(model, shard(comm.rank, SIZE, step)).backward()
        return cases.gradients(model), comm.bytes_sent - before

    for r, (gradient, sent) in enumerate(on_ranks(SIZE, rank)):
        model = mlp()
        for step in range(2):
            loss_on(model, shard(r, SIZE, step)).backward()
        equal(gradient, cases.gradients(model))
        assert sent == 0


@pytest.mark.parametrize("synced", (True, False))
def test_no_sync_accumulation_is_one_big_batch(synced):
    """Two accumulations, then a backward() outside, or none: step() averages what is there."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        before = comm.bytes_sent
        with opt.no_sync():
            for step in range(2):
                loss_on(model, shard(comm.rank, SIZE, step)).backward()
        if synced:
            loss_on(model, shard(comm.rank, SIZE, 2)).backward()
        opt.step()
        return cases.parameters(model), comm.bytes_sent - before

    expected = one_step_on(*[cases.batch(SIZE, step) for step in range(3 if synced else 2)])
    numel = sum(p.numel() for p in mlp().parameters())
    for result, sent in on_ranks(SIZE, rank):
        close(result, expected)
        assert sent == 2 * (SIZE - 1) * 4 * numel // SIZE  # once for all accumulations


def test_accumulation_without_no_sync_is_right_too():
    """Averaging twice costs bytes, not correctness: the mean of what is averaged is itself."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        for step in range(2):
            loss_on(model, shard(comm.rank, SIZE, step)).backward()
        opt.step()
        return cases.parameters(model)

    for result in on_ranks(SIZE, rank):
        close(result, one_step_on(cases.batch(SIZE, 0), cases.batch(SIZE, 1)))


def test_no_sync_ends_with_its_block_whatever_happens():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        with pytest.raises(KeyError), opt.no_sync():
            raise KeyError
        with opt.no_sync():
            with opt.no_sync():
                pass
            loss_on(model, shard(comm.rank, SIZE)).backward()  # still inside the outer one
        inside = cases.gradients(model)
        opt.zero_grad()
        loss_on(model, shard(comm.rank, SIZE)).backward()
        return inside, cases.gradients(model)

    results = on_ranks(SIZE, rank)
    assert not torch.equal(results[0][0][0], results[1][0][0])
    assert torch.equal(results[0][1][0], results[1][1][0])


class Branches(nn.Module):
    """Two layers, of which a rank uses those that it is told to."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)
        cases.refill(self, 0)

    def forward(self, use, scale=1.0):
        x = torch.arange(4.0) / 4
        return sum(getattr(self, name)(x).sum() for name in use) * scale


def branches_step(size, use, compressed="none", steps=1):
    """Return gradients before, and parameters after, a step with weight decay, on each rank."""

    def rank(comm):
        model = Branches()
        inner = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
        opt = distributed(model, comm, cases.algorithm("allreduce", compressed), inner)
        for _ in range(steps):
            opt.zero_grad()
            model(use[comm.rank], scale=comm.rank + 1.0).backward()
            gradient = cases.gradients(model)
            opt.step()
        return gradient, cases.parameters(model)

    return on_ranks(size, rank)


@pytest.mark.parametrize("compressed", ("none", "nuqsgd"))
def test_a_parameter_that_no_rank_uses_has_no_gradient(compressed):
    """A gradient of zeros would let weight decay, or momentum, move it."""
    for gradient, after in branches_step(2, ["a", "a"], compressed):
        assert gradient[2:] == [None, None] and None not in gradient[:2]
        equal(after[2:], cases.parameters(Branches().b))
        assert not torch.equal(after[0], Branches().a.weight)


def test_a_parameter_that_some_ranks_use_gets_the_mean_on_all():
    x = torch.arange(4.0) / 4
    expected = Branches()
    expected.b.weight.grad = x.expand(2, 4) * (2.0 / 3)  # rank 1 alone uses b, with scale 2
    expected.b.bias.grad = torch.full((2,), 2.0 / 3)
    torch.optim.SGD(expected.b.parameters(), 0.1, weight_decay=0.5).step()
    results = branches_step(3, ["a", "ab", "a"])
    for gradient, after in results:
        close(gradient[2:], [expected.b.weight.grad, expected.b.bias.grad])
        close(after[2:], cases.parameters(expected.b))
        equal(after, results[0][1])


def test_a_mean_of_zero_moves_a_parameter_on_all_ranks_or_on_none():
    """Rank 0 uses b, with a gradient of zero: weight decay must not part the ranks."""

    def rank(comm):
        model = Branches()
        inner = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
        opt = distributed(model, comm, inner=inner)
        (model("a") + (0 * model("b") if comm.rank == 0 else 0)).backward()
        opt.step()
        return cases.parameters(model)

    first, second = on_ranks(2, rank)
    equal(first, second)


def test_a_rank_that_uses_nothing_takes_part_in_step():
    """Its backward() ends without a hook having run; the others must not wait for it for ever."""

    def rank(comm):
        model = Branches()
        opt = distributed(model, comm)
        if comm.rank != 0:
            model("ab").backward()
        opt.step()
        return cases.parameters(model)

    model = Branches()
    (model("ab") * 2 / 3).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    for result in on_ranks(3, rank):
        close(result, cases.parameters(model))


def grouped(model):
    """Return SGD with a rate of its own per layer, and the first layer's bias frozen."""
    model[0].bias.requires_grad_(False)
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.3},
        {"params": list(model[2].parameters()), "lr": 0.01, "momentum": 0.9},
    ]
    return torch.optim.SGD(groups, 0.1, weight_decay=0.1)


@pytest.mark.parametrize("name", ("allreduce", "d-psgd", "ecd-psgd"))
def test_groups_keep_their_options_and_frozen_parameters_stay(name):
    steps = 4 if name == "allreduce" else 1  # the first step of gossip is a local one

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name), grouped(model))
        cases.train(opt, model, steps)
        return cases.parameters(model), opt.stats()["parameters"]

    for r, (result, count) in enumerate(on_ranks(SIZE, rank)):
        model = mlp()
        inner = grouped(model)
        if name == "allreduce":
            cases.train_whole(inner, model, SIZE, steps)
        else:
            loss_on(model, shard(r, SIZE)).backward()
            inner.step()
        close(result, cases.parameters(model))
        equal(result[1], mlp()[0].bias.detach())
        assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_parameter_that_the_optimizer_leaves_out_does_not_travel():
    """It is broadcast at the start and not averaged afterwards, as its owner decides."""

    def rank(comm):
        model = mlp(seed=comm.rank)
        opt = distributed(model, comm, inner=torch.optim.SGD(model[2].parameters(), 0.1))
        loss_on(model, shard(comm.rank, SIZE)).backward()
        left_out = cases.gradients(model[0])
        opt.step()
        return left_out, cases.parameters(model[0]), opt.stats()["parameters"]

    for r, (left_out, after, count) in enumerate(on_ranks(SIZE, rank)):
        model = mlp()
        loss_on(model, shard(r, SIZE)).backward()
        equal(left_out, cases.gradients(model[0]))
        equal(after, cases.parameters(mlp()[0]))
        assert count == 18


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_parameters_of_any_dtype(name, dtype):
    """They travel as float32 and stay what they are."""

    def rank(comm):
        model = mlp().to(dtype)
        opt = distributed(model, comm, cases.algorithm(name))
        x, y = shard(comm.rank, SIZE)
        for _ in range(2):
            opt.zero_grad()
            loss_on(model, (x.to(dtype), y.to(dtype))).backward()
            opt.step()
        with opt.averaged():
            assert {p.dtype for p in model.parameters()} == {dtype}
            return [p.detach().float() for p in model.parameters()]

    x, y = cases.batch(SIZE)
    model = mlp()
    for _ in range(2):
        model.zero_grad()
        loss_on(model, (x, y)).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    for result in on_ranks(SIZE, rank):
        # gossip's average differs from the whole batch's model by the second order of a small step
        close(result, cases.parameters(model), tolerance=0.02)
        assert (result[0] - mlp()[0].weight).abs().max() > 0.02
