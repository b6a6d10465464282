"""The mean by all-gather, and by reduce-scatter and all-gather: on every rank the same bits."""

import numpy as np
import pytest
import torch

import decentral
from decentral.algorithms.means import GatheredMean, ShardedMean, my_shard, shard_edges
from decentral.communicators import run_local
from decentral.compressors import from_name
from decentral.engine import run_now

SEED = 5


def gradient(rank, numel):
    return np.random.default_rng([rank, numel]).standard_normal(numel).astype(np.float32)


def sharded(size, compressor, numels, steps=1):
    """Return, by rank, (the means of the last step, bytes sent, bytes of own messages)."""

    def rank(comm):
        shared = compressor.fresh(), comm, range(comm.size), comm.size
        means = [ShardedMean(torch.zeros(n), *shared) for n in numels]
        for step in range(1, steps + 1):
            g = [torch.from_numpy(gradient(comm.rank, n)) for n in numels]
            for bucket, (mean, vector) in enumerate(zip(means, g, strict=True)):
                assert run_now(mean.average(bucket, vector, step, SEED)) is None
        return [v.numpy() for v in g], comm.bytes_sent, [mean.nbytes for mean in means]

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


@pytest.mark.parametrize("name", ("nuqsgd", "ef-signsgd", "none"))
@pytest.mark.parametrize("size", (1, 2, 3, 8))
def test_gathered_is_the_mean_of_what_is_decoded(size, name):
    """One rounding, added in the order of ranks."""
    numel, template = 5000, from_name(name)

    def rank(comm):
        g = torch.from_numpy(gradient(comm.rank, numel))
        shared = template.fresh(), comm, range(comm.size), comm.size
        mean = GatheredMean(g, *shared)
        assert run_now(mean.average(3, g, step=7, seed=SEED)) is None
        return g.numpy(), comm.bytes_sent, mean.nbytes

    c, expected = template.fresh(), np.zeros(numel, np.float32)
    for i in range(size):
        message = c.encode(gradient(i, numel), (SEED, 7, i, 3))
        c.accumulate(message, expected, 1 / size)
    for g, sent, nbytes in run_local(size, rank):
        assert (g == expected).all()
        assert nbytes == message.nbytes and sent == (size - 1) * nbytes


def test_my_shard_is_what_the_edges_say():
    vector = torch.arange(5000.0)
    parts = run_local(3, lambda comm: my_shard(vector, comm))
    assert [len(part) for part in parts] == [2048, 2048, 904] and torch.cat(parts).equal(vector)
    assert parts[1].data_ptr() == vector.data_ptr() + 4 * 2048  # a view


def means_with(kind, wrong):
    """Return each rank's (mean, error) where rank r has NaN at the coordinates wrong[r]."""

    def rank(comm):
        g = torch.ones(8000)
        g[wrong.get(comm.rank, [])] = float("nan")
        mean = kind(g, from_name("nuqsgd"), comm, range(comm.size), comm.size)
        error = run_now(mean.average(0, g, 1, SEED))
        good = torch.ones(8000)  # and the next mean is as if nothing had been
        assert run_now(mean.average(0, good, 2, SEED)) is None and good.isfinite().all()
        return g, error

    return run_local(4, rank)


def test_a_coordinate_that_is_not_finite_is_named_by_its_place_in_the_bucket():
    results = means_with(ShardedMean, {2: [7777]})
    for r, (g, error) in enumerate(results):
        assert isinstance(error, decentral.NotFiniteError)
        assert g[6144:].isnan().all()  # what travelled with it, on all ranks
        assert g[:6144].isfinite().all()
        if r == 2:
            assert error.index == 7777 and "the shard that begins at 6144" in str(error)
        else:
            assert error.index == -1 and "is not finite" in str(error)


@pytest.mark.parametrize("kind", (GatheredMean, ShardedMean))
@pytest.mark.parametrize("coordinate", (0, 2047, 2048, 5000, 7999))  # in all owners' shards
@pytest.mark.parametrize("who", range(4))
def test_all_learn_and_only_who_has_it_says_where(kind, who, coordinate):
    for r, (g, error) in enumerate(means_with(kind, {who: [coordinate]})):
        assert g[coordinate].isnan()
        assert error.index == (coordinate if r == who else -1), error


@pytest.mark.parametrize("kind", (GatheredMean, ShardedMean))
def test_two_ranks_may_be_wrong_at_once(kind):
    """Each speaks for itself: a NaN that another sent into a shard is not its owner's mistake."""
    results = means_with(kind, {1: [5000], 2: [3000, 5001]})  # rank 2 owns what holds 5000
    assert [error.index for _, error in results][0::3] == [-1, -1]
    assert results[1][1].index == 5000 and results[2][1].index in (3000, 5001)


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
