"""Small models, shards of a batch, and what one process makes of the whole of it."""

import torch
from torch import nn

import decentral
from decentral.communicators import run_local

FEATURES, CLASSES, SHARD = 6, 3, 4
TINY_MB = 5 * 4 / 2**20  # the four parameters of mlp(), 30, 5, 15 and 3 large, have one bucket each
MIXED_AFTER = {"choco-sgd": 1.0, "sgp": 1.0, "deepsqueeze": 0.5}  # the local step, and how much
BUCKETS = ["2.bias", "2.weight", "0.bias", "0.weight"]  # of TINY_MB, in their order


def refill(model, seed):
    """Set all parameters from a generator of their own: ranks are threads of one process."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.5)
    return model


def mlp(seed=0):
    return refill(nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)), seed)


def mlp_with_batch_norm(seed=0):
    # no bias, which BatchNorm would undo, so that every parameter has a gradient
    layers = (
        nn.Linear(FEATURES, 5, bias=False),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, CLASSES),
    )
    return refill(nn.Sequential(*layers), seed)


def batch(ranks, step=0):
    """Return inputs and targets [ranks * SHARD, ...]: shard r is rank r's."""
    rng = torch.Generator().manual_seed(1000 + step)
    n = ranks * SHARD
    return torch.randn(n, FEATURES, generator=rng), torch.randn(n, CLASSES, generator=rng)


def shard(rank, size, step=0):
    x, y = batch(size, step)
    part = slice(rank * SHARD, (rank + 1) * SHARD)
    return x[part], y[part]


def loss_on(model, data):
    x, y = data
    return nn.functional.mse_loss(model(x), y)


def compressor(name):
    """Return a fresh compressor; small blocks, so that a bucket has several."""
    options = {"block_size": 8} if "block_size" in decentral.compressors.options_of(name) else {}
    return decentral.compressors.from_name(name, **options)


def algorithm(name="allreduce", compressed="none", topology="ring"):
    return decentral.algorithms.from_name(name, topology, compressor(compressed))


def averages_gradients(name):
    """Return whether all ranks have the same parameters with the algorithm of that name."""
    return isinstance(algorithm(name), decentral.algorithms.GradientAlgorithm)


def gossip():
    """Return the names of the algorithms that mix parameters."""
    return [n for n in decentral.algorithms.available() if not averages_gradients(n)]


def is_added(name, compressed):
    """Return whether MPI adds what is sent: no payload, and so no header."""
    sums = averages_gradients(name) or name == "cocod-sgd"
    return sums and compressed in ("none", "intsgd", "heuristic-intsgd")


def kinds():
    """Return the name of one compressor of every kind that an algorithm can tell from others."""
    found = {}
    for name in ("nuqsgd", *decentral.compressors.available()):
        c = compressor(name)
        found.setdefault((c.lossless, c.summable, c.stateful, c.unbiased), name)
    return found.values()


def accepted_pairs():
    """Return (algorithm, compressor) by name: one algorithm with all, and all with every kind.

    Less what the algorithm refuses.
    """
    pairs = []
    for name in decentral.algorithms.available():
        everyone = decentral.compressors.available()
        for compressed in everyone if name == "allreduce" else kinds():
            try:
                algorithm(name, compressed)
            except ValueError:
                continue
            pairs.append((name, compressed))
    return pairs


def distributed(model, comm, how=None, inner=None, **options):
    """Return a DistributedOptimizer; allreduce without a compressor around SGD if not told."""
    inner = torch.optim.SGD(model.parameters(), 0.1) if inner is None else inner
    how = algorithm() if how is None else how
    return decentral.DistributedOptimizer(inner, model, how, comm, **options)


def train(opt, model, steps, first=0):
    """Take steps on this rank's shards, the first of which is that of step number `first`."""
    comm = opt.communicator
    for step in range(first, first + steps):
        opt.zero_grad()
        loss_on(model, shard(comm.rank, comm.size, step)).backward()
        opt.step()


def train_whole(inner, model, ranks, steps):
    """Take the steps that `ranks` ranks take together, in one process on the whole batch."""
    for step in range(steps):
        inner.zero_grad()
        loss_on(model, batch(ranks, step)).backward()
        inner.step()
    return parameters(model)


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def equal(actual, expected):
    """Compare lists of tensors bit for bit."""
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def on_ranks(size, function):
    """Call function(comm) on `size` ranks, and return by rank."""
    return run_local(size, function)


def messages(size, function):
    """Return what each rank's function(comm) raises of a mistake: kind and text."""

    def rank(comm):
        try:
            function(comm)
        except (ValueError, TypeError, RuntimeError) as error:
            return type(error), str(error)
        return None

    return run_local(size, rank)
