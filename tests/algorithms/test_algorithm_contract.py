"""Every registered algorithm equals its matrix twin on a quadratic, over threads."""

import itertools

import matrix_twins
import numpy as np
import pytest
import torch

import decentral
import decentral_topologies
from decentral.communicators import run_local

SIZES = (1, 2, 3, 4, 6, 8)
STEPS, ETA, SEED = 12, 0.1, 3
SHAPES = ((20, 10), (45,))  # two parameters, both large for the cap below: a bucket each
CAP_MB = 60 * 4 / 2**20


class Quadratic(torch.nn.Module):
    """f_i(x) = 1/2 sum_k h_k (x_k - b_ik)^2, with another optimum b_i on every worker."""

    def __init__(self, rank):
        super().__init__()
        rng = np.random.default_rng(0)
        self.w = torch.nn.ParameterList(
            torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in SHAPES
        )
        self.h = [torch.from_numpy(rng.uniform(0.5, 2, s).astype(np.float32)) for s in SHAPES]
        rng = np.random.default_rng(100 + rank)
        self.b = [torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in SHAPES]

    def forward(self):
        parts = zip(self.w, self.h, self.b, strict=True)
        return sum((0.5 * h * (w - b) ** 2).sum() for w, h, b in parts)

    def flat(self):
        return [p.detach().numpy().ravel().astype(np.float64) for p in reversed(list(self.w))]


def exact(algorithm):
    """Return whether an algorithm sends parameters, and has no compressed form; it says so."""
    return algorithm in ("d-psgd", "sgp", "qg-dsgdm")


def compressor_for(algorithm):
    if exact(algorithm):
        return decentral.compressors.Identity()
    integers = algorithm == "intdiana"  # which needs them, and these are never clipped
    return decentral.compressors.IntSGD(bits=32) if integers else decentral.compressors.NUQSGD()


def valid(algorithm, topology, size):
    """Return whether there is such a topology, and the algorithm takes it."""
    kind = type(decentral.algorithms.from_name(algorithm, compressor=compressor_for(algorithm)))
    if not issubclass(kind, decentral.algorithms.GossipAlgorithm):
        return topology == "ring"  # it has no use for any
    exists = topology in decentral_topologies.available(size)
    return exists and kind.accepts(decentral_topologies.from_name(topology, size))


TRIPLES = [
    triple
    for triple in itertools.product(
        decentral.algorithms.available(), decentral_topologies.available(), SIZES
    )
    if valid(*triple)
]


def run(size, algorithm, topology, compressor, steps=STEPS, **options):
    """Return X per bucket, [size, numel]: what the real thing computes."""

    def rank(comm):
        model = Quadratic(comm.rank)
        opt = decentral.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), ETA),
            model,
            decentral.algorithms.from_name(algorithm, topology, compressor, **options),
            comm,
            seed=SEED,
            bucket_cap_mb=CAP_MB,
        )
        for _ in range(steps):
            opt.zero_grad()
            model().backward()
            opt.step()
        return model.flat()

    results = run_local(size, rank)
    return [np.array([r[b] for r in results]) for b in range(len(SHAPES))]


def run_twin(size, algorithm, topology, compressor, steps=STEPS, **options):
    """Return the same from the matrix twin."""
    graph = decentral_topologies.from_name(topology, size)
    matrices = [graph.mixing_matrix(k) for k in range(graph.period)]
    models = [Quadratic(i) for i in range(size)]

    def W(t):
        return matrices[(t - 1) % graph.period]

    ledger = matrix_twins.Ledger(sum(map(len, models[0].flat())))
    hs, Bs, Xs, twins = [], [], [], []
    for b in range(len(SHAPES)):
        k = len(SHAPES) - 1 - b  # buckets are in reverse order
        Xs.append(np.array([m.flat()[b] for m in models]))
        hs.append(models[0].h[k].numpy().ravel().astype(np.float64))
        Bs.append(np.array([m.b[k].numpy().ravel() for m in models], np.float64))
        make = matrix_twins.TWINS[algorithm]
        twins.append(make(Xs[b], W, compressor, ledger=ledger, **options))
    for t in range(1, steps + 1):
        for b, twin in enumerate(twins):
            Xs[b] = twin.step(Xs[b], hs[b] * (Xs[b] - Bs[b]), ETA, t, SEED, b)
    return Xs


def assert_same(actual, expected, tolerance=1e-5):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=tolerance, rtol=tolerance)


