"""What mpirun computes, rank by rank, is what a simulation of as many workers does."""

import pytest
import torch
from torch import nn

import decentral
import resnet
from decentral.communicators import as_communicator
from decentral.simulate import Simulation
from decentral.simulate.__main__ import digits

pytestmark = pytest.mark.mpi

BATCH, SEED = 8, 3
CASES = [
    ("allreduce", "nuqsgd"),
    ("allreduce", "intsgd"),
    ("allreduce", "heuristic-intsgd"),
    ("intdiana", "intsgd"),
    ("d-psgd", "none"),
    ("ecd-psgd", "nuqsgd"),
]


def mlp():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def resnet20():
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), resnet.build("resnet20", 1, 10))


def sgd(params):
    return torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-4)


def algorithm(name, codec):
    options = {"bits": 4} if codec == "nuqsgd" else {}
    c = decentral.compressors.from_name(codec, **options)
    return decentral.algorithms.from_name(name, "ring", c)


def batches(size, steps):
    """Return images [steps, size, BATCH, 64] and labels."""
    (images, labels), _ = digits()
    rng = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(labels), (steps, size, BATCH), generator=rng)
    return images[chosen], labels[chosen]


def make(model):
    torch.manual_seed(7)
    return model()


def run(comm, model, case, steps):
    """Train on this rank, and return (parameters and buffers, bytes_sent) of all."""
    net = make(model)
    opt = decentral.DistributedOptimizer(
        sgd(net.parameters()), net, algorithm(*case), comm, seed=SEED, bucket_cap_mb=0.05
    )
    x, y = batches(comm.size, steps)
    for step in range(steps):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x[step, comm.rank]), y[step, comm.rank]).backward()
        opt.step()
    opt.state_dict()  # what is under way arrives
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return comm.all_gather_object((state, opt.stats()["bytes_sent"]))


def simulate(size, model, case, steps, **options):
    sim = Simulation(
        make(model),
        size,
        lambda: algorithm(*case),
        sgd,
        nn.functional.cross_entropy,
        seed=SEED,
        bucket_cap_mb=0.05,
        **options,
    )
    for x, y in zip(*batches(size, steps), strict=True):
        sim.step(x, y)
    return sim


def compare(sim, ranks, tolerance):
    for rank, (expected, nbytes) in enumerate(ranks):
        state = sim.worker(rank).state_dict()
        torch.testing.assert_close(state, expected, atol=tolerance, rtol=0)
        assert sim.bytes_sent[rank] == nbytes


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


@pytest.fixture(autouse=True)
def one_thread():
    """More ranks than cores share them; and a sum's last bit may depend on the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_an_mlp(comm, case):
    ranks = run(comm, mlp, case, steps=6)
    if comm.rank != 0:
        return  # one rank simulates all of them
    # MPI adds the float32 vectors of the first step of integers in an order of its own
    added = case[1] == "intsgd"
    compare(simulate(comm.size, mlp, case, 6, vectorize=False), ranks, 1e-5 if added else 0)
    compare(simulate(comm.size, mlp, case, 6), ranks, 1e-5 if added else 1e-6)


def test_a_float32_all_reduce(comm):
    """To what MPI's order of adding changes."""
    ranks = run(comm, mlp, ("allreduce", "none"), steps=6)
    if comm.rank == 0:
        for options in ({}, {"vectorize": False}):
            compare(simulate(comm.size, mlp, ("allreduce", "none"), 6, **options), ranks, 1e-6)


@pytest.mark.parametrize("case", (CASES[0], CASES[-1]), ids=" ".join)
def test_resnet20_with_batch_norm_bit_for_bit(comm, case):
    ranks = run(comm, resnet20, case, steps=2)
    if comm.rank == 0:
        compare(simulate(comm.size, resnet20, case, 2, vectorize=False), ranks, 0)
