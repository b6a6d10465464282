"""L-SVRG: its formula, its mean, its coin, and what a resumed run and averaging make of it."""

import io

import pytest
import torch
from torch import nn

import decentral
from decentral.communicators import run_local
from decentral.lsvrg import LSVRG

D, M = 3, 4


class Quadratic(nn.Module):
    """f(x) = mean over samples s of 1/2 (x - c_s)^T H_s (x - c_s), with diagonal H_s."""

    def __init__(self, rank=0):
        super().__init__()
        rng = torch.Generator().manual_seed(7 + rank)
        self.x = nn.Parameter(torch.ones(D))
        self.c = torch.randn(M, D, generator=rng)
        self.H = torch.rand(M, D, generator=rng) + 0.5

    def loss(self, batch):
        return (self.H[batch] * (self.x - self.c[batch]) ** 2).sum(1).mean() / 2

    def full_loss(self):
        return self.loss(torch.arange(M))

    def gradient(self, batch, x):
        return (self.H[batch] * (x - self.c[batch])).mean(0)

    def full_gradient(self, x):
        return self.gradient(torch.arange(M), x)


def make(probability=0.5, seed=0, rank=0):
    model = Quadratic(rank)
    return model, LSVRG(model, model.loss, model.full_loss, probability, seed)


def move(model, step):
    with torch.no_grad():
        model.x.add_(0.1 * (step + 1))


def refreshes(seed, probability=0.5, steps=40):
    model, estimator = make(probability, seed)
    seen = []
    for step in range(steps):
        move(model, step)
        estimator.backward(torch.tensor([0]))
        seen.append(torch.equal(estimator.state_dict()["w"][0], model.x))
    return seen


def test_the_first_gradient_is_the_full_one():
    model, estimator = make()
    loss = estimator.backward(torch.tensor([2]))
    torch.testing.assert_close(loss, model.loss(torch.tensor([2])).detach())
    torch.testing.assert_close(model.x.grad, model.full_gradient(torch.ones(D)))


def test_the_formula_and_that_w_is_x_of_the_step_of_the_coin():
    model, estimator = make(probability=0.3)
    w = model.x.detach().clone()
    for step in range(30):
        x, batch = model.x.detach().clone(), torch.tensor([step % M])
        estimator.backward(batch)
        expected = model.gradient(batch, x) - model.gradient(batch, w) + model.full_gradient(w)
        torch.testing.assert_close(model.x.grad, expected)
        assert torch.equal(model.x, x)
        before, w = w, estimator.state_dict()["w"][0]
        assert torch.equal(w, before) or torch.equal(w, x)
        move(model, step)


def test_the_mean_over_all_batches_is_the_gradient():
    model, estimator = make(probability=1e-9)  # w stays at the start, far from x
    estimator.backward(torch.tensor([0]))
    move(model, 5)
    gradients = []
    for s in range(M):
        estimator.backward(torch.tensor([s]))
        gradients.append(model.x.grad.clone())
    assert not torch.allclose(gradients[0], gradients[1])
    mean = torch.stack(gradients).mean(0)
    torch.testing.assert_close(mean, model.full_gradient(model.x.detach()))


def test_the_coin():
    seen = refreshes(seed=1)
    assert refreshes(seed=1) == seen
    assert refreshes(seed=2) != seen
    assert 8 <= sum(seen) <= 32
    assert all(refreshes(seed=1, probability=1.0))
    assert 3 <= sum(refreshes(seed=3, probability=0.05, steps=400)) <= 45


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_out_of_range(probability):
    with pytest.raises(ValueError, match="probability"):
        make(probability)


def train(estimator, model, steps):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in steps:
        estimator.backward(torch.tensor([step % M]))
        optimizer.step()


@pytest.mark.parametrize("saved_at", [0, 7])
def test_a_resumed_run_is_the_unbroken_one(saved_at):
    unbroken, estimator = make(seed=4)
    train(estimator, unbroken, range(saved_at))
    file = io.BytesIO()
    torch.save({"x": unbroken.state_dict(), "lsvrg": estimator.state_dict()}, file)
    train(estimator, unbroken, range(saved_at, 20))

    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    model, estimator = make(seed=4)
    train(estimator, model, range(3))
    model.load_state_dict(saved["x"])
    estimator.load_state_dict(saved["lsvrg"])
    train(estimator, model, range(saved_at, 20))
    assert torch.equal(model.x, unbroken.x)


def test_the_state_of_another_model():
    model, estimator = make()
    estimator.backward(torch.tensor([0]))
    other = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="other parameters"):
        LSVRG(other, model.loss, model.full_loss, 0.5).load_state_dict(estimator.state_dict())


def test_parameters_without_gradient_and_unused_ones():
    model, _ = make()
    model.unused = nn.Parameter(torch.ones(2))
    model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    LSVRG(model, model.loss, model.full_loss, 0.5).backward(torch.tensor([0]))
    assert torch.equal(model.unused.grad, torch.zeros(2))
    assert model.frozen.grad is None


def test_step_averages_what_backward_leaves():
    """Averaged once, at step(): before it the gradient is the rank's own."""

    def rank(comm):
        model, estimator = make(rank=comm.rank)
        sgd = torch.optim.SGD(model.parameters(), 0.1)
        opt = decentral.DistributedOptimizer(
            sgd, model, decentral.algorithms.from_name("allreduce"), comm
        )
        results = []
        for step in range(8):
            x = model.x.detach().clone()
            estimator.backward(torch.tensor([step % M]))
            own = model.x.grad.clone()
            opt.step()
            results.append((x, own, model.x.detach().clone()))
        return results

    for first, second in zip(*run_local(2, rank), strict=True):
        assert not torch.equal(first[1], second[1])
        assert torch.equal(first[2], second[2])
        torch.testing.assert_close(first[2], first[0] - 0.1 * (first[1] + second[1]) / 2)


def test_ranks_share_the_coin():
    def rank(comm):
        return refreshes(seed=9)

    first, second = run_local(2, rank)
    assert first == second