def assert_same_but_for_roundings(actual, expected):
    """A rounding that float32 and float64 decide differently moves a coordinate by a level."""
    for a, e in zip(actual, expected, strict=True):
        differs = ~np.isclose(a, e, atol=1e-5, rtol=1e-5)
        assert differs.mean() <= 0.01
        np.testing.assert_allclose(a, e, atol=0.05)


def test_every_algorithm_has_a_twin():
    assert set(matrix_twins.TWINS) == set(decentral.algorithms.available())


@pytest.mark.parametrize("algorithm, topology, size", TRIPLES)
def test_equals_its_twin(algorithm, topology, size):
    identity = decentral.compressors.Identity()
    args = ("allreduce" if size == 1 else algorithm, topology, identity)  # alone, nothing is sent
    assert_same(run(size, *args), run_twin(size, *args))


@pytest.mark.parametrize(
    "algorithm, topology, size", [t for t in TRIPLES if not exact(t[0]) and t[-1] > 1]
)
def test_equals_its_twin_compressed(algorithm, topology, size):
    args = (size, algorithm, topology, compressor_for(algorithm))
    assert_same_but_for_roundings(run(*args), run_twin(*args))


@pytest.mark.parametrize("size", (2, 3, 8))
def test_all_reduce_of_integers_equals_its_twin(size):
    args = (size, "allreduce", "ring", compressor_for("intdiana"))
    assert_same(run(*args), run_twin(*args))


@pytest.mark.parametrize("size", (2, 3, 8))
def test_ecd_as_published_equals_its_twin(size):
    compressor = decentral.compressors.from_name("qsgdinf", bits=8)
    args = (size, "ecd-psgd", "ring", compressor)
    assert_same(run(*args, steps=6, published=True), run_twin(*args, steps=6, published=True))


@pytest.mark.parametrize(
    "name, options",
    [
        ("dcd-psgd", {}),
        ("ecd-psgd", {}),
        ("ecd-psgd", {"published": True}),
        ("ecd-psgd", {"horizon": 4}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "topology, size",
    [t[1:] for t in TRIPLES if t[0] == "ecd-psgd" and t[1] in ("ring", "torus", "star")],
)
def test_without_compression_it_is_d_psgd(topology, size, name, options):
    identity = decentral.compressors.Identity()
    # published, z grows with t and float32 loses what the twin does not: fewer steps, same method
    steps = 10 if options.get("published") else STEPS
    actual = run(size, name, topology, identity, steps, **options)
    assert_same(actual, run(size, "d-psgd", topology, identity, steps))


@pytest.mark.parametrize("name", [n for n in decentral.compressors.available() if n != "none"])
def test_all_reduce_leaves_ranks_equal_bit_for_bit(name):
    for X in run(3, "allreduce", "ring", decentral.compressors.from_name(name)):
        assert (X == X[0]).all()


def test_errors():
    nuqsgd = decentral.compressors.NUQSGD()
    with pytest.raises(ValueError, match=r"d-psgd: .*needs compressor 'none'.*use ecd-psgd"):
        decentral.algorithms.from_name("d-psgd", compressor=nuqsgd)
    with pytest.raises(
        ValueError, match=r"unknown algorithm 'sgd'; known are: allreduce, intdiana, d-psgd"
    ):
        decentral.algorithms.from_name("sgd")
    with pytest.raises(
        ValueError, match="'allreduce' has no option 'horizon'; it takes compressor, exchange"
    ):
        decentral.algorithms.from_name("allreduce", horizon=3)
    with pytest.raises(ValueError, match="horizon must be at least 2, got 1"):
        decentral.algorithms.ECDPSGD(horizon=1)
    with pytest.raises(ValueError, match=r"Ring\(4\) is for 4 ranks, but there are 2"):
        run(2, "d-psgd", decentral_topologies.Ring(4), None)
    with pytest.raises(ValueError, match="name must be one of ring"):
        run(2, "d-psgd", "rong", None)


def test_an_algorithm_has_a_compressor_of_its_own():
    """A residual is one rank's and one optimizer's, though all were given the same object."""
    template = decentral.compressors.EFSignSGD()
    run(2, "allreduce", "ring", template, steps=2)
    assert not template.state_dict()


def test_an_algorithm_serves_one_optimizer():
    model = torch.nn.Linear(2, 2)
    algorithm = decentral.algorithms.DPSGD()

    def rank(comm):
        for _ in range(2):
            sgd = torch.optim.SGD(model.parameters(), ETA)
            decentral.DistributedOptimizer(sgd, model, algorithm, comm)

    with pytest.raises(RuntimeError, match="already belongs to a DistributedOptimizer"):
        run_local(1, rank)
