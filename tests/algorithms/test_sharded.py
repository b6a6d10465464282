"""The mean by reduce-scatter and all-gather: two roundings, constant traffic, equal ranks."""

import numpy as np
import pytest
import torch

import decentral
from decentral.algorithms.sharded import ShardedMean, shard_edges
from decentral.communicators import run_local
from decentral.compressors import from_name

SEED = 5


def gradient(rank, numel):
    return np.random.default_rng([rank, numel]).standard_normal(numel).astype(np.float32)


def sharded(size, compressor, numels, steps=1):
    """Return, by rank, (the means of the last step, bytes sent, bytes of own messages)."""

    def rank(comm):
        vectors = [torch.zeros(n) for n in numels]
        own = compressor.fresh()
        mean = ShardedMean(own, comm, SEED, vectors)
        for step in range(1, steps + 1):
            g = [torch.from_numpy(gradient(comm.rank, n)) for n in numels]
            for bucket, vector in enumerate(g):
                mean.average(bucket, vector, step, lambda *message: None)
        nbytes = [mean.nbytes(bucket) for bucket in range(len(numels))]
        return [v.numpy() for v in g], comm.bytes_sent, nbytes

    return run_local(size, rank)


def by_hand(size, compressor, numel, bucket, step=1):
    """Return the same mean from NumPy and the compressor alone, rank by rank and shard by shard."""
    edges, c, result = shard_edges(numel, size), compressor.fresh(), []
    for owner in range(size):
        part = slice(edges[owner], edges[owner + 1])
        total = gradient(owner, numel)[part].copy()
        for i in range(size):
            if i != owner:
                key = (SEED, step, i + size * (owner + 1), bucket)
                total += c.decode(c.encode(gradient(i, numel)[part], key))
        total /= np.float32(size)
        result.append(c.decode(c.encode(total, (SEED, step, owner + size * (size + 1), bucket))))
    return np.concatenate(result)


@pytest.mark.parametrize("numel", (0, 1, 1024, 5000, 40_000))
@pytest.mark.parametrize("size", (1, 2, 3, 4, 8))
def test_shards_cover_the_bucket(size, numel):
    edges = shard_edges(numel, size)
    assert edges[0] == 0 and edges[-1] == numel and len(edges) == size + 1
    assert edges == sorted(edges) and all(edge % 1024 == 0 for edge in edges[:-1] if edge < numel)


@pytest.mark.parametrize("name", ("nuqsgd", "qsgdinf", "ef-signsgd", "natural"))
@pytest.mark.parametrize("size", (2, 3, 4, 8))
def test_is_the_mean_by_hand_on_every_rank(size, name):
    compressor, numels = from_name(name), (20_000, 700, 0)
    results = sharded(size, compressor, numels)
    for bucket, numel in enumerate(numels):
        expected = by_hand(size, compressor, numel, bucket)
        for means, _, _ in results:
            assert (means[bucket] == results[0][0][bucket]).all()
            # a mean is multiplied by 1 / n here and divided there: one rounding, which may part
            parted = ~np.isclose(means[bucket], expected, atol=1e-6)
            assert parted.sum() <= numel // 1000


def test_every_bit_travels_twice_whatever_the_number_of_ranks():
    compressor, numel = from_name("nuqsgd"), 1 << 17
    whole = compressor.new_payload(numel).nbytes
    for size in (2, 4, 8):
        for _, sent, (nbytes,) in sharded(size, compressor, (numel,)):
            headers_and_scales = 2 * (size - 1) * (32 + 4 * 2)
            assert abs(sent - 2 * (size - 1) * whole / size) <= headers_and_scales
            assert abs(nbytes - whole) <= size * (32 + 4 * 2)


def test_is_unbiased():
    size, numel, draws = 4, 5000, 200
    compressor = from_name("nuqsgd")
    expected = np.mean([gradient(i, numel) for i in range(size)], axis=0, dtype=np.float64)
    total = np.zeros(numel)
    for step in range(draws):
        total += by_hand(size, compressor, numel, 0, step)
    error = total / draws - expected
    assert abs((error * np.sign(expected)).mean()) < 4 * error.std() / np.sqrt(numel)
    (means, _, _), *_ = sharded(size, compressor, (numel,), steps=3)  # the last is step 3
    np.testing.assert_allclose(means[0], by_hand(size, compressor, numel, 0, 3), atol=1e-6)


def test_a_coordinate_that_is_not_finite_is_named_by_its_place_in_the_bucket():
    def rank(comm):
        g = torch.ones(8000)
        if comm.rank == 2:
            g[7777] = float("nan")
        ShardedMean(from_name("nuqsgd"), comm, SEED, [g]).average(0, g, 1, lambda *message: None)

    with pytest.raises(decentral.NotFiniteError, match="shard that begins at 6144") as error:
        run_local(4, rank)
    assert error.value.index == 7777


def optimizer(comm, exchange, compressor, numel=20_000):
    model = torch.nn.Linear(numel, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    algorithm = decentral.algorithms.AllReduce(compressor, exchange)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    return model, decentral.DistributedOptimizer(sgd, model, algorithm, comm)


def take_steps(model, opt, first, last):
    for step in range(first, last):
        opt.zero_grad()
        x = torch.from_numpy(gradient(opt.communicator.rank + 100 * step, 20_000))
        model(x).sum().backward()
        opt.step()


def test_auto_chooses_by_ranks_and_size():
    chosen = {}
    for size in (2, 3, 4):
        for numel in (1000, 20_000):

            def rank(comm, numel=numel):
                return optimizer(comm, "auto", from_name("nuqsgd"), numel)[1].stats()["exchange"]

            chosen[size, numel] = run_local(size, rank)[0]
    assert chosen.pop((4, 20_000)) == ["reduce-scatter"]
    assert set(map(tuple, chosen.values())) == {("all-gather",)}
    for name, way in (("qsgd", "all-gather"), ("terngrad", "all-gather"), ("natural", "reduce-")):
        stats = run_local(4, lambda c, n=name: optimizer(c, "auto", from_name(n))[1].stats())
        assert stats[0]["exchange"][0].startswith(way)  # the first two are noisy
    for name in ("none", "intsgd"):
        stats = run_local(4, lambda c, n=name: optimizer(c, "auto", from_name(n))[1].stats())
        assert stats[0]["exchange"] == ["all-reduce"]
    with pytest.raises(ValueError, match=r"exchange must be one of auto, all-gather, .* 'ring'"):
        decentral.algorithms.AllReduce(exchange="ring")


def test_residuals_of_shards_are_saved():
    def rank(comm):
        model, opt = optimizer(comm, "reduce-scatter", from_name("ef-signsgd"))
        take_steps(model, opt, 0, 3)
        saved, weights = opt.state_dict(), model.weight.detach().clone()
        take_steps(model, opt, 3, 6)
        other, resumed = optimizer(comm, "reduce-scatter", from_name("ef-signsgd"))
        resumed.load_state_dict(saved)
        with torch.no_grad():
            other.weight.copy_(weights)
        take_steps(other, resumed, 3, 6)
        return torch.equal(other.weight, model.weight)

    assert all(run_local(3, rank))
