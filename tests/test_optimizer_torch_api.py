"""A true torch Optimizer: closures, schedulers, GradScaler, hooks, and torch's own checks."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, on_ranks, shard
from torch.optim import lr_scheduler

import decentral

SIZE = 3
ALGORITHMS = decentral.algorithms.available()


@pytest.fixture(scope="module", autouse=True)
def _torch_patches_the_class_once():
    """Torch wraps step() of a class when the first object is made, which threads may do twice."""
    on_ranks(1, lambda comm: distributed(mlp(), comm))


def closure_for(model, opt, data):
    def closure():
        opt.zero_grad()
        loss = loss_on(model, data)
        loss.backward()
        return loss

    return closure


def test_a_closure_s_gradients_are_averaged_and_its_loss_returned():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        data = shard(comm.rank, SIZE)
        losses = [float(opt.step(closure_for(model, opt, data)).detach()) for _ in range(3)]
        return losses, cases.parameters(model)

    model = mlp()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        inner.step(closure_for(model, inner, cases.batch(SIZE)))
    results = on_ranks(SIZE, rank)
    for losses, after in results:
        close(after, cases.parameters(model))
        assert losses == sorted(losses, reverse=True)
    with torch.no_grad():
        first = [float(loss_on(mlp(), shard(r, SIZE))) for r in range(SIZE)]
    assert [losses[0] for losses, _ in results] == pytest.approx(first)


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)


def test_lbfgs_calls_its_closure_many_times():
    """Each evaluation averages, so all ranks follow the whole batch's curvature.

    The closure returns the whole batch's loss, since LBFGS decides by it when to stop.
    """

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, inner=lbfgs(model))
        calls = []

        def closure():
            opt.zero_grad()
            loss_on(model, shard(comm.rank, SIZE)).backward()
            with torch.no_grad():
                calls.append(float(loss_on(model, cases.batch(SIZE))))
            return torch.tensor(calls[-1])

        for _ in range(2):
            opt.step(closure)
        return cases.parameters(model), calls

    model = mlp()
    inner = lbfgs(model)
    for _ in range(2):
        inner.step(closure_for(model, inner, cases.batch(SIZE)))
    results = on_ranks(SIZE, rank)
    for after, calls in results:
        assert len(calls) >= 4 and calls[-1] < 0.9 * calls[0]
        equal(after, results[0][0])
        close(after, cases.parameters(model), tolerance=1e-4)


def test_a_closure_that_only_accumulates_is_averaged_before_the_step():
    """Inside no_sync() no hook averages, so step() has to, after the closure and not before."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        closure = closure_for(model, opt, shard(comm.rank, SIZE))
        with opt.no_sync():
            opt.step(closure)
        return cases.parameters(model)

    model = mlp()
    expected = cases.train_whole(torch.optim.SGD(model.parameters(), 0.1), model, SIZE, steps=1)
    for result in on_ranks(SIZE, rank):
        close(result, expected)


