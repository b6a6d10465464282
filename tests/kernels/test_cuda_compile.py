"""The CUDA kernels compile for real GPUs on a machine that has none, and equal the oracle.

The compiler sees the kernels' types and the simulator what they compute: each is blind to what the
other sees. Compiling needs numba-cuda and NVIDIA's compiler as wheels (the extra "test").
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from kernel_cases import BITS, LEVELS
from numba import boolean, config, float32, int32, int64, types, uint8, uint16, uint32
from ptxas import assemble

from decentral_kernels import Quantizer

ROOT = Path(__file__).parents[2]
CAPABILITIES = [(8, 0), (9, 0)]  # A100; H100 and H200
on_each = pytest.mark.parametrize("capability", CAPABILITIES, ids=["sm_80", "sm_90"])


def in_turn(bits):
    """Return one of them: what depends on the bits is the same for both, and compiling is slow."""
    return CAPABILITIES[bits % 2]


FLOATS, BYTES, WORDS = float32[::1], uint8[::1], uint32[::1]
SOURCES = {"float32": WORDS, "bfloat16": uint16[::1], "float16": uint16[::1]}
# A multiprocessor has registers for 2048 / this / 32 warps; memory is busy with half of them.
REGISTERS = 64
SHARED = 40 << 10  # of a block, so that an A100's multiprocessor, with 164 KiB, has four

# A fused multiply-add rounds once where the other implementations round twice; approximations and
# flushed denormals differ too. (In float64, where squares of float32 are exact, it does no harm.)
INEXACT = re.compile(r"\b(?:fma|mad)\.(?:\w+\.)*f32\b|\.approx\b|\.ftz\b")
# Local memory is slow DRAM for what did not fit the registers. (".loc" is another thing.)
LOCAL = re.compile(r"^\s*\.local\b|\b(?:ld|st)\.(?:volatile\.)?local\b", re.MULTILINE)


def missing(*distributions):
    """Return which of these distributions are not installed."""

    def absent(name):
        try:
            return not importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return True

    return [name for name in distributions if absent(name)]


def compiles(test):
    absent = missing("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc")
    why = f"not installed: {', '.join(absent)}" if absent else "the simulator compiles nothing"
    return pytest.mark.skipif(bool(absent or config.ENABLE_CUDASIM), reason=why)(test)


def ptx_of(body, signature, capability):
    from numba import cuda

    # Device functions ask for the GPU that they are compiled for.
    gpu = SimpleNamespace(compute_capability=capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", lambda: gpu):
        ptx, _ = cuda.compile_ptx(body, signature, cc=capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    return ptx


def checked(body, signature, capability):
    """Return a kernel's PTX, which is exact and keeps everything in registers."""
    ptx = ptx_of(body, signature, capability)
    assert ".visible .entry" in ptx
    assert not (found := INEXACT.search(ptx)), f"PTX holds {found.group()}"
    assert not LOCAL.search(ptx), "PTX uses local memory"
    report = assemble(ptx, capability)
    assert report.stack == report.spilled == 0, report
    assert report.registers <= REGISTERS and report.shared <= SHARED, report
    return ptx


def norm(max_norm, capability, source="float32"):
    from decentral_kernels.cuda_norms import norm_kernel

    signature = (SOURCES[source], int64, int64, FLOATS, int32[::1])
    return checked(norm_kernel(max_norm, source), signature, capability)


def encode(q, capability, source="float32"):
    from decentral_kernels.cuda_encode import encode_kernel

    signature = (SOURCES[source], uint32, uint32, boolean, boolean, FLOATS, BYTES, int32[::1])
    return checked(encode_kernel(q, source), signature, capability)


def decode(q, is_sum, messages, capability):
    from decentral_kernels.cuda_decode import decode_kernel

    many = [types.UniTuple(kind, messages) for kind in (FLOATS, BYTES, float32)]
    return checked(decode_kernel(q, is_sum, messages), (*many, boolean, WORDS), capability)


def has_wide(ptx, what, space="global"):
    """Return whether PTX loads, or stores, four values at once."""
    return re.search(rf"\b{what}\.{space}\.(?:nc\.)?v4\.[bfu]32\b", ptx) is not None


