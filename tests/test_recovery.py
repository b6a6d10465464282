"""A rank dies, and the others go on: every algorithm, wherever they learn of it."""

import threading

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, loss_on, mlp, on_ranks, shard

import decentral
from decentral.communicators import LocalDeath

SIZE, STEPS, DIES_AT = 4, 12, 5


def until(opt, model, steps, dies=lambda step: False):
    """Train until so many steps are done, with whoever is left; return when ranks were lost."""
    lost = []
    while (step := opt.stats()["steps"]) < steps:
        comm = opt.communicator
        try:
            if dies(step):
                raise LocalDeath
            opt.zero_grad()
            loss_on(model, shard(comm.rank, comm.size, step)).backward()
            opt.step()
        except decentral.RankLostError:
            lost.append(opt.recover())
    return lost


def with_a_death(how, victims=(2,), size=SIZE, **options):
    """Return (parameters, stats, losses, communicator's size) of every rank, None of the dead."""
    when = dict(victims) if isinstance(victims, dict) else dict.fromkeys(victims, DIES_AT)

    def rank(comm):
        model, number = mlp(), comm.rank
        opt = distributed(model, comm, how(), **options)
        lost = until(opt, model, STEPS, lambda step: step >= when.get(number, STEPS))
        with opt.averaged():
            averaged = cases.parameters(model)
        return cases.parameters(model), averaged, opt.stats(), lost, opt.communicator.size

    return on_ranks(size, rank)


def check(results, victims=(2,)):
    left = [r for r in results if r is not None]
    assert len(left) == len(results) - len(victims)
    for own, averaged, stats, lost, size in left:
        assert stats["steps"] == STEPS and size == len(left)
        assert lost[-1] == tuple(sorted(victims))
        assert all(p.isfinite().all() for p in own)
        cases.equal(averaged, left[0][1])
    assert any(stats["bytes_sent_recovery"] > 0 for _, _, stats, *_ in left) or len(left) == 1
    return left


@pytest.mark.parametrize(("name", "compressed"), cases.accepted_pairs())
def test_survivors_go_on(name, compressed):
    left = check(with_a_death(lambda: cases.algorithm(name, compressed)))
    if cases.averages_gradients(name):
        for own, *_ in left:
            cases.equal(own, left[0][0])


@pytest.mark.parametrize("name", ["allreduce", "ecd-psgd"])
@pytest.mark.parametrize("victims", [(0,), (1, 3), {0: 3, 2: 7}, (0, 1, 3)], ids=str)
def test_whoever_dies(name, victims):
    check(with_a_death(lambda: cases.algorithm(name, "nuqsgd"), victims), tuple(victims))


@pytest.mark.parametrize("name", ["allreduce", "d-psgd"])
def test_in_the_middle_of_local_steps(name):
    check(with_a_death(lambda: cases.algorithm(name), local_steps=3))


def test_a_replica_that_is_a_step_ahead_is_everyones():
    all_there = threading.Barrier(SIZE)

    def rank(comm):
        model = mlp(comm.rank)
        opt = distributed(model, comm, inner=torch.optim.Adam(model.parameters(), 0.01))
        cases.train(opt, model, 2)
        all_there.wait()
        if comm.rank == 3:
            raise LocalDeath
        if comm.rank == 1:  # as if the others' last mean had not arrived
            opt._steps += 1
            with torch.no_grad():
                model[0].bias += 1
                opt.optimizer.state[model[0].bias]["exp_avg"] += 1
        opt.recover()
        state = opt.optimizer.state[model[0].bias]["exp_avg"]
        return opt.stats()["steps"], cases.parameters(model), state.clone()

    *survivors, dead = on_ranks(SIZE, rank)
    assert dead is None and [s for s, *_ in survivors] == [3, 3, 3]
    for _, parameters, moment in survivors:
        cases.equal(parameters, survivors[1][1])
        cases.equal([moment], [survivors[1][2]])


def test_gossip_goes_on_from_the_mean():
    all_there = threading.Barrier(SIZE)

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("ecd-psgd", "nuqsgd"))
        cases.train(opt, model, 4)
        opt.state_dict()  # until messages have arrived
        all_there.wait()
        if comm.rank == 0:
            raise LocalDeath
        own = cases.parameters(model)
        opt.recover()
        return own, cases.parameters(model)

    _, *survivors = on_ranks(SIZE, rank)
    mean = [sum(parts) / 3 for parts in zip(*(own for own, _ in survivors), strict=True)]
    for _, after in survivors:
        cases.close(after, mean)
        cases.equal(after, survivors[0][1])


def test_a_topology_that_does_not_exist_for_the_survivors_becomes_a_ring(caplog):
    results = with_a_death(lambda: cases.algorithm("d-psgd", topology="hypercube"))
    check(results)
    assert "goes on over a ring" in caplog.text


def test_a_topology_is_laid_anew():
    all_there = threading.Barrier(6)  # whoever dies before is missed while they start

    def rank(comm):
        opt = distributed(mlp(), comm, cases.algorithm("d-psgd", topology="torus"))
        all_there.wait()
        if comm.rank == 5:
            raise LocalDeath
        opt.recover()
        return repr(opt._algorithm.topology)

    results = on_ranks(6, rank)
    assert results.count(None) == 1 and "Torus" in results[0] and "5" in results[0]


def test_the_death_is_noticed_while_averaging_too():
    all_there = threading.Barrier(3)

    def rank(comm):
        model = mlp(comm.rank)
        opt = distributed(model, comm, cases.algorithm("d-psgd"))
        all_there.wait()
        if comm.rank == 1:
            raise LocalDeath
        before = cases.parameters(model)
        with pytest.raises(decentral.RankLostError, match="rank 1 has died"):
            with opt.averaged():
                pass
        cases.equal(cases.parameters(model), before)
        return opt.recover()

    assert on_ranks(3, rank) == [(1,), None, (1,)]


def test_where_nobody_dies_nothing_changes():
    def rank(comm):
        with pytest.raises(RuntimeError, match="cannot go on without a rank"):
            decentral.communicators.Communicator.survivors(comm)
        return True

    assert all(on_ranks(2, rank))


@pytest.mark.parametrize("name", ["allreduce", "ecd-psgd"])
def test_a_death_inside_join_is_recovered_from_outside(name):
    """Rank 0 has left its loop by then and follows, rank 2 dies, 1 and 3 are in the loop."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name, "nuqsgd"))
        number = comm.rank
        with pytest.raises(decentral.RankLostError), opt.join():
            for step in range(2 + 8 * number):
                if number == 2 and step == 5:
                    raise LocalDeath
                try:
                    cases.train(opt, model, 1, step)
                except decentral.RankLostError:
                    with pytest.raises(RuntimeError, match=r"recover\(\) inside join\(\)"):
                        opt.recover()
                    raise
        assert opt.recover() == (2,)
        with opt.join():
            cases.train(opt, model, 3 + opt.communicator.rank)
        with opt.averaged():
            return opt.stats()["steps"], cases.parameters(model)

    left = [r for r in on_ranks(SIZE, rank) if r is not None]
    assert len(left) == SIZE - 1 and len({steps for steps, _ in left}) == 1
    for _, parameters in left:
        cases.equal(parameters, left[0][1])
