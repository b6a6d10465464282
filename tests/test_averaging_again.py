"""Means of gradients that are averaged again before a step, or that no step uses."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, on_ranks
from torch import nn

SIZE, D = 2, 1 << 14


def wide():
    model = nn.Linear(D, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def how(compressed):
    return cases.algorithm("allreduce", compressed)


def backward(model, gradient):
    """Let the weights have this gradient, float32[1, D]."""
    model(gradient).sum().backward()


class Twice(torch.optim.SGD):
    """Looks at the gradient twice before it steps, as LBFGS does."""

    def step(self, closure=None):
        if closure is not None:
            closure()
            closure()
        super().step()


@pytest.mark.parametrize("closure", (False, True))
@pytest.mark.parametrize("compressed", ("terngrad", "nuqsgd", "intsgd"))
def test_what_is_added_to_a_mean_is_rounded_by_other_draws(compressed, closure):
    """Or the mean, which the first draws have made, is rounded the same way once more."""
    x = 0.1 + 0.4 * torch.rand(1, D, generator=torch.Generator().manual_seed(0))
    x[0, ::8] = 1.0  # a block's largest
    gradients = (x, 0 * x)

    def rank(comm):
        model = wide()
        opt = distributed(model, comm, how(compressed), Twice(model.parameters(), 0.1))
        backward(model, x)  # intsgd's first step is exact
        opt.step()
        opt.zero_grad()
        if not closure:
            for gradient in gradients:
                backward(model, gradient)
            return model.weight.grad.clone()
        left = list(gradients)
        opt.step(lambda: backward(model, left.pop(0)))
        return model.weight.grad.clone()

    off = on_ranks(SIZE, rank)[0] - x
    assert float(off.std()) > 0.01
    assert abs(float(off.mean())) < 5 * float(off.std()) / D**0.5


def test_draws_of_a_step_do_not_depend_on_means_that_were_left_out_before():
    """So that a run which is resumed has the same ones."""

    def rank(comm, left_out):
        model, rng = wide(), torch.Generator().manual_seed(comm.rank)
        x = torch.randn(1, D, generator=rng)
        opt = distributed(model, comm, how("nuqsgd"))
        for _ in range(left_out):
            backward(model, x)
            opt.zero_grad()
        backward(model, x)
        return model.weight.grad.clone()

    expected = on_ranks(SIZE, lambda comm: rank(comm, 0))
    cases.equal(on_ranks(SIZE, lambda comm: rank(comm, 2)), expected)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("on its way")


def clear(opt, model, x):
    backward(model, x)
    backward(model, -3 * x)  # as often as it likes
    opt.zero_grad()


def fail(opt, model, x):
    with pytest.raises(RuntimeError, match="on its way"):
        model(Failing.apply(x.requires_grad_())).sum().backward()
    opt.zero_grad()


def overflow(opt, model, x):
    backward(model, x)
    backward(model, x * torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        opt.step()
    opt.zero_grad()


def use(opt, model, x):
    opt.step(lambda: backward(model, x))


@pytest.mark.parametrize("leave_out", (clear, fail, overflow))
def test_residuals_hold_what_used_means_have_missed(leave_out):
    """EF-SignSGD: what parameters moved by and the residuals are the sum of the gradients."""

    def rank(comm):
        model, rng = wide(), torch.Generator().manual_seed(comm.rank)
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        opt = distributed(model, comm, how("ef-signsgd"), sgd)
        total = torch.zeros(1, D)
        for step in range(12):
            x = torch.randn(1, D, generator=rng)
            if step % 2:
                leave_out(opt, model, x)
                continue
            opt.zero_grad()
            use(opt, model, x) if step % 4 else (backward(model, x), opt.step())
            total += x
        (residual,) = opt._algorithm.compressor.state_dict().values()
        return total - residual, -model.weight.detach()

    results = on_ranks(SIZE, rank)
    expected = sum(sent for sent, _ in results) / SIZE
    for _, moved in results:
        torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_who_is_done_in_join_has_sent_its_residual():
    """Its zeros and residual are in a mean that others use, whatever is cleared here."""
    counts = (6, 3)

    def rank(comm):
        model, rng = wide(), torch.Generator().manual_seed(comm.rank)
        opt = distributed(model, comm, how("ef-signsgd"), torch.optim.SGD(model.parameters(), 1.0))
        total = torch.zeros(1, D)
        with opt.join():
            for _ in range(counts[comm.rank]):
                x = torch.randn(1, D, generator=rng)
                opt.zero_grad()
                backward(model, x)
                opt.step()
                total += x
        (residual,) = opt._algorithm.compressor.state_dict().values()
        return total - residual, -model.weight.detach()

    results = on_ranks(len(counts), rank)
    expected = sum(sent for sent, _ in results) / len(counts)
    for _, moved in results:
        torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
