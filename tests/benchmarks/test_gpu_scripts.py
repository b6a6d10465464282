"""The benchmarks for a GPU, as far as they go without one: flags, sizes, tables, the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from decentral.communicators import run_local
from decentral_kernels import Quantizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_found  # noqa: E402
import gpu_step  # noqa: E402

without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@without_a_gpu
@pytest.mark.parametrize("script", ["gpu_found.py", "gpu.py", "gpu_step.py"])
def test_without_a_gpu_there_is_one_clear_message(script):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{script}: error: needs an NVIDIA GPU")


def test_flags():
    assert gpu.parse([]).numel == 1 << 28
    assert gpu_step.parse(["--batch", "2", "--steps", "1"]).batch == 2


@pytest.mark.parametrize(
    ("parse", "flags"), [(gpu.parse, ["--numel", "5"]), (gpu_step.parse, ["--steps", "0"])]
)
def test_flags_that_make_no_sense(parse, flags, capsys):
    with pytest.raises(SystemExit):
        parse(flags)
    assert "at least" in capsys.readouterr().err


def test_vectors_fit_into_the_memory_that_is_free():
    assert gpu.fitting(1 << 28, 80 << 30) == 1 << 28
    assert gpu.fitting(1 << 28, 8 << 30) == 1 << 26
    assert gpu.fitting((1 << 20) + 5, 8 << 30) == 1 << 20


def test_bytes_that_must_be_moved():
    q = Quantizer(4, 8192, "l2", "exponential")
    numel = 1 << 14
    codes = numel // 2 + 4 * 2
    assert gpu.moved(q, numel) == 4 * numel + codes
    assert gpu.moved(q, numel, 3, result=4) == 8 * numel + 3 * codes
    assert gpu.moved(q, numel, source_nbytes=2) == 2 * numel + codes


def test_a_row_is_a_share_of_the_copy():
    row = gpu.row("encode", 3e9, 2e-3, copy_speed=2e12)
    assert row == pytest.approx({"what": "encode", "ms": 2, "GB/s": 1500, "share": 0.75})
    assert gpu.table([row]).splitlines()[-1] == "| encode | 2.000 | 1500 | 0.75 |"


def test_every_width_and_family_is_measured():
    quantizers = [q for _, q in gpu.quantizers()]
    assert {q.bits for q in quantizers} == set(range(2, 9))
    assert {q.levels for q in quantizers} == {"uniform", "exponential"}
    assert {q.norm for q in quantizers} == {"l2", "max"}


def test_torchs_own_quantizer_takes_tensors():
    x = torch.randn(1 << 14)
    out = torch.zeros_like(x)
    compress, add = gpu.torch_levels(x, out, 8192, exponential=True)
    compress()
    add()
    assert 0 < float((out / gpu.WEIGHT - x).norm() / x.norm()) < 1


@pytest.mark.parametrize(
    ("override", "claims", "arrived", "words"),
    [
        ("1", False, False, "is handed to MPI (DECENTRAL_CUDA_AWARE=1)"),
        ("0", True, False, "pinned host memory (DECENTRAL_CUDA_AWARE=0)"),
        (None, False, False, "pinned host memory (the library does not say"),
        (None, True, True, "is handed to MPI (it says that it is CUDA-aware"),
        (None, True, False, "has NOT seen device memory arrive"),
    ],
)
def test_the_path_in_words(override, claims, arrived, words):
    assert words in gpu_found.path(override, claims, arrived)


def test_the_model_is_a_resnet_50():
    assert sum(p.numel() for p in gpu_step.resnet50().parameters()) == 25_557_032


@pytest.mark.parametrize("system", gpu_step.SYSTEMS)
def test_steps_are_measured_alike_on_all_ranks(system):
    def rank(comm):
        torch.manual_seed(comm.rank)
        model = torch.nn.Linear(20, 5)
        images, labels = torch.randn(4, 20), torch.randint(5, (4,))
        return gpu_step.measure(comm, system, model, images, labels, steps=2)

    first, second = run_local(2, rank)
    assert first["seconds"] == second["seconds"] and len(first["seconds"]) == 2
    assert first["bytes_sent"] > 0
    assert gpu_step.table({system: first}).count("|") == 3 * 5
