"""One rank's NaN under mpirun with not_finite="skip": all ranks skip that step, and go on."""

import pytest
import torch

import decentral
from decentral.communicators import as_communicator

pytestmark = pytest.mark.mpi

STEPS, BAD = 6, 3
CASES = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce", "ef-signsgd"),
    ("allreduce", "intsgd"),
    ("intdiana", "intsgd"),
    ("d-psgd", "none"),
    ("ecd-psgd", "nuqsgd"),
    ("choco-sgd", "nuqsgd"),
    ("sgp", "none"),
]


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


def make(comm, name, compressed, not_finite):
    torch.manual_seed(0)
    # The first weight's gradient goes around the ring, the others through MPI's own all-reduce.
    model = torch.nn.Sequential(torch.nn.Linear(300, 80), torch.nn.Tanh(), torch.nn.Linear(80, 3))
    compressor = decentral.compressors.from_name(compressed)
    algorithm = decentral.algorithms.from_name(name, compressor=compressor)
    adam = torch.optim.Adam(model.parameters(), 0.01)
    return model, decentral.DistributedOptimizer(
        adam, model, algorithm, comm, bucket_cap_mb=0.1, not_finite=not_finite
    )


def backward(comm, model, opt, rng):
    x = torch.randn(8, 300, generator=rng)
    opt.zero_grad()
    torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()


def put(parameter, value):
    def hook(gradient):
        spoilt = gradient.clone()
        spoilt[-1, -1] = value
        return spoilt

    return parameter.register_hook(hook)


@pytest.mark.parametrize("value", ("nan", "-inf"))
@pytest.mark.parametrize("name, compressed", CASES)
def test_all_skip_and_go_on(comm, name, compressed, value):
    model, opt = make(comm, name, compressed, "skip")
    rng = torch.Generator().manual_seed(comm.rank)
    for step in range(STEPS):
        spoilt = step == BAD and comm.rank == comm.size - 1
        handle = put(model[0].weight, float(value)) if spoilt else None
        backward(comm, model, opt, rng)
        opt.step()
        if handle is not None:
            handle.remove()
    assert (opt.stats()["steps"], opt.stats()["skipped"]) == (STEPS - 1, 1)
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert own.isfinite().all()
    if name in ("allreduce", "intdiana"):
        assert all(torch.equal(own, theirs) for theirs in comm.all_gather_object(own))


@pytest.mark.parametrize("layer", (0, 2))  # by our ring, and by MPI
@pytest.mark.parametrize("not_finite", ("stop", "skip"))
@pytest.mark.mpi(min_size=4)
def test_a_sum_over_ranks_that_overflows(comm, not_finite, layer):
    model, opt = make(comm, "allreduce", "none", not_finite)
    put(model[layer].weight, 1e38)
    backward(comm, model, opt, torch.Generator().manual_seed(comm.rank))
    said = None
    try:
        opt.step()
    except decentral.NotFiniteError as error:
        said = str(error)
    assert comm.all_gather_object(said) == [said] * comm.size
    if not_finite == "stop":
        where = {0: 300 * 80 - 1, 2: 3 + 3 * 80 - 1}[layer]  # a bucket of its own, or one for all
        assert f"got inf at coordinate {where}" in said
    assert opt.stats()["skipped"] == (not_finite == "skip")
