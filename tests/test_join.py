"""join() where gradients are averaged: no rank waits for ever, and all end equal."""

import copy

import optimizer_cases as cases
import pytest
import torch
from join_cases import COUNTS, groups_of, joined, loop, make, tensors_of
from optimizer_cases import loss_on, mlp, shard

from decentral import MismatchError
from decentral.communicators import run_local
from decentral.communicators.base import all_reduce_nbytes
from decentral.join import Joining

AVERAGING = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce", "ef-signsgd"),
    ("allreduce", "intsgd"),
    ("intdiana", "intsgd"),
]


# ---- what averages gradients ------------------------------------------------------------------


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name, compressed", AVERAGING)
def test_all_ranks_end_equal_bit_for_bit(name, compressed, counts):
    def rank(comm):
        model = cases.mlp_with_batch_norm()
        adam = torch.optim.AdamW(model.parameters(), 0.05)
        model, opt = make(comm, name, compressed, model, adam)
        joined(opt, model, counts)
        after = tensors_of(model, adam), groups_of(adam), opt.stats()["steps"]
        joined(opt, model, counts[::-1], first=5)  # others are the first to come to the end
        loop(opt, model, 2, first=10)  # and all together
        return after, tensors_of(model, adam)[:-1], opt.stats()["steps"]

    results = run_local(len(counts), rank)
    (tensors, groups, steps), last, _ = results[0]
    assert steps == max(counts) and len(tensors) > 12
    for (own, own_groups, own_steps), end, end_steps in results:
        cases.equal(own, tensors)
        assert own_groups == groups and own_steps == steps and end_steps == 2 * steps + 2
        for a, b, key in zip(end, last, cases.mlp_with_batch_norm().state_dict(), strict=False):
            if "running" not in key:  # BatchNorm's statistics are each rank's own again
                cases.equal([a], [b])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_a_mean_is_over_all_ranks_and_who_is_done_adds_zeros(counts):
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(max(counts)):
        sgd.zero_grad()
        for r, count in enumerate(counts):
            if step < count:
                (loss_on(model, shard(r, len(counts), step)) / len(counts)).backward()
        sgd.step()

    def rank(comm):
        own, opt = make(comm)
        joined(opt, own, counts)
        return cases.parameters(own)

    for parameters in run_local(len(counts), rank):
        cases.close(parameters, cases.parameters(model), tolerance=1e-5)


@pytest.mark.parametrize(("name", "compressed"), [("allreduce", "none"), ("intdiana", "intsgd")])
def test_learning_rates_are_those_of_the_ranks_that_have_batches(name, compressed):
    """The scale of IntDIANA's integers follows from them, and shifts are sent without a batch."""
    counts = (1, 6, 0)

    def rank(comm):
        model, opt = make(comm, name, compressed)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        joined(opt, model, counts, after=schedule.step)
        state = opt.state_dict()["decentral"]["state"]
        return groups_of(opt.optimizer), state.get("h", []), state.get("h_i", [])

    results = run_local(3, rank)
    for groups, h, _ in results:
        assert groups[0]["lr"] == 0.05 * 0.5**6
        cases.equal(h, results[0][1])
        mean = [sum(parts) / 3 for parts in zip(*(h_i for *_, h_i in results), strict=True)]
        cases.close(h, mean, tolerance=1e-5)


def test_a_rate_that_is_a_tensor():
    def rank(comm):
        model = mlp()
        adam = torch.optim.Adam(model.parameters(), torch.tensor(0.05))
        model, opt = make(comm, "allreduce", "intsgd", model, adam)

        def halve():
            opt.param_groups[0]["lr"].mul_(0.5)

        joined(opt, model, (1, 3), after=halve)
        return opt.param_groups[0]["lr"]

    assert [rate.item() for rate in run_local(2, rank)] == [pytest.approx(0.05 / 8)] * 2


def test_gradients_of_the_others_do_not_stay():
    """Many scripts clear them after the step, and so not before the first."""

    def rank(comm):
        model, opt = make(comm)
        joined(opt, model, (0, 3))
        return [p.grad is None or comm.rank == 1 for p in model.parameters()]

    assert all(map(all, run_local(2, rank)))


