"""On a machine with an NVIDIA GPU (make gpu-check): training with CUDA parameters.

Ranks are threads that share the GPU, or processes of mpirun.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import decentral
from decentral.communicators import run_local

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"
)

DEVICE = "cuda"
WIDTH, STEPS = 200, 60
LOSSY = "nuqsgd"
ALGORITHMS = {
    "allreduce": LOSSY,
    "intdiana": "intsgd",
    **dict.fromkeys(("d-psgd", "qg-dsgdm", "sgp"), "none"),
    **dict.fromkeys(("dcd-psgd", "ecd-psgd", "choco-sgd", "deepsqueeze", "cocod-sgd"), LOSSY),
}
CASES = [(name, compressor, {}) for name, compressor in ALGORITHMS.items()]
CASES += [("allreduce", c, {}) for c in decentral.compressors.available() if c != LOSSY]
CASES += [("allreduce", LOSSY, {"exchange": e}) for e in ("all-gather", "reduce-scatter")]
DRAWING = threading.Lock()  # ranks are threads, and torch's generator is one for all
SCRIPT = Path(__file__).with_name("train_over_mpi.py")


def make(comm, name, compressor, options, seed=0):
    with DRAWING:
        torch.manual_seed(seed)
        hidden = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 1)
    model = torch.nn.Sequential(*hidden).to(DEVICE)
    algorithm = decentral.algorithms.from_name(
        name, compressor=decentral.compressors.from_name(compressor), **options
    )
    sgd = torch.optim.SGD(model.parameters(), 0.02)
    # Several buckets, some of which are a part of one parameter.
    return model, decentral.DistributedOptimizer(sgd, model, algorithm, comm, bucket_cap_mb=0.05)


def batch_of(rng):
    x = torch.randn(32, WIDTH, generator=rng)
    return x.to(DEVICE), (x.sum(1, keepdim=True) / WIDTH**0.5).to(DEVICE)


def train(comm, name, compressor, options):
    """Return the first and the last losses, and the parameters, on the host."""
    model, opt = make(comm, name, compressor, options)
    rng = torch.Generator().manual_seed(comm.rank)
    losses = []
    for _ in range(STEPS):
        x, y = batch_of(rng)
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    with opt.averaged():
        average = torch.cat([p.detach().reshape(-1).cpu() for p in model.parameters()])
    return losses[0], sum(losses[-5:]) / 5, average


def test_every_algorithm_has_a_case():
    assert {name for name, *_ in CASES} == set(decentral.algorithms.available())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("name", "compressor", "options"), CASES)
def test_ranks_share_the_gpu_and_train(name, compressor, options, size):
    results = run_local(size, lambda comm: train(comm, name, compressor, options))
    for first, last, average in results:
        assert last < 0.5 * first
        assert torch.equal(average, results[0][2])


def test_hosts_of_two_ranks_each():
    options = {"exchange": "two-level"}
    results = run_local(4, lambda c: train(c, "allreduce", LOSSY, options), hosts=[0, 0, 1, 1])
    assert all(last < 0.5 * first for first, last, _ in results)


@pytest.mark.parametrize("name", ["allreduce", "ecd-psgd"])
def test_as_on_the_cpu(name, monkeypatch):
    """Draws, codes and norms are the same; what differs is how the two add up a product."""
    there = run_local(2, lambda comm: train(comm, name, LOSSY, {}))
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
    here = run_local(2, lambda comm: train(comm, name, LOSSY, {}))
    assert there[0][0] == pytest.approx(here[0][0], rel=1e-3)
    assert there[0][1] == pytest.approx(here[0][1], rel=0.3)


@pytest.mark.parametrize("name", ["allreduce", "ecd-psgd"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_grad_scaler_and_autocast(name, kind):
    def rank(comm):
        model, opt = make(comm, name, LOSSY, {})
        scaler = torch.amp.GradScaler(DEVICE, enabled=kind is torch.float16)
        rng = torch.Generator().manual_seed(comm.rank)
        losses = []
        for _ in range(STEPS):
            x, y = batch_of(rng)
            opt.zero_grad()
            with torch.autocast(DEVICE, kind):
                loss = (model(x).float() - y).square().mean()
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            losses.append(loss.item())
        return losses[0], sum(losses[-5:]) / 5

    run_local(1, lambda comm: make(comm, name, LOSSY, {}))  # torch patches the class once
    for first, last in run_local(2, rank):
        assert last < 0.5 * first


@pytest.mark.parametrize("name", ["allreduce", "ecd-psgd"])
@pytest.mark.parametrize("direct", ["0", None], ids=["staged", "as MPI says"])
def test_over_mpi(name, direct):
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun on the PATH; pip install decentral[mpich]")
    environment = {k: v for k, v in os.environ.items() if k != "DECENTRAL_CUDA_AWARE"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {} if direct is None else {"DECENTRAL_CUDA_AWARE": direct}
    done = subprocess.run(
        ["mpirun", "-n", "2", sys.executable, SCRIPT, name, DEVICE],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert done.stdout.count("trained") == 2, said
    assert direct is None or DEVICE == "cpu" or "stages device buffers" in said, said
