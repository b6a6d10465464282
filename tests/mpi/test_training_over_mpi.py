"""Training under mpirun: equal to the same ranks as threads, and exact in its bytes."""

import threading

import numpy as np
import pytest
import torch

import decentral
from decentral.communicators import as_communicator, run_local

pytestmark = pytest.mark.mpi

STEPS = 12
SEEDING = threading.Lock()  # ranks that are threads share torch's generator
CASES = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce reduce-scatter", "nuqsgd"),
    ("allreduce reduce-scatter", "qsgd huffman"),
    ("allreduce reduce-scatter", "nuqsgd narrow"),
    ("allreduce", "ef-signsgd"),
    ("allreduce", "intsgd"),
    ("allreduce", "heuristic-intsgd"),
    ("intdiana", "intsgd"),
    ("d-psgd", "none"),
    ("ecd-psgd", "nuqsgd"),
    ("ecd-psgd", "nuqsgd narrow"),
    ("ecd-psgd", "nuqsgd huffman"),
    ("ecd-psgd", "qsgdinf elias"),
    ("dcd-psgd", "nuqsgd"),
    ("choco-sgd", "nuqsgd"),
    ("deepsqueeze", "nuqsgd"),
    ("sgp", "none"),
    ("qg-dsgdm", "none"),
    ("cocod-sgd", "none"),
    ("cocod-sgd", "nuqsgd"),
    ("cocod-sgd reduce-scatter", "nuqsgd"),
]


def make(comm, algorithm, codec, topology="ring", width=40):
    with SEEDING:
        torch.manual_seed(comm.rank)  # ranks start unequal, and must be made equal
        model = torch.nn.Sequential(
            torch.nn.Linear(12, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 3)
        )
    algorithm, *exchange = algorithm.split()
    options = {"exchange": exchange[0]} if exchange else {}
    name, *coding = codec.split()
    compressor = decentral.compressors.from_name(name, **({"coding": coding[0]} if coding else {}))
    opt = decentral.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        model,
        decentral.algorithms.from_name(algorithm, topology, compressor, **options),
        comm,
        bucket_cap_mb=100 * 4 / 2**20,
    )
    return model, opt


def train(comm, algorithm, codec, topology="ring"):
    model, opt = make(comm, algorithm, codec, topology)
    rng = torch.Generator().manual_seed(1000 + comm.rank)
    for _ in range(STEPS):
        x = torch.randn(8, 12, generator=rng)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        opt.step()
    with opt.averaged():
        mean = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    return own.numpy(), mean.numpy(), opt.stats()


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


GOSSIP = [case for case in CASES if case[0] in ("d-psgd", "ecd-psgd")]
ON_TOPOLOGIES = [(*c, "ring") for c in CASES] + [
    *[(*c, topology) for c in GOSSIP for topology in ("torus", "complete")],
    *[("d-psgd", "none", topology) for topology in ("exponential", "one-peer-exponential")],
    ("sgp", "none", "one-peer-exponential"),
]


@pytest.mark.parametrize(("algorithm", "codec", "topology"), ON_TOPOLOGIES)
def test_equals_threads(comm, algorithm, codec, topology):
    everyone = comm.all_gather_object(train(comm, algorithm, codec, topology))
    if comm.rank != 0:
        return  # one rank simulates and compares all of them; eight would take eight times as long
    threads = run_local(comm.size, lambda c: train(c, algorithm, codec, topology))
    for (own, mean, stats), (own_t, mean_t, stats_t) in zip(everyone, threads, strict=True):
        if (algorithm, codec) in (("allreduce", "none"), ("cocod-sgd", "none")):
            np.testing.assert_allclose(own, own_t, atol=1e-4)  # MPI adds in an order of its own
        elif codec == "intsgd":  # its first step is a float32 one, so roundings may part later
            np.testing.assert_allclose(own, own_t, atol=1e-4)
        else:
            assert (own == own_t).all()
        np.testing.assert_allclose(mean, mean_t, atol=1e-4)
        assert stats["bytes_sent"] == stats_t["bytes_sent"]
        assert stats["bytes_sent_averaging"] == stats_t["bytes_sent_averaging"]


@pytest.mark.parametrize("codec", ("none", "nuqsgd"))
def test_bytes_of_a_ring_are_two_payloads_per_bucket_and_step(comm, codec):
    model, opt = make(comm, "ecd-psgd", codec)
    start = opt.stats()["bytes_sent_startup"]
    for _ in range(STEPS):
        opt.zero_grad()
        model(torch.ones(8, 12)).sum().backward()
        opt.step()
    c = decentral.compressors.from_name(codec)
    # Linear 12 x 40 + 40, BatchNorm 2 x 40, Linear 40 x 3 + 3, in buckets of up to 100, from the
    # end, alone from 51 on; the small ones have filled one before the first bias comes
    buckets = [120, 3 + 40 + 40, 480, 40]
    assert opt.stats()["parameters"] == sum(buckets)
    payloads = sum(c.new_payload(n).nbytes for n in buckets)
    neighbors = min(2, comm.size - 1)
    assert opt.stats()["bytes_sent"] == STEPS * neighbors * payloads
    with opt.averaged():
        pass
    stats = opt.stats()
    assert stats["bytes_sent"] == STEPS * neighbors * payloads
    assert stats["bytes_sent_startup"] == start
    assert (stats["bytes_sent_averaging"] > 0) == (comm.size > 1)


@pytest.mark.mpi(min_size=2)
def test_a_mismatch_is_raised_on_every_rank(comm):
    odd = comm.size - 1
    width = 41 if comm.rank == odd else 40
    with pytest.raises(decentral.MismatchError, match=rf"'0\.weight': rank {odd} got"):
        make(comm, "ecd-psgd", "nuqsgd", width=width)
    with pytest.raises(decentral.MismatchError, match="the algorithm: rank"):
        make(comm, "allreduce" if comm.rank == odd else "ecd-psgd", "none")
