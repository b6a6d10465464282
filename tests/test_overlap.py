"""Gradients travel while backward() goes on, and the result is that of averaging at its end."""

import threading

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, on_ranks, shard
from torch import nn

from decentral.communicators import LocalCommunicator

SIZE = 3
AVERAGING = [pair for pair in cases.accepted_pairs() if cases.averages_gradients(pair[0])]


def bare(task):
    """Return what is said of a task, without its parameters' names."""
    return task.what.split(" (")[0]


def watch_submissions(opt):
    """Return the list that the engine's tasks are going to stand in."""
    tasks, submit = [], opt._engine.submit

    def watched(steps, what):
        tasks.append(submit(steps, what))
        return tasks[-1]

    opt._engine.submit = watched
    return tasks


def test_the_last_layers_means_are_complete_before_backward_ends():
    """Seen from a hook of the first layer's gradient, which is the last one."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, bucket_cap_mb=cases.TINY_MB)
        tasks, seen = watch_submissions(opt), []

        def hook(gradient):
            opt._engine.wait(*tasks)  # would never return, if the others' were not sent either
            seen.append([bare(task) for task in tasks])

        model[0].weight.register_hook(hook)
        cases.train(opt, model, steps=2)
        return seen, [bare(task) for task in tasks]

    for seen, at_the_end in on_ranks(SIZE, rank):
        for step, during in enumerate(seen, 1):
            of_this = [what for what in during if what.startswith(f"step {step}, ")]
            # the first layer's bias may come before its weight, or after it
            assert of_this in [[f"step {step}, bucket {b}" for b in range(n)] for n in (2, 3)]
        assert at_the_end == [f"step {s}, bucket {b}" for s in (1, 2) for b in range(4)]


def test_gossip_s_messages_arrive_between_the_steps():
    """Before the next step asks for them: here, during its backward pass."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("ecd-psgd", "nuqsgd"))
        tasks, seen = watch_submissions(opt), []

        def hook(gradient):
            if tasks:
                opt._engine.wait(tasks[-1])
                seen.append(bare(tasks[-1]))

        model[0].weight.register_hook(hook)
        cases.train(opt, model, steps=3)
        return seen

    assert on_ranks(SIZE, rank) == [["step 1, bucket 0", "step 2, bucket 0"]] * SIZE


def trained(name, compressed, at_the_end=False, steps=4, cap=cases.TINY_MB):
    """Return each rank's parameters, averaged during backward() or in step()."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name, compressed), bucket_cap_mb=cap)
        if at_the_end:
            with opt.no_sync():
                cases.train(opt, model, steps)
        else:
            cases.train(opt, model, steps)
        return cases.parameters(model)

    return on_ranks(SIZE, rank)


@pytest.mark.parametrize("name, compressed", AVERAGING)
def test_equals_averaging_at_the_end(name, compressed):
    equal(trained(name, compressed), trained(name, compressed, at_the_end=True))


@pytest.mark.parametrize(
    "name, compressed", [*AVERAGING, ("d-psgd", "none"), ("ecd-psgd", "nuqsgd")]
)
def test_an_mpi_that_takes_calls_of_one_thread_only_gives_the_same(name, compressed, monkeypatch):
    expected = trained(name, compressed)
    monkeypatch.setattr(LocalCommunicator, "threaded", False)
    equal(trained(name, compressed), expected)


class Chain(nn.Module):
    """Square layers a, b and c, which forward() calls in the order that it is told."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        cases.refill(self, 0)

    def forward(self, x, order):
        for name in order:
            x = torch.tanh(getattr(self, name)(x))
        return x.square().sum()


