"""Uneven numbers of batches under mpirun: no rank waits for ever, and replicas end equal."""

import pytest
import torch

import decentral
from decentral.communicators import as_communicator

pytestmark = pytest.mark.mpi

CASES = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce", "ef-signsgd"),
    ("allreduce", "intsgd"),
    ("intdiana", "intsgd"),
    ("d-psgd", "none"),
    ("ecd-psgd", "nuqsgd"),
    ("dcd-psgd", "nuqsgd"),
    ("choco-sgd", "nuqsgd"),
    ("deepsqueeze", "nuqsgd"),
    ("sgp", "none"),
    ("qg-dsgdm", "none"),
    ("cocod-sgd", "nuqsgd"),
]


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


def make(comm, name, compressed, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(300, 80), torch.nn.BatchNorm1d(80), torch.nn.Linear(80, 3)
    )
    algorithm = decentral.algorithms.from_name(
        name, compressor=decentral.compressors.from_name(compressed)
    )
    adam = torch.optim.Adam(model.parameters(), 0.01)
    opt = decentral.DistributedOptimizer(adam, model, algorithm, comm, **options)
    return model, adam, opt


def loop(comm, model, opt, count):
    rng = torch.Generator().manual_seed(comm.rank)
    for _ in range(count):
        x = torch.randn(8, 300, generator=rng)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        opt.step()


def batches(comm):
    """Return how many this rank has: none on the first, most on the last but one."""
    return 7 if comm.rank == comm.size - 2 else 3 * comm.rank % 6


@pytest.mark.parametrize("name, compressed", CASES)
@pytest.mark.mpi(min_size=2)
def test_uneven_batches(comm, name, compressed):
    model, adam, opt = make(comm, name, compressed, check_every=2, consensus_every=2)
    most = max(comm.all_gather_object(batches(comm)))
    for epoch in (1, 2):
        with opt.join():
            loop(comm, model, opt, batches(comm))
        assert opt.stats()["steps"] == epoch * most
    if name in ("allreduce", "intdiana"):
        state = adam.state_dict()["state"]
        moments = [state[k][m] for k in sorted(state) for m in ("exp_avg", "exp_avg_sq", "step")]
        mine = torch.cat([t.flatten().float() for t in [*model.state_dict().values(), *moments]])
        assert len(mine) > 3 * 300 * 80
        for theirs in comm.all_gather_object(mine):
            assert torch.equal(mine, theirs)
    loop(comm, model, opt, 2)  # evenly again
    with opt.averaged():
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.mpi(min_size=2)
def test_unequal_numbers_of_steps_before(comm):
    model, _, opt = make(comm, "d-psgd", "none")
    loop(comm, model, opt, 1 + (comm.rank == 1))
    with pytest.raises(decentral.MismatchError, match="rank 1 has taken 2 steps before"):
        with opt.join():
            pass
    loop(comm, model, opt, int(comm.rank != 1))  # rank 1 waits for their messages
