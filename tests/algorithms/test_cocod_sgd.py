"""CoCoD-SGD: what all ranks have in common, and what it is equal to."""

import optimizer_cases as cases
import pytest
import torch
from torch import nn

import decentral
from decentral.algorithms import DPSGD, CoCoDSGD
from decentral.communicators import run_local
from decentral.compressors import NUQSGD, IntSGD, NotFiniteError

WIDE = 200  # weights of so many rows and columns are large enough to be sharded


def wide(comm, algorithm, **options):
    layers = [nn.Linear(cases.FEATURES, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(WIDE, cases.CLASSES))
    cases.refill(model, 0)
    sgd = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    return model, cases.distributed(model, comm, algorithm, sgd, **options)


def trained(size, make, steps=5, hosts=None, **options):
    """Return every rank's parameters, and its algorithm, whose messages have arrived."""

    def rank(comm):
        algorithm = make()
        model, opt = wide(comm, algorithm, **options)
        cases.train(opt, model, steps)
        opt._settle()
        return torch.cat([p.detach().flatten() for p in model.parameters()]), algorithm

    return run_local(size, rank, hosts=hosts)


@pytest.mark.parametrize("local_steps", (1, 3))
def test_without_rounding_it_is_d_psgd_with_everybody(local_steps):
    options = {"steps": 4 * local_steps, "local_steps": local_steps}
    ours = trained(3, CoCoDSGD, **options)
    theirs = trained(3, lambda: DPSGD("complete"), **options)
    for (x, _), (y, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    assert not torch.equal(ours[0][0], ours[1][0])  # they have not just done the same


@pytest.mark.parametrize(
    ("exchange", "hosts"),
    [
        ("all-gather", None),
        ("reduce-scatter", None),
        ("two-level", [0, 0, 1, 1]),
    ],
    ids=("all-gather", "reduce-scatter", "two-level"),
)
def test_the_sums_are_the_same_on_all_ranks_bit_for_bit(exchange, hosts):
    ranks = trained(4, lambda: CoCoDSGD(NUQSGD(4), exchange), hosts=hosts)
    (first, algorithm), *others = ranks
    assert algorithm.stats()["exchange"] == [exchange] * len(algorithm.S)
    for x, other in others:
        assert not torch.equal(x, first)  # each has its own update already
        for name in algorithm.vectors:
            cases.equal(getattr(other, name), getattr(algorithm, name))


def test_own_update_counts_at_once_and_the_others_a_step_later():
    def rank(comm):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        opt = cases.distributed(model, comm, CoCoDSGD(), sgd)
        seen = []
        for gradient in (-1.0 - comm.rank, 0.0, 0.0):
            model.weight.grad = torch.full((1, 1), gradient)
            opt.step()
            seen.append(model.weight.item())
        return seen

    assert run_local(3, rank) == [[r + 1.0, 2.0, 2.0] for r in range(3)]


def test_it_takes_no_topology_and_no_integers():
    named = decentral.algorithms.from_name("cocod-sgd", "ring", NUQSGD(4))
    assert repr(named) == repr(CoCoDSGD(NUQSGD(4))) and "CoCoDSGD(" in repr(named)
    with pytest.raises(ValueError, match=r"cocod-sgd: needs a compressor whose .*got IntSGD.*use "):
        CoCoDSGD(IntSGD())
    with pytest.raises(ValueError, match=r"exchange must be one of auto, .*got 'gossip'"):
        CoCoDSGD(exchange="gossip")


def test_sums_that_overflow_are_an_error_on_every_rank():
    """Each rank's update is finite; what they add up to is not."""

    def rank(comm):
        model = nn.Linear(4, 4, bias=False)
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        opt = cases.distributed(model, comm, CoCoDSGD(), sgd)
        nn.init.zeros_(model.weight)
        model.weight.grad = torch.full((4, 4), -3e38)
        opt.step()
        with pytest.raises(NotFiniteError, match="the sum over ranks"):
            opt.step()
        return True

    assert run_local(2, rank) == [True, True]