@compiles
@on_each
@pytest.mark.parametrize("max_norm", [False, True], ids=["l2", "max"])
def test_norm_kernel(max_norm, capability):
    ptx = norm(max_norm, capability)
    assert max_norm or "sqrt.rn.f32" in ptx


@compiles
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
def test_encode_kernel(bits, levels):
    ptx = encode(Quantizer(bits, 8192, "l2", levels), in_turn(bits))
    assert "rcp.rn.f32" in ptx or "div.rn.f32" in ptx
    assert "sqrt.rn.f32" in ptx  # the norms are taken in the same launch
    assert has_wide(ptx, "ld") and has_wide(ptx, "ld", "shared")
    assert re.search(r"\bst\.global\.[bu]32\b", ptx)


@compiles
@pytest.mark.parametrize("block_size", [64, 1024, 3072])
@on_each
def test_encode_kernel_of_other_blocks(block_size, capability):
    assert "sqrt.rn.f32" in encode(Quantizer(4, block_size, "l2", "exponential"), capability)


@compiles
@pytest.mark.parametrize("block_size", [1, 100, 16384])
@on_each
def test_encode_kernel_that_reads_the_norms(block_size, capability):
    assert "sqrt" not in encode(Quantizer(4, block_size, "l2", "exponential"), capability)


@compiles
@pytest.mark.parametrize("block_size", [100, 8192])
@on_each
def test_max_norm(block_size, capability):
    assert "sqrt" not in encode(Quantizer(4, block_size, "max", "uniform"), capability)


@compiles
@pytest.mark.parametrize("source", ["bfloat16", "float16"])
@on_each
def test_sources_of_16_bits(source, capability):
    ptx = encode(Quantizer(4, 8192, "l2", "exponential"), capability, source)
    assert re.search(r"\bld\.global\.(?:nc\.)?[bu]64\b", ptx)  # four values
    norm(False, capability, source)


@compiles
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("is_sum", [False, True], ids=["write", "add"])
def test_decode_kernel(bits, levels, is_sum):
    ptx = decode(Quantizer(bits, 8192, "l2", levels), is_sum, 1, in_turn(bits))
    assert has_wide(ptx, "st") and has_wide(ptx, "ld") == is_sum


@compiles
@pytest.mark.parametrize(("bits", "messages"), [(4, 2), (7, 3), (3, 4)])
@on_each
def test_decode_kernel_of_several_messages(bits, messages, capability):
    decode(Quantizer(bits, 8192, "l2", "exponential"), True, messages, capability)


@compiles
@on_each
def test_decode_kernel_where_four_coordinates_have_several_scales(capability):
    decode(Quantizer(4, 7, "max", "uniform"), True, 1, capability)


@compiles
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("levels", LEVELS)
@on_each
def test_kernels_without_a_zero_level(bits, levels, capability):
    q = Quantizer(bits, 8192, "l2", levels, zero_level=False)
    encode(q, capability)
    decode(q, True, 1, capability)


@compiles
def test_the_checks_of_the_ptx_find_what_they_look_for():
    from numba import cuda

    def fused(x, scales, out):
        out[0] = x[0] * scales[0] + x[1]

    def spilled(x, scales, out):
        local = cuda.local.array(64, float32)
        for i in range(64):
            local[i] = x[i]
        out[0] = local[int(scales[0])]

    assert INEXACT.search(ptx_of(fused, (FLOATS, FLOATS, FLOATS), (9, 0)))
    assert LOCAL.search(ptx_of(spilled, (FLOATS, FLOATS, FLOATS), (9, 0)))
    ptx = decode(Quantizer(4, 8192, "l2", "exponential"), True, 3, (9, 0))
    report = assemble(ptx, (9, 0), registers=24)
    assert report.registers == 24 and report.stack > 0 and report.spilled > 0


@pytest.mark.skipif(bool(missing("numba-cuda")), reason="not installed: numba-cuda")
@pytest.mark.skipif(bool(config.ENABLE_CUDASIM), reason="this process is the simulator itself")
def test_cuda_in_simulator():
    target = "tests/kernels/test_cuda_simulator.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", target],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    passed = re.search(r"\b(\d+) passed\b", report)
    assert passed and int(passed[1]) > 0 and "skipped" not in report, report
