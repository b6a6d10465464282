"""How far ranks are apart: the estimate, the warning, and exact averages now and then."""

import logging

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, on_ranks
from torch import nn

import decentral.compressors
import decentral.consensus

SIZE = 4


def apart(comm, model, scale=0.1, **options):
    """Part the ranks by gradients of their own, in one step, and return the optimizer."""
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    opt = distributed(model, comm, cases.algorithm("d-psgd"), sgd, **options)
    rng = torch.Generator().manual_seed(comm.rank)
    for p in model.parameters():
        p.grad = scale * torch.randn(p.shape, generator=rng)
    opt.step()
    return opt


def exact(opt):
    with opt.averaged():
        pass
    return opt.stats()["consensus_distance"]


def test_of_a_small_model_it_is_exact():
    def rank(comm):
        opt = apart(comm, cases.mlp(), consensus_every=1)
        return opt.stats()["consensus_distance"], exact(opt)

    for estimate, distance in on_ranks(SIZE, rank):
        assert estimate == pytest.approx(distance, rel=1e-5) and distance > 0.1


def test_of_a_large_one_it_is_near():
    def rank(comm):
        opt = apart(comm, nn.Linear(400, 300), consensus_every=1)
        return opt.stats(), exact(opt)

    results = on_ranks(SIZE, rank)
    for stats, distance in results:
        assert stats["consensus_distance"] == pytest.approx(distance, rel=0.05)
        assert stats["consensus_distance"] == results[0][0]["consensus_distance"]
        # two all-reduces, of a sample and a number, and none of them a step's
        assert 0 < stats["bytes_sent_averaging"] < 2 * 4 * (decentral.consensus._SAMPLE + 1)
        message = decentral.compressors.Identity().new_payload(400 * 300 + 300)
        assert stats["bytes_sent"] == 2 * message.nbytes


@pytest.mark.parametrize("every, expected", [(0, 0), (2, 3), (7, 1), (8, 0)])
def test_it_is_estimated_every_so_many_steps(monkeypatch, every, expected):
    calls = []
    measure = decentral.consensus.Consensus.measure

    def counted(self, flat):
        calls.append(self.comm.rank)
        return measure(self, flat)

    monkeypatch.setattr(decentral.consensus.Consensus, "measure", counted)

    def rank(comm):
        model = cases.mlp()
        opt = distributed(model, comm, cases.algorithm("d-psgd"), consensus_every=every)
        cases.train(opt, model, steps=7)

    on_ranks(2, rank)
    assert calls.count(0) == calls.count(1) == expected


@pytest.mark.parametrize("scale, expected", [(0.01, 0), (100.0, 1)])
def test_a_warning_says_what_to_do_when_ranks_drift_apart(caplog, scale, expected):
    def rank(comm):
        model = cases.mlp()
        opt = apart(comm, model, scale, consensus_every=1)
        opt.zero_grad()
        opt.step()  # is not said again

    with caplog.at_level(logging.WARNING, "decentral"):
        on_ranks(SIZE, rank)
    said = [r.getMessage() for r in caplog.records if "drifted apart" in r.getMessage()]
    assert len(said) == expected
    for text in said:
        assert "expected at most 0.5" in text and "average_every=K" in text


@pytest.mark.parametrize("name", [n for n in cases.gossip() if n != "qg-dsgdm"])
@pytest.mark.parametrize("local_steps", (1, 2))
def test_average_every_makes_ranks_equal_and_training_goes_on(name, local_steps):
    """After the third of three steps; then the next ones go on from there as from the start."""

    def rank(comm):
        model = cases.mlp()
        how = cases.algorithm(name)
        opt = distributed(model, comm, how, average_every=3, local_steps=local_steps)
        cases.train(opt, model, steps=3)
        equal = cases.parameters(model)
        before = opt.stats()
        cases.train(opt, model, steps=2, first=3)
        return equal, before, cases.parameters(model)

    results = on_ranks(3, rank)
    for equal, stats, after in results:
        cases.equal(equal, results[0][0])
        assert stats["consensus_distance"] > 0 and stats["bytes_sent_averaging"] > 0
        assert all(torch.isfinite(p).all() for p in after)
    starts = [r[0] for r in results]
    assert all(not torch.equal(a[0], s[0]) for (_, _, a), s in zip(results, starts, strict=True))
    if local_steps == 2:
        return  # the last two steps belong to two rounds
    # W and the gradients of the next two steps decide, whatever was sent before the average
    fresh = on_ranks(3, lambda comm: fresh_from(comm, name, starts[comm.rank]))
    if name in ("d-psgd", "choco-sgd", "sgp", "dcd-psgd"):  # whose steps do not depend on t
        for (_, _, after), again in zip(results, fresh, strict=True):
            cases.close(after, again, tolerance=1e-5)


def fresh_from(comm, name, start):
    model = cases.mlp()
    with torch.no_grad():
        for p, value in zip(model.parameters(), start, strict=True):
            p.copy_(value)
    opt = distributed(model, comm, cases.algorithm(name))
    cases.train(opt, model, steps=2, first=3)
    return cases.parameters(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"local_steps": 0}, "local_steps must be an integer of at least 1, got 0"),
        ({"local_steps": 1.5}, "local_steps must be an integer of at least 1, got 1.5"),
        ({"average_every": -1}, "average_every must be an integer of at least 0, got -1; 0 is nev"),
        ({"consensus_every": True}, "consensus_every must be an integer of at least 0, got True"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        on_ranks(2, lambda comm: distributed(cases.mlp(), comm, **options))
