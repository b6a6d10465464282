"""local_steps: ranks go alone between two exchanges, with gossip and with an all-reduce."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, loss_on, mlp, on_ranks, shard

import decentral_topologies

SIZE = 3


def trained(name, compressed="none", steps=6, local_steps=3, **options):
    def rank(comm):
        model = mlp()
        how = cases.algorithm(name, compressed)
        opt = distributed(model, comm, how, local_steps=local_steps, **options)
        cases.train(opt, model, steps)
        return cases.parameters(model), opt.stats()

    return on_ranks(SIZE, rank)


def by_definition(steps, local_steps, mix):
    """Return every rank's parameters, with mix(before, after) after each round of SGD steps."""
    models = [mlp() for _ in range(SIZE)]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in models]
    before = [cases.parameters(m) for m in models]
    for step in range(steps):
        for r, (m, sgd) in enumerate(zip(models, optimizers, strict=True)):
            sgd.zero_grad()
            loss_on(m, shard(r, SIZE, step)).backward()
            sgd.step()
        if (step + 1) % local_steps == 0:
            after = mix(before, [cases.parameters(m) for m in models])
            with torch.no_grad():
                for m, values in zip(models, after, strict=True):
                    for p, value in zip(m.parameters(), values, strict=True):
                        p.copy_(value)
            before = after
    return [cases.parameters(m) for m in models]


def mean_of_all(before, after):
    means = [sum(parts) / SIZE for parts in zip(*after, strict=True)]
    return [means] * SIZE


def gossip(before, after):
    """D-PSGD: W x + what the rank's steps have added."""
    W = decentral_topologies.Ring(SIZE).mixing_matrix()
    columns = list(zip(*before, strict=True))
    return [
        [
            sum(W[i, j] * x[j] for j in range(SIZE)) + new - x[i]
            for x, new in zip(columns, own, strict=True)
        ]
        for i, own in enumerate(after)
    ]


@pytest.mark.parametrize("steps", (6, 7, 8))
@pytest.mark.parametrize("name, mix", [("allreduce", mean_of_all), ("d-psgd", gossip)])
def test_by_definition(name, mix, steps):
    expected = by_definition(steps, 3, mix)
    for (actual, _), wanted in zip(trained(name, steps=steps), expected, strict=True):
        cases.close(actual, wanted, tolerance=1e-5)


@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_bytes_are_those_of_the_exchanges(name, compressed):
    once = trained(name, compressed, steps=2, local_steps=1)
    seldom = trained(name, compressed, steps=7, local_steps=3)
    for (_, one), (_, other) in zip(once, seldom, strict=True):
        assert one["bytes_sent"] == other["bytes_sent"] > 0
        assert other["steps"] == 7


@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "qsgdinf", "intsgd", "ef-signsgd"))
def test_after_an_averaging_all_ranks_are_equal_bit_for_bit(compressed):
    results = trained("allreduce", compressed)
    for parameters, _ in results:
        cases.equal(parameters, results[0][0])
    apart = trained("allreduce", compressed, steps=7)
    assert not torch.equal(apart[0][0][0], apart[1][0][0])


@pytest.mark.parametrize("name", ("d-psgd", "ecd-psgd", "choco-sgd", "allreduce"))
@pytest.mark.parametrize("saved_at", (4, 6))
def test_a_resumed_run_goes_on_as_the_unbroken_one(name, saved_at):
    compressed = "none" if name == "d-psgd" else "nuqsgd"

    def make(comm):
        model = mlp()
        how = cases.algorithm(name, compressed)
        return model, distributed(model, comm, how, local_steps=3)

    def rank(comm):
        model, opt = make(comm)
        cases.train(opt, model, saved_at)
        state, values = opt.state_dict(), cases.parameters(model)
        cases.train(opt, model, 10 - saved_at, first=saved_at)
        again, other = make(comm)
        with torch.no_grad():
            for p, value in zip(again.parameters(), values, strict=True):
                p.copy_(value)
        other.load_state_dict(state)
        cases.train(other, again, 10 - saved_at, first=saved_at)
        cases.equal(cases.parameters(again), cases.parameters(model))

    on_ranks(SIZE, rank)


def test_the_ranks_must_agree():
    def rank(comm):
        return distributed(mlp(), comm, local_steps=1 + comm.rank)

    said = cases.messages(2, rank)
    assert all("do not agree on steps between exchanges" in text for _, text in said)


@pytest.mark.parametrize("spoiled", (0, 2))
def test_what_is_not_finite_is_every_rank_s_error(spoiled):
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, local_steps=2)
        for step in range(2):
            opt.zero_grad()
            loss_on(model, shard(comm.rank, SIZE)).backward()
            if step == 1 and comm.rank == spoiled:
                model[0].weight.grad[0, 0] = torch.nan
            opt.step()

    said = cases.messages(SIZE, rank)
    for _, text in said:
        assert f"rank {spoiled}, step 1" in text and "'0.weight'" in text
