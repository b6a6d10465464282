"""What an exception ends in the middle leaves nothing behind, and what is let go of is gone."""

import gc
import weakref

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, equal, mlp, on_ranks
from torch import nn

from decentral import NotFiniteError

SIZE, BAD = 3, 1
CLEARED = {
    "the wrapper": lambda opt, model: opt.zero_grad(),
    "the model": lambda opt, model: model.zero_grad(),
    "the optimizer": lambda opt, model: opt.optimizer.zero_grad(),
    "zeros": lambda opt, model: opt.zero_grad(set_to_none=False),
}


class Fragile(torch.autograd.Function):
    """The identity, whose backward() runs out of memory where it is told to."""

    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.fails:
            raise MemoryError
        return g, None


def steps(comm, clear, cap, bad, compressed="none"):
    """Return gradients of every step and parameters; backward() of step `bad` fails half-way."""
    model, found = mlp(), []
    how = cases.algorithm("allreduce", compressed)
    opt = distributed(model, comm, how, bucket_cap_mb=cap)
    for step in range(4):
        if step == BAD and bad is None:
            continue
        clear(opt, model)
        x, y = cases.shard(comm.rank, comm.size, step)
        hidden = Fragile.apply(model[:2](x), step == bad)
        try:
            nn.functional.mse_loss(model[2](hidden), y).backward()
        except MemoryError:
            continue
        found += cases.gradients(model)
        opt.step()
    return found, cases.parameters(model)


@pytest.mark.parametrize("cap", (25.0, cases.TINY_MB))
@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "ef-signsgd"))
def test_a_backward_that_fails_is_as_if_it_had_not_been(compressed, clear, cap):
    def rank(bad):
        return lambda comm: steps(comm, clear, cap, bad, compressed)

    for (gradients, after), (expected, whole) in zip(
        on_ranks(SIZE, rank(BAD)), on_ranks(SIZE, rank(None)), strict=True
    ):
        equal(gradients, expected)
        equal(after, whole)


def local_steps(comm, name):
    model = mlp()
    return model, distributed(model, comm, cases.algorithm("allreduce", name), local_steps=2)


@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "intsgd"))
def test_what_the_mean_of_local_steps_makes_infinite_is_no_parameter(compressed):
    def rank(comm):
        model, opt = local_steps(comm, compressed)
        cases.train(opt, model, steps=3)
        before = cases.parameters(model)
        if comm.rank == 0:
            opt.param_groups[0]["lr"] = 1e38
        for p in model.parameters():
            p.grad = torch.full_like(p, 10.0)
        with pytest.raises(NotFiniteError):
            opt.step()
        return before, cases.parameters(model)

    for r, (before, after) in enumerate(on_ranks(SIZE, rank)):
        if r > 0:  # each has its own local step, and nothing of the others'
            cases.close(after, [p - 1 for p in before])


def test_an_interrupted_mean_of_local_steps_leaves_the_parameters():
    def rank(comm):
        model, opt = local_steps(comm, "none")
        cases.train(opt, model, steps=1)
        whole, before = opt._engine.wait, cases.parameters(model)

        def interrupted(*tasks):
            whole(*tasks)
            raise KeyboardInterrupt

        opt._engine.wait = interrupted
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(KeyboardInterrupt):
            opt.step()
        return before, cases.parameters(model)

    for before, after in on_ranks(SIZE, rank):
        cases.close(after, [p - 0.1 for p in before])


def test_a_skipped_mean_is_not_one_of_the_next_step():
    """Not even where the script clears gradients without the wrapper, and a rank has no batch."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, not_finite="skip")
        for step in range(3):
            model.zero_grad()
            if step != 1 or comm.rank != 1:
                scale = float("nan") if step == 0 else 1.0
                (scale * cases.loss_on(model, cases.shard(comm.rank, SIZE, step))).backward()
            opt.step()
        return opt.stats()["skipped"], cases.parameters(model)

    results = on_ranks(SIZE, rank)
    for skipped, after in results:
        assert skipped == 1
        equal(after, results[0][1])


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_a_model_that_is_let_go_of_is_freed(name):
    """Python's collector does not look into the hooks of a parameter."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name))
        cases.train(opt, model, steps=2)
        return weakref.ref(model[0].weight)

    weights = on_ranks(SIZE, rank)
    gc.collect()
    assert [weight() for weight in weights] == [None] * SIZE


def test_without_its_optimizer_a_model_is_a_plain_one():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        cases.train(opt, model, steps=1)
        del opt
        return model

    models = on_ranks(SIZE, rank)
    gc.collect()
    models[0].zero_grad()
    cases.loss_on(models[0], cases.shard(0, SIZE)).backward()  # waits for nobody
    assert all(p.grad is not None for p in models[0].parameters())
