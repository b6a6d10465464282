"""What gossip promises, whatever the algorithm: averages, replicas, estimates, topologies."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import on_ranks
from torch import nn

import decentral
import decentral_topologies
from decentral.algorithms import DCDPSGD, DPSGD, ChocoSGD, DeepSqueeze
from decentral.algorithms.choco_sgd import theorem_gamma
from decentral.algorithms.noise import rounding_noise
from decentral.communicators import run_local
from decentral.compressors import NUQSGD, QSGD, EFSignSGD, Identity

SIZE = 6
GOSSIP = [name for name in decentral.algorithms.available() if not cases.averages_gradients(name)]
COMPRESSED = ("dcd-psgd", "ecd-psgd", "choco-sgd", "deepsqueeze")


def make(name, topology="ring", bits=None):
    lossless = bits is None
    compressor = Identity() if lossless else NUQSGD(bits, block_size=32)
    return decentral.algorithms.from_name(name, topology, compressor)


def pairs():
    found = []
    for name in GOSSIP:
        for topology in decentral_topologies.available():
            try:
                make(name, topology)._graph(SIZE)
            except ValueError:
                continue
            found.append((name, topology))
    return found


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double()


def parted_and_mixed(name, topology, bits=None, steps=5):
    """Return the ranks' parameters after a step that parts them, and after some that only mix."""

    def rank(comm):
        model = nn.Linear(20, 3)
        opt = cases.distributed(
            model, comm, make(name, topology, bits), torch.optim.SGD(model.parameters(), 1.0)
        )
        rng = torch.Generator().manual_seed(comm.rank)
        model(torch.randn(4, 20, generator=rng)).sum().backward()
        opt.step()
        parted = flat(model)
        for _ in range(steps):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            opt.step()
        return parted, flat(model)

    results = on_ranks(SIZE, rank)
    return torch.stack([a for a, _ in results]), torch.stack([b for _, b in results])


def spread(X):
    return float((X - X.mean(0)).square().sum())


# QG-DSGDm's momentum goes on without gradients.
@pytest.mark.parametrize("name, topology", [p for p in pairs() if p[0] != "qg-dsgdm"])
def test_mixing_preserves_the_average(name, topology):
    before, after = parted_and_mixed(name, topology)
    torch.testing.assert_close(after.mean(0), before.mean(0), atol=1e-5, rtol=0)
    assert spread(after) < 0.5 * spread(before) or spread(before) < 1e-8


@pytest.mark.parametrize("name", COMPRESSED)
def test_mixing_preserves_the_average_of_what_is_compressed(name):
    """W's columns add up to 1, and what a rank adds of itself is what its neighbors add of it."""
    before, after = parted_and_mixed(name, "ring", bits=4)
    if name in ("choco-sgd", "deepsqueeze"):  # the others' x moves by what is rounded
        torch.testing.assert_close(after.mean(0), before.mean(0), atol=1e-5, rtol=0)
    assert spread(after) < 0.7 * spread(before)


def test_replicas_of_dcd_equal_the_parameters_bit_for_bit():
    """A neighbor that adds up all that it is sent has the sender's parameters, 100 steps long."""

    def rank(comm):
        algorithm = make("dcd-psgd", bits=3)
        model = cases.mlp()
        opt = cases.distributed(model, comm, algorithm)
        replicas = {
            j: [v.clone() for v in vectors(opt)]
            for j in decentral_topologies.Ring(4).neighbors(comm.rank)
        }
        gossip = algorithm._gossip

        def watched(bucket, step, weight=1.0, own=None):
            yield from gossip(bucket, step, weight, own)
            for j, replica in replicas.items():
                algorithm.compressor.accumulate(algorithm._received[bucket][j], replica[bucket])

        algorithm._gossip = watched
        cases.train(opt, model, steps=100)
        opt._settle()
        return replicas, vectors(opt)

    def vectors(opt):
        flat = opt._buckets.gather(opt._buckets.parameters, opt._buckets.empty())
        return [b.of(flat).clone() for b in opt._buckets]

    results = on_ranks(4, rank)
    for replicas, _ in results:
        for j, replica in replicas.items():
            cases.equal(replica, results[j][1])


@pytest.mark.parametrize("n", (2, 4, 8, 16))
def test_one_peer_exponential_gives_the_average_after_log2_n_steps(n):
    def rank(comm):
        model = nn.Linear(4, 2, bias=False)
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        opt = cases.distributed(model, comm, DPSGD("one-peer-exponential"), sgd)
        rng = torch.Generator().manual_seed(comm.rank)
        model.weight.grad = torch.randn(2, 4, generator=rng)
        opt.step()  # parts the ranks, and sends
        own = flat(model)
        for _ in range(n.bit_length() - 1):
            model.weight.grad = torch.zeros(2, 4)
            opt.step()
        return own, flat(model)

    results = on_ranks(n, rank)
    mean = torch.stack([own for own, _ in results]).mean(0)
    for _, mixed in results:
        torch.testing.assert_close(mixed, mean, atol=1e-6, rtol=0)


def test_theorem_2_of_choco():
    """By hand for the complete graph of 4: eigenvalues of W are 1, 0, 0, 0."""
    omega = 0.5
    expected = 1 * omega / (16 + 1 + 4 + 2 - 8 * omega)
    assert theorem_gamma(decentral_topologies.Complete(4), omega) == pytest.approx(expected)


