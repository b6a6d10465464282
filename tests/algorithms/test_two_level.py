"""The two-level exchange: float32 within a host, compressed shards between hosts."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import decentral
from decentral.algorithms import AllReduce
from decentral.algorithms.means import GatheredMean, ShardedMean, my_shard, shard_edges, split_ranks
from decentral.communicators import run_local
from decentral.compressors import from_name
from decentral.engine import run_now

SEED = 5
# Hosts by rank: ranks of a host side by side, or in turn; two and three hosts or ranks on each.
HOSTS = [(0, 0, 1, 1), (0, 1, 0, 1), (0, 0, 0, 1, 1, 1), (0, 0, 1, 1, 2, 2), (1, 0, 2, 0, 2, 1)]
FOUR_HOSTS = (0, 0, 1, 1, 2, 2, 3, 3)


def gradient(rank, numel):
    return np.random.default_rng([rank, numel]).standard_normal(numel).astype(np.float32)


def mean_of(hosts, numel):
    return np.mean([gradient(r, numel) for r in range(len(hosts))], axis=0, dtype=np.float64)


def build(comm, compressor, vector):
    """Return what AllReduce makes of "two-level", with both communicators, by hand."""
    host = comm.hosts[comm.rank]
    local, across = comm.split(host), comm.split(comm.hosts[: comm.rank].count(host))
    on_host, peers = split_ranks(comm.hosts, comm.rank)
    inner = GatheredMean(my_shard(vector, local), compressor, across, peers, comm.size)
    lossless = from_name("none")
    lower = lossless, local, on_host, comm.size
    return ShardedMean(vector, *lower, inner=inner), local, across


@pytest.mark.parametrize("numel", (0, 1, 1024, 5000, 70_000))
@pytest.mark.parametrize("hosts", HOSTS, ids=str)
def test_without_rounding_it_is_the_mean(hosts, numel):
    def rank(comm):
        g = torch.from_numpy(gradient(comm.rank, numel))
        mean, *_ = build(comm, from_name("none"), g)
        assert run_now(mean.average(0, g, step=1, seed=SEED)) is None
        return g.numpy()

    results = run_local(len(hosts), rank, hosts=hosts)
    for result in results:
        assert (result == results[0]).all()
        np.testing.assert_allclose(result, mean_of(hosts, numel), atol=1e-6)


def by_hand(hosts, compressor, numel, step, bucket):
    """Return the mean from NumPy and the compressor alone: hosts add up, shards are exchanged."""
    ranks = [[r for r, h in enumerate(hosts) if h == host] for host in sorted(set(hosts))]
    edges = shard_edges(numel, len(ranks[0]))
    c, result = compressor.fresh(), np.zeros(numel, np.float32)
    for i in range(len(ranks[0])):
        part = slice(edges[i], edges[i + 1])
        owners = sorted(host[i] for host in ranks)
        for owner in owners:
            here = next(host for host in ranks if owner in host)
            total = gradient(owner, numel)[part].copy()
            for r in here:
                if r != owner:
                    total += gradient(r, numel)[part]
            total /= np.float32(len(here))
            message = c.encode(total, (SEED, step, owner, bucket))
            c.accumulate(message, result[part], 1 / len(ranks))
    return result


@pytest.mark.parametrize("name", ("nuqsgd", "natural"))
@pytest.mark.parametrize("hosts", HOSTS, ids=str)
def test_it_is_the_mean_by_hand_on_every_rank(hosts, name):
    numel, step, bucket = 20_000, 3, 2

    def rank(comm):
        g = torch.from_numpy(gradient(comm.rank, numel))
        mean, *_ = build(comm, from_name(name), g)
        assert run_now(mean.average(bucket, g, step, seed=SEED)) is None
        return g.numpy()

    expected = by_hand(hosts, from_name(name), numel, step, bucket)
    results = run_local(len(hosts), rank, hosts=hosts)
    for result in results:
        assert (result == results[0]).all()
        # float32 adds in another order here, so that a rounding may part now and then
        parted = ~np.isclose(result, expected, atol=1e-6)
        assert parted.sum() <= numel // 1000


@pytest.mark.parametrize("hosts", HOSTS, ids=str)
def test_a_host_sends_each_other_host_one_message_s_worth(hosts):
    numel = 1 << 17
    each, others = hosts.count(0), len(set(hosts)) - 1

    def rank(comm):
        g = torch.from_numpy(gradient(comm.rank, numel))
        mean, local, across = build(comm, from_name("nuqsgd"), g)
        assert set(local.hosts) == {local.hosts[0]} and len(set(across.hosts)) == across.size
        before = comm.bytes_sent
        run_now(mean.average(0, g, step=1, seed=SEED))
        assert comm.bytes_sent - before == local.bytes_sent + across.bytes_sent
        return local.bytes_sent, across.bytes_sent, mean.nbytes, len(my_shard(g, local))

    payload = from_name("nuqsgd").new_payload
    results = run_local(len(hosts), rank, hosts=hosts)
    edges = shard_edges(numel, each)
    lengths = [b - a for a, b in pairwise(edges)]
    for here, between, nbytes, own in results:
        assert nbytes == payload(own).nbytes
        assert between == others * nbytes
        theirs = sum(lengths) - own
        assert here == 4 * theirs + (each - 1) * (4 * own + 2 * 32)  # parts, then own mean
    for host in set(hosts):
        total = sum(r[1] for r, h in zip(results, hosts, strict=True) if h == host)
        whole = others * payload(numel).nbytes
        assert whole <= total <= whole + others * each * (32 + 4)  # headers, and a block cut


def optimizer(comm, compressor, exchange="two-level", numel=40_000, bias=False, cap=25.0):
    model = torch.nn.Linear(numel, 1, bias=bias)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    how = AllReduce(compressor, exchange)
    opt = decentral.DistributedOptimizer(sgd, model, how, comm, seed=SEED, bucket_cap_mb=cap)
    return model, opt


def backward(model, opt, step=0):
    opt.zero_grad()
    x = torch.from_numpy(gradient(opt.communicator.rank + 100 * step, model.in_features))
    model(x).sum().backward()


@pytest.mark.parametrize("exchange", ("two-level", "auto"))
@pytest.mark.parametrize("hosts", HOSTS[:3], ids=str)
def test_an_optimizer_uses_it_and_says_so(hosts, exchange):
    numel = 40_000

    def rank(comm):
        model, opt = optimizer(comm, from_name("nuqsgd"), exchange)
        backward(model, opt)
        return model.weight.grad[0].numpy().copy(), opt.stats()

    edges = shard_edges(numel, hosts.count(0))
    results = run_local(len(hosts), rank, hosts=hosts)
    expected = by_hand(hosts, from_name("nuqsgd"), numel, 1, 0)
    for r, (result, stats) in enumerate(results):
        assert (result == results[0][0]).all()
        assert (~np.isclose(result, expected, atol=1e-6)).sum() <= numel // 1000
        assert stats["exchange"] == ["two-level"]
        i = hosts[:r].count(hosts[r])  # this rank's shard is what it sends to other hosts
        nbytes = from_name("nuqsgd").new_payload(edges[i + 1] - edges[i]).nbytes
        assert stats["bits_per_parameter"] == pytest.approx(8 * nbytes / numel)


def test_among_many_hosts_the_shards_are_sharded_again():
    numel, qsgdinf = 1 << 16, from_name("qsgdinf", bits=8)
    payload = qsgdinf.new_payload(numel // 2).nbytes

    def rank(comm):
        model, opt = optimizer(comm, qsgdinf, numel=numel)
        algorithm = opt._algorithm
        backward(model, opt)
        assert opt.stats()["exchange"] == ["two-level"]
        return model.weight.grad[0].numpy().copy(), algorithm._across.bytes_sent

    results = run_local(8, rank, hosts=FOUR_HOSTS)
    expected = mean_of(FOUR_HOSTS, numel)
    for result, between in results:
        assert (result == results[0][0]).all()
        assert np.square(result - expected).sum() < 1e-2 * np.square(expected).sum()
        assert between < 1.51 * payload  # 2 * 3 / 4, where an all-gather had 3


CHOICES = [
    ((0, 0, 1, 1), 20_000, "nuqsgd", "two-level"),
    ((0, 0, 1, 1), 10_000, "nuqsgd", "all-gather"),  # small
    ((0, 0, 1, 1), 20_000, "qsgd", "all-gather"),  # noisy
    ((0, 0, 0, 0), 20_000, "nuqsgd", "reduce-scatter"),  # one host
    ((0, 1, 2, 3), 20_000, "nuqsgd", "reduce-scatter"),  # one rank on each
    ((0, 0, 1), 20_000, "nuqsgd", "all-gather"),  # unequal
    ((0, 0, 0, 1, 1), 20_000, "nuqsgd", "reduce-scatter"),
    ((0, 0, 1, 1), 20_000, "intsgd", "all-reduce"),
    ((0, 0, 1, 1), 20_000, "none", "all-reduce"),
]


@pytest.mark.parametrize("hosts, numel, name, expected", CHOICES, ids=str)
def test_auto_looks_at_hosts_size_and_noise(hosts, numel, name, expected):
    def rank(comm):
        return optimizer(comm, from_name(name), "auto", numel)[1].stats()["exchange"]

    assert run_local(len(hosts), rank, hosts=hosts) == [[expected]] * len(hosts)


@pytest.mark.parametrize("hosts, counts", [((0, 0, 1), "[1, 2]"), ((0, 1, 1, 1, 0), "[2, 3]")])
def test_unequal_hosts_are_refused_on_every_rank(hosts, counts):
    def rank(comm):
        try:
            optimizer(comm, from_name("nuqsgd"))
        except ValueError as error:
            return str(error)
        return None

    expected = (
        "allreduce: exchange='two-level' needs equally many ranks on every host, got "
        f"{counts}; use 'auto'"
    )
    assert run_local(len(hosts), rank, hosts=hosts) == [expected] * len(hosts)


@pytest.mark.parametrize("hosts", ((0, 0), (0, 1), (0, 0, 0)), ids=str)
def test_one_host_or_one_rank_on_each_is_two_level_too_if_told(hosts):
    """The other level is then a communicator of one rank."""

    def rank(comm):
        model, opt = optimizer(comm, from_name("qsgdinf", bits=8))
        backward(model, opt)
        return model.weight.grad[0].numpy().copy()

    results, expected = run_local(len(hosts), rank, hosts=hosts), mean_of(hosts, 40_000)
    for result in results:
        assert (result == results[0]).all()
        assert np.square(result - expected).sum() < 1e-2 * np.square(expected).sum()


def test_residuals_are_saved():
    def rank(comm):
        runs = []
        for resume in (False, True):
            model, opt = optimizer(comm, from_name("ef-signsgd"), cap=10_000 * 4 / 2**20)
            for step in range(4):
                backward(model, opt, step)
                opt.step()
                if step == 1 and resume:
                    saved, weights = opt.state_dict(), model.weight.detach().clone()
                    model, opt = optimizer(comm, from_name("ef-signsgd"), cap=10_000 * 4 / 2**20)
                    opt.load_state_dict(saved)
                    with torch.no_grad():
                        model.weight.copy_(weights)
            runs.append(model.weight.detach().clone())
        return torch.equal(*runs)

    assert all(run_local(4, rank, hosts=(0, 0, 1, 1)))
