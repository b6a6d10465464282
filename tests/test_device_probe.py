"""Device memory is given to MPI only if the library says so and a child process has tried it."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from decentral import device_probe
from decentral.communicators import probe

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_is_overridden(monkeypatch):
    monkeypatch.delenv("DECENTRAL_CUDA_AWARE", raising=False)


def never():
    raise AssertionError("tried, though nobody said that it could work")


@pytest.mark.parametrize(("said", "answer"), [("1", True), ("0", False)])
def test_the_user_knows_best(monkeypatch, said, answer):
    monkeypatch.setenv("DECENTRAL_CUDA_AWARE", said)
    monkeypatch.setattr(probe, "claims_cuda", never)
    assert probe.cuda_aware(never) is answer


@pytest.mark.parametrize("arrives", [True, False])
def test_what_a_library_claims_is_tried(monkeypatch, arrives):
    monkeypatch.setattr(probe, "claims_cuda", lambda: True)
    assert probe.cuda_aware(lambda: arrives) is arrives


def test_what_no_library_claims_is_not_tried(monkeypatch):
    monkeypatch.setattr(probe, "claims_cuda", lambda: False)
    assert probe.cuda_aware(never) is False


class OpenMPI:
    def __init__(self, answer):
        self.MPIX_Query_cuda_support = lambda: answer


class MPICH:
    """An MPICH, of which older ones have no MPIX_Query_cuda_support."""

    def __init__(self, answer):
        self.answer = answer

    def MPIX_GPU_query_support(self, kind, result):
        assert kind == 0
        ctypes.cast(result, ctypes.POINTER(ctypes.c_int))[0] = self.answer
        return 0


@pytest.mark.parametrize("library", [OpenMPI, MPICH])
@pytest.mark.parametrize("answer", [0, 1])
def test_both_queries(library, answer):
    assert probe._says_yes(library(answer)) is bool(answer)


def test_a_library_without_a_query_says_no():
    assert not probe._says_yes(object())


def test_ucx_with_its_module_for_cuda_claims_it(monkeypatch):
    found = {"libuct_cuda": "/lib/ucx/libuct_cuda.so.0", "libmpi": None}
    monkeypatch.setattr(probe, "_loaded", found.get)
    assert probe.claims_cuda()
    found["libuct_cuda"] = None
    assert not probe.claims_cuda()


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("pass", True),
        ("raise SystemExit(1)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False),
    ],
)
def test_a_child_that_fails_or_crashes_is_a_no(code, answer):
    assert device_probe.arrives(DEVICE, [sys.executable, "-c", code]) is answer


def test_a_child_that_hangs_is_a_no(monkeypatch):
    monkeypatch.setattr(device_probe, "_TIMEOUT_S", 0.2)
    assert not device_probe.arrives(DEVICE, [sys.executable, "-c", "import time; time.sleep(60)"])


def test_the_child_is_no_rank_of_the_job(monkeypatch):
    for name in ("PMI_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    code = "import os; wrong = [k for k in os.environ if k.startswith(('PMI', 'SLURM'))]\n"
    code += "raise SystemExit(len(wrong) + ('OMPI_COMM_WORLD_RANK' in os.environ) "
    code += "+ ('OMPI_ALLOW_RUN_AS_ROOT' not in os.environ))"
    assert device_probe.arrives(DEVICE, [sys.executable, "-c", code])
    assert "PMI_RANK" in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_real_child_says_no():
    done = subprocess.run(
        [sys.executable, "-m", "decentral.device_probe", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "no GPU" in done.stderr
    assert not device_probe.arrives(DEVICE)
