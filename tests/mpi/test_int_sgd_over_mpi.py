"""IntSGD and IntDIANA over real MPI: one alpha for all ranks, bit for bit, at every step."""

import pytest
import torch

import decentral
from decentral.communicators import as_communicator

pytestmark = pytest.mark.mpi

STEPS = 10
CASES = [
    ("allreduce", "intsgd", {"bits": 8}),
    ("allreduce", "intsgd", {"bits": 32, "rounding": "deterministic"}),
    ("allreduce", "intsgd", {"bits": 8, "blockwise": True}),
    ("allreduce", "heuristic-intsgd", {"bits": 8}),
    ("intdiana", "intsgd", {"bits": 8}),
    ("intdiana", "intsgd", {"bits": 32, "blockwise": True}),
]


def make(comm, algorithm, compressor):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.Tanh(), torch.nn.Linear(50, 3))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.02}]
    algorithm = decentral.algorithms.from_name(algorithm, compressor=compressor)
    sgd = torch.optim.SGD(groups, 0.1, momentum=0.9)
    opt = decentral.DistributedOptimizer(sgd, model, algorithm, comm, bucket_cap_mb=0.005)
    return model, opt, algorithm


def loss_on(model, samples, generator):
    x = torch.randn(samples, 30, generator=generator)
    return torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))


@pytest.mark.parametrize(("algorithm", "name", "options"), CASES)
@pytest.mark.mpi(min_size=2)
def test_alpha_and_parameters_are_equal_on_all_ranks_at_every_step(algorithm, name, options):
    comm = as_communicator()
    compressor = decentral.compressors.from_name(name, **options)
    model, opt, algorithm = make(comm, algorithm, compressor)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, [0.1, 0.05], total_steps=STEPS)
    rng = torch.Generator().manual_seed(comm.rank)  # another batch on every rank
    before = loss_on(model, 512, torch.Generator().manual_seed(99)).item()
    for step in range(STEPS):
        opt.zero_grad()
        loss_on(model, 16, rng).backward()
        opt.step()
        schedule.step()
        alphas = [list(row) for row in algorithm.compressor._alphas]
        parameters = [p.detach().numpy().tobytes() for p in model.parameters()]
        everyone = comm.all_gather_object((alphas, parameters))
        assert everyone == [everyone[0]] * comm.size
        exact = step == 0 and name == "intsgd"
        tensors = [len(p) for p in algorithm.compressor.parts]
        expected = tensors if options.get("blockwise") else [1] * len(tensors)
        assert [len(row) for row in alphas] == ([0] * len(tensors) if exact else expected)
        assert all(alpha > 0 for row in alphas for alpha in row)
    assert len(algorithm.compressor.parts) > 1
    after = loss_on(model, 512, torch.Generator().manual_seed(99)).item()
    assert after < 0.95 * before