def test_a_closure_may_set_gradients_by_hand():
    """Without backward() no hook tells that there are new gradients; each call has some."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, inner=lbfgs(model))

        def closure():
            loss = loss_on(model, shard(comm.rank, SIZE))
            found = torch.autograd.grad(loss, list(model.parameters()))
            for p, gradient in zip(model.parameters(), found, strict=True):
                p.grad = gradient
            return loss.detach()

        opt.step(closure)
        return cases.parameters(model)

    results = on_ranks(SIZE, rank)
    for result in results:
        equal(result, results[0])


@pytest.mark.parametrize("name", ("d-psgd", "ecd-psgd"))
def test_gossip_takes_closures(name):
    def run(with_closure):
        def rank(comm):
            model = mlp()
            opt = distributed(model, comm, cases.algorithm(name))
            for step in range(3):
                closure = closure_for(model, opt, shard(comm.rank, SIZE, step))
                if with_closure:
                    opt.step(closure)
                else:
                    closure()
                    opt.step()
            return cases.parameters(model)

        return on_ranks(SIZE, rank)

    equal(run(True), run(False))


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("family", SCHEDULERS)
def test_schedulers_act_on_the_inner_optimizer(family, name):
    """They behave as on a plain one: the same rates, and no warning, which would be an error."""

    def rates(opt, inner, model, data):
        scheduler = SCHEDULERS[family](opt)
        seen = []
        for _ in range(5):
            opt.zero_grad()
            loss_on(model, data).backward()
            opt.step()
            scheduler.step(*([1.0] if family == "ReduceLROnPlateau" else []))
            seen.append((inner.param_groups[0]["lr"], inner.param_groups[0]["momentum"]))
        return seen

    def rank(comm):
        model = mlp()
        inner = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        opt = distributed(model, comm, cases.algorithm(name), inner)
        assert opt.param_groups is inner.param_groups and opt.state is inner.state
        return rates(opt, inner, model, shard(comm.rank, 2))

    model = mlp()
    plain = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    expected = rates(plain, plain, model, cases.batch(1))
    assert len(set(expected)) > 1
    assert on_ranks(2, rank) == [expected] * 2


def test_a_rate_that_a_scheduler_set_is_the_one_that_is_used():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.0)  # after the first step nothing moves
        cases.train(opt, model, steps=1)
        first = cases.parameters(model)
        scheduler.step()
        cases.train(opt, model, steps=1)
        return first, cases.parameters(model)

    for first, second in on_ranks(2, rank):
        equal(second, first)
        assert not torch.equal(first[0], mlp()[0].weight)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("size", (1, 2))
def test_step_hooks_run_once_per_step(size, name):
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name))
        calls = []
        opt.register_step_pre_hook(lambda who, args, kwargs: calls.append(("pre", who is opt)))
        handle = opt.register_step_post_hook(
            lambda who, args, kwargs: calls.append(("post", who is opt))
        )
        cases.train(opt, model, steps=2)
        handle.remove()
        cases.train(opt, model, steps=1)
        return calls

    pair = [("pre", True), ("post", True)]
    assert on_ranks(size, rank) == [[*pair, *pair, ("pre", True)]] * size


def test_a_step_hook_of_the_inner_optimizer_still_runs():
    def rank(comm):
        model = mlp()
        inner = torch.optim.SGD(model.parameters(), 0.1)
        opt, calls = distributed(model, comm, inner=inner), []
        inner.register_step_post_hook(lambda *args: calls.append(1))
        cases.train(opt, model, steps=2)
        return calls

    assert on_ranks(2, rank) == [[1, 1]] * 2


def test_zero_grad():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        loss_on(model, shard(comm.rank, 2)).backward()
        assert all(g.abs().sum() > 0 for g in cases.gradients(model))
        opt.zero_grad(set_to_none=False)
        assert [float(g.abs().sum()) for g in cases.gradients(model)] == [0.0] * 4
        opt.zero_grad()
        return cases.gradients(model)

    assert on_ranks(2, rank) == [[None] * 4] * 2


def test_it_is_an_optimizer():
    def rank(comm):
        model = mlp()
        inner = torch.optim.Adam(model.parameters(), 0.1, betas=(0.5, 0.6))
        opt = distributed(model, comm, inner=inner)
        assert isinstance(opt, torch.optim.Optimizer)
        assert opt.defaults["betas"] == (0.5, 0.6)
        assert "lr: 0.1" in repr(opt)
        opt.param_groups[0]["lr"] = 0.2
        return inner.param_groups[0]["lr"]

    assert on_ranks(1, rank) == [0.2]


def test_add_param_group_is_refused():
    def rank(comm):
        opt = distributed(mlp(), comm)
        with pytest.raises(RuntimeError, match="add the group to the optimizer before"):
            opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
        return len(opt.param_groups)

    assert on_ranks(1, rank) == [1]
