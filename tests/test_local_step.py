"""What gossip's loop does of the optimizer's step is, to the bit, what the optimizer does."""

import copy

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, on_ranks
from torch import nn

import decentral
from decentral.buckets import Buckets
from decentral.local_step import LocalStep, formulas_of
from decentral_kernels.elementwise import Applied

SIZE, STEPS = 3, 4
CAP_MB = 0.02  # weights of 100 x 100 fill two buckets alone, the rest shares one
KINDS = {
    "plain": {},
    "decay": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
IN_PARTS = [n for n in cases.gossip() if decentral.algorithms.from_name(n).x_new_at is not None]


def model_of(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 1))


class Another(torch.optim.SGD):
    """The same, but not known to be."""


def trained(kind, name, options, compressor="nuqsgd", prepare=lambda optimizer: None):
    """Return every rank's parameters and momenta after some steps of an optimizer."""

    def rank(comm):
        model = copy.deepcopy(MODEL)
        inner = kind(model.parameters(), 0.05, **options)
        prepare(inner)
        how = decentral.algorithms.from_name(
            name, compressor=decentral.compressors.from_name(compressor)
        )
        opt = distributed(model, comm, how, inner=inner, bucket_cap_mb=CAP_MB)
        draw = torch.Generator().manual_seed(comm.rank)
        for _ in range(STEPS):
            opt.zero_grad()
            model(torch.randn(8, 100, generator=draw)).square().mean().backward()
            grads = [p.grad for p in model.parameters()]
            opt.step()
            assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        state = [inner.state[p].get("momentum_buffer") for p in model.parameters()]
        return cases.parameters(model), [s for s in state if s is not None]

    return on_ranks(SIZE, rank)


MODEL = model_of()


@pytest.fixture
def left(monkeypatch):
    """Return the formulas that were left to the loop, as they are applied."""
    found, after = [], Applied.after

    def noting(made, first, at):
        found.append(first.formula)
        return after(made, first, at)

    monkeypatch.setattr(Applied, "after", noting)
    return found


def assert_same(one, other):
    for (p, state), (q, expected) in zip(one, other, strict=True):
        assert len(state) == len(expected)
        for got, want in zip([*p, *state], [*q, *expected], strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("compressor", ["nuqsgd", "none"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", IN_PARTS)
def test_equals_the_optimizer_s_own_step(name, options, compressor, left):
    got = trained(torch.optim.SGD, name, options, compressor)
    # In the first step there is no momentum yet, and the optimizer makes it itself.
    steps = STEPS - bool(options.get("momentum"))
    assert len(left) == SIZE * steps * 2  # buckets
    left.clear()
    assert_same(got, trained(Another, name, options, compressor))
    assert not left


def test_there_are_algorithms_that_take_it():
    assert {"ecd-psgd", "dcd-psgd"} <= set(IN_PARTS)


def hooked(optimizer):
    optimizer.register_step_pre_hook(lambda *_: None)


def scheduled(optimizer):
    torch.optim.lr_scheduler.StepLR(optimizer, 100)


@pytest.mark.parametrize("prepare", [hooked, scheduled])
def test_whoever_looks_on_sees_the_gradients(prepare, left):
    assert_same(
        trained(torch.optim.SGD, "ecd-psgd", {}, prepare=prepare),
        trained(Another, "ecd-psgd", {}),
    )
    assert not left


@pytest.mark.parametrize("options", [{"maximize": True}, {"maximize": True, "momentum": 0.5}])
def test_what_the_formulas_are_not_for(options, left):
    trained(torch.optim.SGD, "ecd-psgd", options)
    assert not left


def split(inner, model, closure=None):
    """Return what LocalStep leaves, by bucket, where parameters live in a flat vector."""
    buckets = Buckets(model.named_parameters(), CAP_MB)
    flat = buckets.empty()
    buckets.adopt(flat)
    views, vectors = buckets.views(flat), [b.of(flat) for b in buckets]
    return LocalStep(inner, closure).but_for_rest(buckets, views, vectors)


def gradients(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)


def test_a_closure_is_the_optimizer_s():
    model = model_of()
    result, rest = split(torch.optim.SGD(model.parameters(), 0.1), model, lambda: 5)
    assert result == 5 and not rest


def test_a_parameter_without_a_gradient_is_passed_by():
    model = model_of()
    gradients(model)
    model[0].weight.grad = None
    _, rest = split(torch.optim.SGD(model.parameters(), 0.1), model)
    assert not rest


def test_gradients_in_another_order_of_memory_are_the_optimizer_s():
    model = model_of()
    gradients(model)
    model[0].weight.grad = torch.ones(100, 100).t()
    before = model[0].weight.detach().clone()
    _, rest = split(torch.optim.SGD(model.parameters(), 0.1), model)
    assert not rest
    assert torch.allclose(model[0].weight, before - 0.1)


def test_an_error_elsewhere_costs_no_bucket_its_step():
    """The update of a weight's first half fails; the other half's step had been left to its own."""

    def rank(comm):
        model = copy.deepcopy(MODEL)
        how = decentral.algorithms.from_name(
            "ecd-psgd", compressor=decentral.compressors.from_name("nuqsgd")
        )
        inner = torch.optim.SGD(model.parameters(), 0.125)
        opt = distributed(model, comm, how, inner=inner, bucket_cap_mb=CAP_MB)
        gradients(model)
        model[0].weight.grad[0, 0] = float("nan")
        before = cases.parameters(model)
        with pytest.raises(decentral.NotFiniteError, match="weight"):
            opt.step()
        halves = [p[-40:] - 0.125 for p in before]
        return all(torch.equal(p[-40:], h) for p, h in zip(model.parameters(), halves, strict=True))

    assert on_ranks(2, rank) == [True, True]


def test_which_formulas_are_compiled_beforehand():
    parameters = model_of().parameters
    assert len(formulas_of(torch.optim.SGD(parameters(), 0.1))) == 1
    assert not formulas_of(torch.optim.Adam(parameters(), 0.1))
    groups = [
        {"params": [p], "momentum": m} for p, m in zip(parameters(), (0, 0.9, 0, 0.9), strict=True)
    ]
    assert len(formulas_of(torch.optim.SGD(groups, 0.1))) == 2