def step_size(algorithm):
    opt = on_ranks(2, lambda comm: cases.distributed(cases.mlp(), comm, algorithm()))
    return opt[0]._algorithm._gamma


def test_step_sizes():
    assert step_size(ChocoSGD) == 1
    assert step_size(lambda: ChocoSGD(compressor=NUQSGD(4))) == pytest.approx(0.75, abs=0.03)
    assert step_size(lambda: ChocoSGD(compressor=NUQSGD(4), gamma=0.25)) == 0.25
    proven = step_size(lambda: ChocoSGD("ring", NUQSGD(4), gamma="theorem"))
    assert 0 < proven < 0.1
    assert step_size(DeepSqueeze) == 0.5


def wide(dtype=torch.float32):
    model = nn.Linear(1 << 14, 1, bias=False, dtype=dtype)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    return model


def spread_after(steps, how, dtype=torch.float32):
    """Return how far ranks are from their mean, of its norm, after steps of noise."""

    def rank(comm):
        model, rng = wide(dtype), torch.Generator().manual_seed(comm.rank)
        sgd = torch.optim.SGD(model.parameters(), 0.01)
        opt = cases.distributed(model, comm, how(), sgd, consensus_every=0)
        for _ in range(steps):
            model.weight.grad = torch.randn(1, 1 << 14, generator=rng).to(dtype)
            opt.step()
        with opt.averaged():
            return opt.stats()["consensus_distance"] / float(model.weight.detach().norm())

    return on_ranks(2, rank)[0]


@pytest.mark.parametrize("block_size", (8192, 1 << 14))
@pytest.mark.parametrize("method", (ChocoSGD, DeepSqueeze))
def test_an_unbiased_compressor_that_does_not_contract_is_scaled(method, block_size):
    """Else what it loses, and feeds back, grows with every step."""
    assert spread_after(40, lambda: method("ring", QSGD(2, block_size=block_size))) < 1


def test_noise_is_that_of_blocks_as_long_as_they_are():
    small, large = (rounding_noise(QSGD(4, block_size=1 << 17), n) for n in (1 << 14, 1 << 17))
    assert 2 < large / small < 3.5  # QSGD's grows like the root of the block
    assert rounding_noise(Identity(), 0) == 0


@pytest.mark.parametrize("name", ("ecd-psgd", "dcd-psgd"))
def test_a_compressor_that_is_too_noisy_is_named_once(name, caplog):
    def said(compressor):
        def rank(comm):
            how = decentral.algorithms.from_name(name, "ring", compressor)
            cases.distributed(wide(), comm, how)

        caplog.clear()
        on_ranks(3, rank)
        return [r.getMessage() for r in caplog.records]

    assert said(NUQSGD(4, block_size=8192)) == []
    (text,) = said(QSGD(4, block_size=8192))
    assert "QSGD(bits=4, block_size=8192" in text and "expected at most 1; use more bits" in text
    assert float(text.split("noise is ")[1].split(" times")[0]) > 5


def test_in_half_precision_ranks_drift_no_further_than_in_float32():
    """What rounding parameters changes is not what dcd-psgd's neighbors know of them."""
    single, half = (spread_after(600, DCDPSGD, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half < 3 * single


@pytest.mark.parametrize("make", (ChocoSGD, DeepSqueeze))
def test_errors_of_step_sizes_and_compressors(make):
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\].*got 0"):
        make(gamma=0)
    with pytest.raises(ValueError, match=r"feeds back what its compressor loses.*use it with allr"):
        make(compressor=EFSignSGD())


def test_a_topology_that_does_not_fit_is_an_error_that_names_valid_ones():
    with pytest.raises(
        ValueError,
        match=r"ecd-psgd: needs an undirected topology that stays the same, .*got OnePeerExp.*"
        r"use one of ring, torus",
    ):
        on_ranks(
            4,
            lambda comm: cases.distributed(
                cases.mlp(), comm, make("ecd-psgd", "one-peer-exponential")
            ),
        )


@pytest.mark.parametrize("name", GOSSIP)
def test_it_trains(name):
    """The mean over ranks of the loss of the averaged model goes down."""

    def rank(comm):
        model = cases.mlp()
        bits = 4 if name in COMPRESSED else None
        opt = cases.distributed(model, comm, make(name, bits=bits))
        data = cases.batch(comm.size)
        before = cases.loss_on(model, data).item()
        for _ in range(60):
            opt.zero_grad()
            cases.loss_on(model, cases.shard(comm.rank, comm.size)).backward()
            opt.step()
        with opt.averaged():
            return before, cases.loss_on(model, data).item()

    for before, after in on_ranks(4, rank):
        assert after < 0.7 * before


@pytest.mark.parametrize(
    "topology, crossing",
    [
        ("ring", 2),  # of 4 ranks on two hosts, dealt out in turn: 0, 2 and 1, 3 side by side
        (decentral_topologies.Graph(4, [(0, 1), (1, 2), (2, 3)]), 3),  # a wiring stays as it is
    ],
    ids=("ring", "graph"),
)
def test_few_edges_cross_hosts(topology, crossing):
    def rank(comm):
        opt = cases.distributed(cases.mlp(), comm, make("ecd-psgd", topology))
        cases.train(opt, cases.mlp(), steps=2)
        return opt.stats()["edges_across_hosts"]

    assert run_local(4, rank, hosts=[0, 1, 0, 1]) == [crossing] * 4
