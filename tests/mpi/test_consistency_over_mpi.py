"""Comparisons of replicas and estimates under mpirun: all ranks raise the same, or none does."""

import pytest
import torch

import decentral
from decentral import InconsistentError
from decentral.communicators import as_communicator

pytestmark = pytest.mark.mpi

STEPS = 4
CASES = [
    ("allreduce", "nuqsgd", 1),
    ("allreduce", "none", 2),
    ("ecd-psgd", "nuqsgd", 1),
    ("choco-sgd", "nuqsgd", 2),
    ("dcd-psgd", "nuqsgd", 1),
]


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


def make(comm, name, compressed, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 80), torch.nn.Tanh(), torch.nn.Linear(80, 3))
    compressor = decentral.compressors.from_name(compressed)
    algorithm = decentral.algorithms.from_name(name, compressor=compressor)
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    opt = decentral.DistributedOptimizer(
        sgd, model, algorithm, comm, bucket_cap_mb=0.02, check_every=STEPS, **options
    )
    return model, algorithm, opt


def train(comm, model, opt, steps):
    rng = torch.Generator().manual_seed(comm.rank)
    for _ in range(steps):
        x = torch.randn(8, 300, generator=rng)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        opt.step()


def outcome(comm, model, opt, steps):
    """Return what all ranks were told, which is one thing."""
    said = None
    try:
        train(comm, model, opt, steps)
    except InconsistentError as error:
        said = str(error)
    everyone = comm.all_gather_object(said)
    assert everyone == [said] * comm.size
    return said


@pytest.mark.parametrize("name, compressed, local_steps", CASES)
@pytest.mark.mpi(min_size=2)
def test_equal_ranks_are_not_told_apart(comm, name, compressed, local_steps):
    model, _, opt = make(comm, name, compressed, local_steps=local_steps)
    assert outcome(comm, model, opt, 3 * STEPS) is None
    assert opt.stats()["bytes_sent_averaging"] > 0


@pytest.mark.mpi(min_size=3)
def test_a_replica_that_differs(comm):
    model, _, opt = make(comm, "allreduce", "nuqsgd")
    train(comm, model, opt, STEPS - 1)
    odd = comm.size - 1
    if comm.rank == odd:
        with torch.no_grad():
            model[2].weight[1, 7] *= -1
    said = outcome(comm, model, opt, 1)
    assert f"after step {STEPS} the parameters of rank {odd} differ from those of rank 0" in said
    assert "'2.weight'" in said


@pytest.mark.parametrize("what", ("estimate", "sum"))
@pytest.mark.mpi(min_size=3)
def test_an_estimate_that_differs(comm, what):
    model, algorithm, opt = make(comm, "ecd-psgd", "nuqsgd")
    train(comm, model, opt, STEPS - 1)
    opt.state_dict()  # returns when all messages are here
    comm.barrier()
    odd = comm.size - 1
    if comm.rank == odd:
        (algorithm.xt if what == "estimate" else algorithm.S)[0][5] += 0.01
    said = outcome(comm, model, opt, 1)
    assert f"after exchange {STEPS} the estimate of rank {odd} that its neighbors share" in said
    assert "'0.weight'" in said
