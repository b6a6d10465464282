"""A simulation does what ranks do: the same parameters, the same bytes."""

import copy
import math

import pytest
import torch
from optimizer_cases import (
    TINY_MB,
    accepted_pairs,
    algorithm,
    averages_gradients,
    close,
    compressor,
    distributed,
    equal,
    loss_on,
    mlp,
    mlp_with_batch_norm,
    on_ranks,
    parameters,
    shard,
    train,
)
from simulation_cases import STEPS, N, sgd, simulate, take_steps
from torch import nn

import decentral
import decentral_topologies
from decentral.communicators import run_local

PAIRS = accepted_pairs()
GOSSIP = [name for name in decentral.algorithms.available() if not averages_gradients(name)]
MODES = pytest.mark.parametrize("vectorize", (False, True))


def on_real_ranks(how, size=N, make=mlp, steps=STEPS, **options):
    """Return (parameters, stats, buffers) of every rank."""

    def rank(comm):
        model = make()
        opt = distributed(
            model, comm, how(), sgd(model.parameters()), bucket_cap_mb=TINY_MB, **options
        )
        train(opt, model, steps)
        return parameters(model), opt.stats(), [b.clone() for b in model.buffers()]

    return run_local(size, rank, hosts=range(size))  # as they are in a simulation


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def check(sim, ranks, comparison=equal):
    for rank, (expected, stats, buffers) in enumerate(ranks):
        model = sim.worker(rank)
        comparison(parameters(model), expected)
        comparison(list(model.buffers()), buffers)
        assert sim.bytes_sent[rank] == stats["bytes_sent"]
    ours = sim.stats()
    others = {"bytes_sent", "consensus_distance", "edges_across_hosts"}  # each is a host of its own
    for name in set(stats) & set(ours) - others:
        assert ours[name] == ranks[0][1][name], name
    assert ours["bytes_sent"] == sum(stats["bytes_sent"] for _, stats, _ in ranks)


@pytest.mark.parametrize(("name", "compressed"), PAIRS)
def test_equals_ranks_bit_for_bit_and_in_bytes(name, compressed):
    how = lambda: algorithm(name, compressed)  # noqa: E731
    sim = simulate(how, vectorize=False, seed=3)
    take_steps(sim)
    check(sim, on_real_ranks(how, seed=3))


@pytest.mark.parametrize(("name", "compressed"), PAIRS)
def test_all_workers_at_once_equals_ranks(name, compressed):
    how = lambda: algorithm(name, compressed)  # noqa: E731
    sim = simulate(how)
    # where a sum's last bit decides a rounding they part by a level, so few steps
    take_steps(sim, steps=2)
    check(sim, on_real_ranks(how, steps=2), close)


@pytest.mark.parametrize(
    ("topology", "size"),
    [("ring", 1), ("ring", 2), *((name, 4) for name in decentral_topologies.available())],
)
def test_every_topology(topology, size):
    graph = decentral_topologies.from_name(topology, size)
    for name in GOSSIP:
        if not type(algorithm(name)).accepts(graph):
            continue
        how = lambda name=name: algorithm(name, "none", topology)  # noqa: E731
        sim = simulate(how, size, vectorize=False)
        take_steps(sim)
        check(sim, on_real_ranks(how, size))


@pytest.mark.parametrize("exchange", ("all-gather", "reduce-scatter"))
def test_ways_of_an_all_reduce(exchange):
    def how():
        return decentral.algorithms.AllReduce(compressor("nuqsgd"), exchange)

    sim = simulate(how, vectorize=False)
    take_steps(sim)
    check(sim, on_real_ranks(how))


@MODES
@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_batch_norm_has_statistics_of_each_worker(name, vectorize):
    how = lambda: algorithm(name, "nuqsgd")  # noqa: E731
    sim = simulate(how, model=mlp_with_batch_norm(), vectorize=vectorize)
    take_steps(sim, steps=2)
    ranks = on_real_ranks(how, make=mlp_with_batch_norm, steps=2)
    check(sim, ranks, close if vectorize else equal)
    means = [buffers[0] for _, _, buffers in ranks]
    average = dict(sim.average().named_buffers())
    close(average["1.running_mean"], torch.stack(means).mean(0))
    pooled = torch.stack([buffers[1] for _, _, buffers in ranks]).mean(0)
    close(average["1.running_var"], pooled + torch.stack(means).var(0, unbiased=False))
    assert average["1.num_batches_tracked"] == 2


class WithOneMore(nn.Sequential):
    """A model with a parameter that no loss depends on."""

    def __init__(self):
        super().__init__(*mlp())
        self.idle = nn.Parameter(torch.ones(3))