@pytest.mark.parametrize("name, compressed", [("allreduce", "nuqsgd"), ("ecd-psgd", "nuqsgd")])
def test_a_step_of_several_backward_passes(name, compressed):
    """Of which those inside no_sync() are nobody else's matter."""
    counts = (1, 3, 2)

    def rank(comm):
        model, opt = make(comm, name, compressed)
        with opt.join():
            for step in range(counts[comm.rank]):
                opt.zero_grad()
                with opt.no_sync():
                    loss_on(model, shard(comm.rank, 3, step)).backward()
                    loss_on(model, shard(comm.rank, 3, step + 1)).backward()
                loss_on(model, shard(comm.rank, 3, step + 2)).backward()
                opt.step()
        return cases.parameters(model), opt.stats()["steps"]

    results = run_local(3, rank)
    assert [steps for _, steps in results] == [3] * 3
    if cases.averages_gradients(name):
        for parameters, _ in results:
            cases.equal(parameters, results[0][0])


def test_more_means_than_steps():
    """LBFGS asks for several in each."""

    def rank(comm):
        model = mlp()
        inner = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        model, opt = make(comm, model=model, inner=inner)
        with opt.join():
            for step in range((1, 2)[comm.rank]):
                data = shard(comm.rank, 2, step)

                def closure(data=data):
                    opt.zero_grad()
                    loss = loss_on(model, data)
                    loss.backward()
                    return loss

                opt.step(closure)
        return tensors_of(model, inner), opt.stats()["steps"]

    (tensors, steps), (others, _) = run_local(2, rank)
    assert steps == 2
    cases.equal(tensors, others)


# ---- errors, and what it costs ------------------------------------------------------------------


def test_an_exception_leaves_at_once():
    class MistakeError(Exception):
        pass

    def rank(comm):
        model, opt = make(comm)
        with opt.join():
            loop(opt, model, 3 if comm.rank else 1)
            if comm.rank == 0:
                raise MistakeError

    with pytest.raises(MistakeError):
        run_local(3, rank, timeout=20)


@pytest.mark.parametrize("size", (1, 2))
def test_what_is_refused_inside(size):
    def rank(comm):
        model, opt = make(comm)
        state = opt.state_dict()
        with opt.join():
            with pytest.raises(RuntimeError, match=r"join\(\) inside join\(\).*outside"):
                joined(opt, model, (1, 1))
            with pytest.raises(RuntimeError, match=r"averaged\(\) inside join\(\)"):
                with opt.averaged():
                    pass
            with pytest.raises(RuntimeError, match=r"load_state_dict\(\) inside join\(\)"):
                opt.load_state_dict(state)
            loop(opt, model, 2)
        with opt.averaged():
            return opt.stats()["steps"]

    assert run_local(size, rank) == [2] * size


def test_unequal_numbers_of_steps_before():
    def rank(comm):
        model, opt = make(comm, "d-psgd")
        loop(opt, model, 2 if comm.rank == 1 else 1)
        with opt.join():
            raise AssertionError

    said = cases.messages(3, rank)
    assert said == [said[0]] * 3
    assert said[0][0] is MismatchError
    assert "join(): rank 1 has taken 2 steps before, rank 0 1; expected equally many" in said[0][1]


def test_ranks_that_announce_different_things():
    def rank(comm):
        joining = Joining(comm, step=print, average=print)
        with pytest.raises(RuntimeError, match=r"different things inside join.*average and step"):
            with joining.inside(0):
                joining.announce(("step", "average")[comm.rank])
        return True

    assert run_local(2, rank) == [True, True]


@pytest.mark.parametrize("name", ("allreduce", "d-psgd"))
def test_it_costs_a_small_all_reduce_per_step_and_only_inside(name):
    def rank(comm):
        model, opt = make(comm, name)
        sent = []
        for inside in (False, True, False):
            before = copy.deepcopy(opt.stats())
            joined(opt, model, (2, 2)) if inside else loop(opt, model, 2)
            sent.append(opt.stats()["bytes_sent"] - before["bytes_sent"])
        return sent

    for before, inside, after in run_local(2, rank):
        assert before == after
        # Every step, and the end; and the numbers of steps before, which are pickled.
        agreements = inside - before - 3 * all_reduce_nbytes(2 * 4, 2)
        assert 0 <= agreements < 100
