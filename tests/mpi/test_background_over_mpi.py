"""What runs in the background, over real MPI: large buckets, two threads, one rank's NaN."""

import numpy as np
import pytest
import torch

import decentral
from decentral.communicators import as_communicator, run_local
from decentral.communicators.mpi import MPICommunicator

pytestmark = pytest.mark.mpi

STEPS, WIDTH, CLASSES = 3, 400, 200
CAP_MB, BUCKETS = 0.32, 4  # the weights' of 79,000 or more: int8 goes around a ring too
CASES = [
    ("allreduce", "none", {}),
    ("allreduce", "nuqsgd", {"exchange": "all-gather"}),
    ("allreduce", "nuqsgd", {"exchange": "reduce-scatter"}),
    ("allreduce", "intsgd", {}),
    ("intdiana", "intsgd", {}),
    ("d-psgd", "none", {}),
    ("ecd-psgd", "nuqsgd", {}),
]


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


def make(comm, name, codec, options):
    rng = torch.Generator().manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh())
    model.append(torch.nn.Linear(WIDTH, CLASSES))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) / WIDTH**0.5)
    compressor = decentral.compressors.from_name(codec)
    algorithm = decentral.algorithms.from_name(name, compressor=compressor, **options)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    return model, decentral.DistributedOptimizer(sgd, model, algorithm, comm, bucket_cap_mb=CAP_MB)


def backward(model, opt, rank, step, spoil=False):
    rng = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(8, WIDTH, generator=rng)
    opt.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), x[:, :CLASSES].argmax(1))
    (loss * float("nan") if spoil else loss).backward()


def train(comm, case, between=lambda comm: None):
    model, opt = make(comm, *case)
    for step in range(STEPS):
        backward(model, opt, comm.rank, step)
        opt.step()
        between(opt.communicator)
    stats = opt.stats()
    buckets = opt.state_dict()["decentral"]["buckets"]
    assert len(buckets) == BUCKETS and min(buckets[:3]) >= 1 << 16
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return flat.numpy().copy(), stats


@pytest.mark.parametrize("case", CASES, ids=str)
def test_large_buckets_equal_threads(comm, case):
    everyone = comm.all_gather_object(train(comm, case))
    if comm.rank != 0:
        return  # one rank simulates and compares all of them
    threads = run_local(comm.size, lambda c: train(c, case))
    for (own, stats), (expected, stats_t) in zip(everyone, threads, strict=True):
        if case[1] in ("none", "intsgd"):  # MPI and threads add floats in different orders
            np.testing.assert_allclose(own, expected, atol=1e-3 if case[1] == "intsgd" else 1e-5)
        else:
            assert (own == expected).all()
        assert stats["bytes_sent"] == stats_t["bytes_sent"]
        if comm.size > 1:
            assert stats["communication_s"] > 0


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[-1]], ids=str)
def test_the_script_may_use_the_communicator_meanwhile(comm, case):
    """Gossip's messages are under way between steps, and MPI is then called by two threads."""

    def between(ours):
        assert ours is comm
        comm.barrier()
        assert comm.all_gather_object(comm.rank) == list(range(comm.size))
        vector = np.full(50_000, 1, np.float32)
        comm.all_reduce(vector).wait()
        assert (vector == comm.size).all()

    quiet, _ = train(comm, case)
    busy, _ = train(comm, case, between)
    same = bool((quiet == busy).all())
    assert comm.all_gather_object(same) == [True] * comm.size


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_mpi_of_one_thread_gives_the_same(comm, case, monkeypatch):
    expected, _ = train(comm, case)
    begin = MPICommunicator._begin

    def begin_without_threads(self, *args):
        begin(self, *args)
        self.threaded = False

    monkeypatch.setattr(MPICommunicator, "_begin", begin_without_threads)
    actual, _ = train(comm, case)
    same = bool((actual == expected).all())
    assert comm.all_gather_object(same) == [True] * comm.size


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", [c for c in CASES if not c[0].endswith("psgd")], ids=str)
def test_one_rank_s_nan_is_all_ranks_error(comm, case):
    model, opt = make(comm, *case)
    odd = comm.size - 1
    backward(model, opt, comm.rank, 0)
    opt.step()
    backward(model, opt, comm.rank, 1, spoil=comm.rank == odd)
    with pytest.raises(decentral.NotFiniteError) as caught:
        opt.step()
    said = comm.all_gather_object(str(caught.value))
    assert said == [said[0]] * comm.size and said[0].startswith(f"rank {odd}, step 2, bucket ")
    assert "which belongs to parameter '2." in said[0]
    backward(model, opt, comm.rank, 2)
    opt.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.mpi(min_size=4)
def test_two_levels_equal_threads(comm, monkeypatch):
    """Two ranks on each of several hosts, which one host pretends to be."""
    if comm.size % 2:
        pytest.skip(f"needs an even number of ranks, got {comm.size}")
    hosts, place = tuple(r // 2 for r in range(comm.size)), MPICommunicator._place

    def placed(self):
        place(self)
        if self.size == len(hosts):
            self.hosts = hosts

    monkeypatch.setattr(MPICommunicator, "_place", placed)
    monkeypatch.setattr(MPICommunicator, "link_speed", lambda _: np.inf)  # as threads have it
    case = ("allreduce", "nuqsgd", {"exchange": "two-level"})
    everyone = comm.all_gather_object(train(comm, case))
    if comm.rank != 0:
        return
    threads = run_local(comm.size, lambda c: train(c, case), hosts=hosts)
    for (own, stats), (expected, stats_t) in zip(everyone, threads, strict=True):
        assert (own == expected).all() and (own == everyone[0][0]).all()
        assert stats["bytes_sent"] == stats_t["bytes_sent"]
        assert stats["exchange"] == ["two-level"] * BUCKETS