def test_a_parameter_that_nobody_uses_stays():
    ranks = on_real_ranks(algorithm, make=WithOneMore)
    sim = simulate(model=WithOneMore(), vectorize=False)
    take_steps(sim)
    check(sim, ranks)
    equal(sim.worker(1).idle.detach(), torch.ones(3))
    sim = simulate(model=WithOneMore())  # ranks ask whether anybody uses it, which is counted
    take_steps(sim)
    check(sim, ranks, close)


@MODES
@pytest.mark.parametrize(
    "optimizer",
    (
        lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
        lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
        lambda p: torch.optim.SGD([{"params": p[:1]}, {"params": p[1:], "lr": 0.02}], 0.1),
    ),
)
def test_an_optimizer_of_each_worker(optimizer, vectorize):
    def rank(comm):
        model = mlp()
        inner = optimizer(list(model.parameters()))
        opt = distributed(model, comm, algorithm("ecd-psgd"), inner, bucket_cap_mb=TINY_MB)
        train(opt, model, STEPS)
        return parameters(model)

    sim = simulate(lambda: algorithm("ecd-psgd"), optimizer=optimizer, vectorize=vectorize)
    take_steps(sim)
    for r, expected in enumerate(on_ranks(N, rank)):
        (close if vectorize else equal)(parameters(sim.worker(r)), expected)


def test_rates_are_those_of_each_tensor():
    def optimizer(p):
        return torch.optim.SGD([{"params": p[:1]}, {"params": p[1:], "lr": 0.02}], 0.1)

    def rank(comm):
        model = mlp()
        how = algorithm("allreduce", "intsgd")
        opt = distributed(model, comm, how, optimizer(list(model.parameters())))
        train(opt, model, STEPS)
        return parameters(model)

    for vectorize in (False, True):
        sim = simulate(
            lambda: algorithm("allreduce", "intsgd"),
            optimizer=optimizer,
            vectorize=vectorize,
            bucket_cap_mb=8.0,
        )
        take_steps(sim)
        for r, expected in enumerate(on_ranks(N, rank)):
            close(parameters(sim.worker(r)), expected)


@MODES
def test_a_schedule_on_all_optimizers(vectorize):
    sim = simulate(vectorize=vectorize)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.0) for o in sim.optimizers]
    take_steps(sim, steps=1)
    before = parameters(sim.worker(0))
    for schedule in schedules:
        schedule.step()
    take_steps(sim, steps=1)
    equal(parameters(sim.worker(0)), before)


def test_losses_are_the_workers():
    losses = take_steps(simulate(), steps=1)
    expected = [loss_on(mlp(), shard(r, N)).detach() for r in range(N)]
    close(losses, torch.stack(expected))


@MODES
def test_average_and_consensus_distance(vectorize):
    sim = simulate(lambda: algorithm("d-psgd"), vectorize=vectorize)
    assert sim.consensus_distance() == 0
    take_steps(sim)
    X = torch.stack([flat(sim.worker(r)) for r in range(N)])
    close(flat(sim.average()), X.mean(0))
    distance = math.sqrt((X - X.mean(0)).square().sum(1).mean())
    assert sim.consensus_distance() == pytest.approx(distance, rel=1e-5) and distance > 0


def test_the_model_given_stays_as_it_is():
    for vectorize in (False, True):
        model = mlp_with_batch_norm()
        before = copy.deepcopy(model.state_dict())
        take_steps(simulate(model=model, vectorize=vectorize))
        equal(list(model.state_dict().values()), list(before.values()))


@pytest.mark.parametrize("name", decentral.algorithms.available())
def test_local_steps_equal_ranks(name):
    sim = simulate(lambda: algorithm(name), vectorize=False, local_steps=3)
    take_steps(sim, steps=7)
    check(sim, on_real_ranks(lambda: algorithm(name), steps=7, local_steps=3))


@MODES
@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_local_steps_exchange_less_often(name, vectorize):
    often, seldom = (
        simulate(lambda: algorithm(name), vectorize=vectorize, local_steps=k) for k in (1, 2)
    )
    take_steps(often)
    take_steps(seldom)
    assert seldom.bytes_sent[0] == often.bytes_sent[0] / 2
    assert (flat(seldom.worker(0)) != flat(often.worker(0))).any()


def test_frozen_parameters_stay_and_do_not_travel():
    model = mlp()
    model[0].requires_grad_(False)
    for vectorize in (False, True):
        sim = simulate(model=model, vectorize=vectorize)
        take_steps(sim)
        assert sim.stats()["parameters"] == 18
        equal(parameters(sim.worker(0)[0]), parameters(model[0]))
