"""DistributedOptimizer over n ranks takes the steps of one process on the whole batch."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, on_ranks, shard, train
from torch import nn

import decentral
import decentral_topologies

SIZES = (1, 2, 3, 4)
ALGORITHMS = decentral.algorithms.available()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1, "momentum": 0.9} | options))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_buffers_of_rank_0_reach_all(size, name):
    def make(rank):
        model = cases.mlp_with_batch_norm(seed=rank)
        model[3].bias.requires_grad_(False)
        for i, buffer in enumerate(model.buffers()):
            buffer.fill_(10 * rank + i)
        return model

    def rank(comm):
        model = make(comm.rank)
        distributed(model, comm, cases.algorithm(name))
        return list(model.state_dict().items())

    expected = list(make(0).state_dict().items())
    assert {t.dtype for _, t in expected} == {torch.float32, torch.int64}
    for items in on_ranks(size, rank):
        assert [name for name, _ in items] == [name for name, _ in expected]
        equal([t for _, t in items], [t for _, t in expected])


@pytest.mark.parametrize(
    "options", ({"momentum": 0.0}, {}, {"weight_decay": 0.1, "nesterov": True})
)
@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_is_sgd_on_the_whole_batch(size, options):
    def rank(comm):
        model = mlp(seed=comm.rank)
        train(distributed(model, comm, inner=sgd(model, **options)), model, steps=8)
        return cases.parameters(model)

    model = mlp()
    expected = cases.train_whole(sgd(model, **options), model, size, steps=8)
    assert (expected[0] - mlp()[0].weight).abs().max() > 0.01
    for result in (results := on_ranks(size, rank)):
        close(result, expected)
        equal(result, results[0])


@pytest.mark.parametrize("size", (2, 3))
def test_several_buckets_are_as_one(size):
    def run(cap):
        def rank(comm):
            model = mlp()
            opt = distributed(model, comm, inner=sgd(model), bucket_cap_mb=cap)
            train(opt, model, steps=5)
            return cases.parameters(model), comm.bytes_sent - opt.stats()["bytes_sent_startup"]

        return on_ranks(size, rank)

    for (one, one_sent), (many, many_sent) in zip(run(25.0), run(cases.TINY_MB), strict=True):
        equal(one, many)
        # rounding down each of four buckets to whole bytes, at most
        assert 0 <= one_sent - many_sent < 4 * 5


@pytest.mark.parametrize("size", (2, 3))
def test_gradients_are_averaged_when_backward_ends(size):
    """Which is what makes clipping between backward() and step() right."""
    limit = 0.05

    def clipped_step(model, opt, data):
        loss_on(model, data).backward()
        averaged = cases.gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        opt.step()
        return averaged, float(norm)

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        gradient, norm = clipped_step(model, opt, shard(comm.rank, size))
        return gradient, norm, cases.parameters(model)

    model = mlp()
    gradient, norm = clipped_step(model, sgd(model, momentum=0.0), cases.batch(size))
    assert norm > 2 * limit  # or nothing would be clipped
    results = on_ranks(size, rank)
    for result in results:
        close(result[0], gradient)
        assert result[1] == pytest.approx(norm, rel=1e-5)
        close(result[2], cases.parameters(model))
        assert result[1] == results[0][1]
        equal(result[2], results[0][2])


def test_gossip_leaves_gradients_local():
    def rank(comm):
        model = mlp()
        distributed(model, comm, cases.algorithm("d-psgd"))
        loss_on(model, shard(comm.rank, 3)).backward()
        return cases.gradients(model)

    for r, result in enumerate(on_ranks(3, rank)):
        model = mlp()
        loss_on(model, shard(r, 3)).backward()
        equal(result, cases.gradients(model))


def test_gradients_set_by_hand_are_averaged_in_step():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        for turn in (1, 2):  # the second time, step() must not think it was done already
            for p in model.parameters():
                p.grad = torch.full_like(p, float(comm.rank * turn))
            opt.step()
        return cases.parameters(model)

    expected = [p - 0.1 * (1.0 + 2.0) for p in cases.parameters(mlp())]  # the mean of 0, 1, 2 is 1
    for result in on_ranks(3, rank):
        close(result, expected)


# QG-DSGDm's momentum is its own.
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "qg-dsgdm"])
@pytest.mark.parametrize("size", (2, 3))
def test_any_inner_optimizer(size, name):
    """Adam on n ranks by the definition: means of gradients, or W x and the local Adam step."""
    lr, steps = 0.01, 6

    def rank(comm):
        model = mlp()
        inner = torch.optim.Adam(model.parameters(), lr)
        train(distributed(model, comm, cases.algorithm(name), inner), model, steps)
        return cases.parameters(model)

    def expected():
        models = [mlp() for _ in range(size)]
        inner = [torch.optim.Adam(m.parameters(), lr) for m in models]
        if cases.averages_gradients(name):
            return [cases.train_whole(inner[0], models[0], size, steps)] * size
        W = decentral_topologies.Ring(size).mixing_matrix()
        for step in range(steps):
            old = [cases.parameters(m) for m in models]
            for r, (m, adam) in enumerate(zip(models, inner, strict=True)):
                adam.zero_grad()
                loss_on(m, shard(r, size, step)).backward()
                adam.step()
            mixed = [cases.parameters(m) for m in models] if name in cases.MIXED_AFTER else old
            gamma = cases.MIXED_AFTER.get(name, 1.0)
            with torch.no_grad():
                for i, m in enumerate(models):
                    for k, p in enumerate(m.parameters()):
                        mean = sum(W[i, j] * mixed[j][k] for j in range(size))
                        p += gamma * (mean - mixed[i][k])
        return [cases.parameters(m) for m in models]

    for result, by_definition in zip(on_ranks(size, rank), expected(), strict=True):
        close(result, by_definition, tolerance=1e-5)


@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_alone_it_is_the_plain_optimizer_bit_for_bit(name, compressed):
    def rank(comm):
        model = cases.mlp_with_batch_norm()
        opt = distributed(model, comm, cases.algorithm(name, compressed), sgd(model))
        train(opt, model, steps=5)
        with opt.averaged():
            inside = cases.parameters(model)
        return inside, list(model.state_dict().values()), opt.stats()

    plain = cases.mlp_with_batch_norm()
    expected = cases.train_whole(sgd(plain), plain, 1, steps=5)
    [(inside, state, stats)] = on_ranks(1, rank)
    equal(inside, expected)
    equal(state, list(plain.state_dict().values()))
    sent = {key: value for key, value in stats.items() if key.startswith("bytes_sent")}
    assert sent == dict.fromkeys(
        ("bytes_sent", "bytes_sent_startup", "bytes_sent_averaging", "bytes_sent_recovery"), 0
    )
    assert stats["steps"] == 5 and stats["consensus_distance"] == 0


@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_every_pair_learns(name, compressed):
    """All ranks' data at once, by the average of the models: much better than at the start."""
    size, steps = 3, 60

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name, compressed))
        for _ in range(steps):
            opt.zero_grad()
            loss_on(model, shard(comm.rank, size)).backward()
            opt.step()
        with opt.averaged(), torch.no_grad():
            return float(loss_on(model, cases.batch(size)))

    with torch.no_grad():
        before = float(loss_on(mlp(), cases.batch(size)))
    losses = on_ranks(size, rank)
    assert losses == [losses[0]] * size
    assert losses[0] < 0.6 * before


@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_one_exchange_per_tag_is_under_way(name, compressed):
    """What communicators ask for; gossip leaves those of all buckets under way between steps."""

    class Watched:
        """An exchange that says when it is complete."""

        def __init__(self, pending, then):
            self.pending, self.then, self.poll = pending, then, pending.poll

        @property
        def complete(self):
            if self.pending.complete:
                self.then()
            return self.pending.complete

        def wait(self):
            self.pending.wait()
            self.then()

    def watch(comm):
        under_way, used, exchange = set(), set(), comm.exchange

        def watched(send, receive, tag):
            assert tag not in under_way and 0 <= tag <= 32767
            under_way.add(tag)
            used.add(tag)
            return Watched(exchange(send, receive, tag), lambda: under_way.discard(tag))

        comm.exchange = watched
        return used

    def rank(comm):
        model = mlp()
        how = cases.algorithm(name, compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
        used = watch(opt._comm)
        train(opt, model, steps=3)
        return len(used)

    # two per bucket, since a neighbor may be a step ahead; what MPI adds is not exchanged
    expected = 0 if cases.is_added(name, compressed) else 2 * len(cases.BUCKETS)
    assert on_ranks(3, rank) == [expected] * 3