@pytest.mark.parametrize("orders", (["cba"] * 3, ["abc", "cba", "bca"], ["abc", "cb", "a"]))
@pytest.mark.parametrize("compressed", ("none", "intsgd", "nuqsgd"))
def test_buckets_go_in_one_order_whatever_backward_s(compressed, orders):
    """Ranks may use layers in orders of their own, or not at all, and must not mix them up."""
    x = torch.linspace(-1, 1, 8).view(2, 4)

    def rank(comm):
        model = Chain()
        how = cases.algorithm("allreduce", compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
        tasks = watch_submissions(opt)
        model(x, orders[comm.rank]).backward()
        return cases.gradients(model), [bare(task) for task in tasks]

    model = Chain()
    (sum(model(x, order) for order in orders) / len(orders)).backward()
    for gradients, submitted in on_ranks(len(orders), rank):
        assert submitted == [f"step 1, bucket {b}" for b in range(6)]
        if compressed == "nuqsgd":
            for mean, exact in zip(gradients, cases.gradients(model), strict=True):
                assert (mean - exact).norm() <= 0.5 * exact.norm()
        else:  # the first step of intsgd is exact
            close(gradients, cases.gradients(model))


@pytest.mark.parametrize("name, compressed", [("allreduce", "none"), ("d-psgd", "none")])
def test_a_parameter_that_is_cut_in_several_buckets_is_trained_as_a_whole(name, compressed):
    """A layer of 5000 weights in buckets of 1024, 2048 and 25 MiB: 5, 3 and 1."""

    def run(cap):
        def rank(comm):
            model = cases.refill(nn.Linear(500, 10), 0)
            opt = distributed(model, comm, cases.algorithm(name), bucket_cap_mb=cap)
            rng = torch.Generator().manual_seed(comm.rank)
            for _ in range(3):
                opt.zero_grad()
                model(torch.randn(2, 500, generator=rng)).square().mean().backward()
                opt.step()
            return cases.parameters(model), len(opt.state_dict()["decentral"]["buckets"])

        return on_ranks(SIZE, rank)

    whole, five, three = run(25.0), run(1024 * 4 / 2**20), run(2048 * 4 / 2**20)
    assert [count for _, count in whole + five + three] == [1] * 3 + [6] * 3 + [4] * 3
    for (expected, _), (fives, _), (threes, _) in zip(whole, five, three, strict=True):
        equal(fives, expected)
        equal(threes, expected)


def test_backward_that_raises_leaves_nothing_to_the_next_one():
    """What had been collected, or sent, belongs to no step; all ranks met the exception."""
    use = ["ab", "b", "b"]

    def rank(comm, cap):
        model = Chain()
        opt = distributed(model, comm, bucket_cap_mb=cap)
        x = torch.linspace(-1, 1, 4)

        def hook(gradient):
            raise KeyError("my hook")

        handle = model.a.weight.register_hook(hook)
        with pytest.raises(KeyError):
            model(x, "abc").backward()
        handle.remove()
        opt.zero_grad()
        model(x, use[comm.rank]).backward()
        gradients = cases.gradients(model)
        opt.step()
        return gradients

    model = Chain()
    (sum(model(torch.linspace(-1, 1, 4), order) for order in use) / 3).backward()
    for cap in (25.0, cases.TINY_MB):
        for gradients in on_ranks(SIZE, lambda comm, cap=cap: rank(comm, cap)):
            assert gradients[4:] == [None, None]  # of c, which nobody used
            close(gradients[:4], cases.gradients(model)[:4])


@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "intsgd"))
def test_a_model_that_is_wrapped_again_belongs_to_the_second_optimizer_alone(compressed):
    """As for another phase of training: the first one's hooks must not average too."""

    def run(fresh_model):
        def rank(comm):
            model = mlp()
            cases.train(
                distributed(model, comm, cases.algorithm("allreduce", compressed)), model, 2
            )
            if fresh_model:
                trained = model.state_dict()
                model = mlp()
                model.load_state_dict(trained)
            how = cases.algorithm("allreduce", compressed)
            opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
            cases.train(opt, model, 4, first=2)
            return cases.parameters(model)

        return on_ranks(SIZE, rank)

    again, expected = run(False), run(True)
    for parameters in again:
        equal(parameters, again[0])
    equal(again, expected)


def test_shards_differ():
    """So that the comparisons above compare something."""
    model = mlp()
    losses = [float(loss_on(model, shard(r, SIZE)).detach()) for r in range(SIZE)]
    assert len(set(losses)) == SIZE


@pytest.mark.parametrize("compressed", ("none", "nuqsgd"))
def test_with_gossip_the_local_step_does_not_wait_for_messages(compressed):
    """They are collected just before a bucket is mixed; a neighbor may be as late as that."""
    computed = threading.Event()

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("ecd-psgd", compressed))

        def closure():
            if comm.rank == 0 and opt.stats()["steps"] == 1:
                computed.set()
            return loss_on(model, shard(comm.rank, SIZE))

        if comm.rank == 1:
            assert computed.wait(30)  # it has not yet sent anything
        for _ in range(3):
            opt.step(closure)
        return opt.stats()["steps"]

    assert on_ranks(SIZE, rank) == [3] * SIZE
