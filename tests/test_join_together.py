"""join() with gossip and local steps, and together with what else ranks do in a step."""

import optimizer_cases as cases
import pytest
import torch
from join_cases import COUNTS, joined, loop, make
from optimizer_cases import distributed, loss_on, mlp, shard

import decentral_topologies
from decentral import InconsistentError
from decentral.communicators import run_local


def compressed_by(name):
    """Return a compressor that the gossip algorithm takes, a lossy one if there is."""
    return "nuqsgd" if (name, "nuqsgd") in cases.accepted_pairs() else "none"


GOSSIP = [(name, compressed_by(name)) for name in cases.gossip()]


# ---- gossip, and local steps ------------------------------------------------------------------


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name, compressed", GOSSIP)
def test_with_gossip_who_is_done_goes_on_mixing(name, compressed, counts):
    """Estimates are compared after every step, so none misses a message."""

    def rank(comm):
        model, opt = make(comm, name, compressed, check_every=1, consensus_every=2)
        joined(opt, model, counts)
        steps = opt.stats()["steps"]
        loop(opt, model, 2, first=6)
        with opt.averaged():
            return steps, all(bool(p.isfinite().all()) for p in model.parameters())

    assert run_local(len(counts), rank) == [(max(counts), True)] * len(counts)


@pytest.mark.parametrize("counts", COUNTS[1:], ids=str)
def test_with_gossip_it_is_a_step_without_an_update(counts):
    n = len(counts)
    W = decentral_topologies.Ring(n).mixing_matrix()
    models = [mlp() for _ in counts]
    for step in range(max(counts)):
        before = [cases.parameters(m) for m in models]
        for r, m in enumerate(models):
            m.zero_grad()
            if step < counts[r]:
                loss_on(m, shard(r, n, step)).backward()
        with torch.no_grad():
            for r, m in enumerate(models):
                for k, p in enumerate(m.parameters()):
                    mixed = sum(W[r, j] * before[j][k] for j in range(n))
                    p.copy_(mixed if p.grad is None else mixed - 0.1 * p.grad)

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("d-psgd"))
        joined(opt, model, counts)
        return cases.parameters(model)

    for parameters, m in zip(run_local(n, rank), models, strict=True):
        cases.close(parameters, cases.parameters(m), tolerance=1e-5)


@pytest.mark.parametrize("every", ("average_every", "consensus_every", "check_every"))
def test_what_all_ranks_do_now_and_then(every):
    def rank(comm):
        model, opt = make(comm, "ecd-psgd", "nuqsgd", **{every: 2})
        joined(opt, model, (6, 1, 0))
        return cases.parameters(model), opt.stats()["bytes_sent_averaging"]

    results = run_local(3, rank)
    assert all(nbytes > 0 for _, nbytes in results)
    if every == "average_every":
        for parameters, _ in results:
            cases.equal(parameters, results[0][0])


@pytest.mark.parametrize("name, compressed", [("allreduce", "intsgd"), ("choco-sgd", "nuqsgd")])
@pytest.mark.parametrize("counts", [(6, 1, 4), (5, 0, 2)], ids=str)
def test_local_steps(name, compressed, counts):
    """The steps that others do alone are steps, too, in which nothing moves here."""

    def rank(comm):
        model, opt = make(comm, name, compressed, local_steps=3)
        joined(opt, model, counts)
        loop(opt, model, -max(counts) % 3, first=6)  # to the end of the round
        return cases.parameters(model), opt.stats()["steps"]

    results = run_local(3, rank)
    assert [steps for _, steps in results] == [6] * 3
    if cases.averages_gradients(name):
        for parameters, _ in results:
            cases.equal(parameters, results[0][0])


# ---- together with others -----------------------------------------------------------------------


@pytest.mark.parametrize("not_finite", ("stop", "skip"))
def test_an_overflow_found_by_grad_scaler(not_finite):
    """Skipped by those that have batches; the others have nothing to update."""

    def rank(comm):
        model, opt = make(comm, "allreduce", "nuqsgd", not_finite=not_finite)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with opt.join():
            for step in range((5, 4, 1)[comm.rank]):
                opt.zero_grad()
                loss = loss_on(model, shard(comm.rank, 3, step))
                bad = step == 2 and comm.rank == 1
                scaler.scale(loss * float("inf") if bad else loss).backward()
                scaler.step(opt)
                scaler.update()
        return cases.parameters(model), opt.stats()["steps"], opt.stats()["skipped"]

    results = run_local(3, rank)
    for parameters, *counts in results:
        assert counts == [4, 1]
        assert all(p.isfinite().all() for p in parameters)
        cases.equal(parameters, results[0][0])


@pytest.mark.parametrize("name", ("allreduce", "d-psgd"))
def test_a_gradient_that_is_not_finite_is_skipped(name):
    def rank(comm):
        model, opt = make(comm, name, not_finite="skip")
        with opt.join():
            for step in range((4, 1, 3)[comm.rank]):
                opt.zero_grad()
                loss = loss_on(model, shard(comm.rank, 3, step))
                (loss * float("nan") if step == 2 and comm.rank == 2 else loss).backward()
                opt.step()
        finite = all(bool(p.isfinite().all()) for p in model.parameters())
        return finite, opt.stats()["steps"], opt.stats()["skipped"]

    assert run_local(3, rank) == [(True, 3, 1)] * 3


@pytest.mark.parametrize("spoilt", (False, True))
def test_replicas_are_compared_among_those_that_have_batches(spoilt):
    def rank(comm):
        model, opt = make(comm, check_every=1)

        def spoil():
            if spoilt and comm.rank == 2 and opt.stats()["steps"] == 2:
                model[0].bias.data[1] += 0.5

        try:
            joined(opt, model, (5, 0, 4), after=spoil)
        except InconsistentError as error:
            return str(error)
        return None

    results = run_local(3, rank)
    assert results == [results[0]] * 3
    if spoilt:
        assert "after step 3 the parameters of rank 2 differ from those of rank 0" in results[0]
    else:
        assert results[0] is None
