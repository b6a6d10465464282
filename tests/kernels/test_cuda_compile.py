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

import pytest
from kernel_cases import BITS, LEVELS
from numba import config, float32, int32, int64, uint8, uint32

ROOT = Path(__file__).parents[2]
CAPABILITIES = [(8, 0), (9, 0)]  # A100; H100 and H200

FLOATS, BYTES = float32[::1], uint8[::1]
NORM = (FLOATS, int64, int64, FLOATS, int32[::1])
ENCODE = (FLOATS, uint32, uint32, int64, FLOATS, BYTES)
DECODE = (FLOATS, BYTES, int64, float32, FLOATS)

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
    absent = missing("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc")
    why = f"not installed: {', '.join(absent)}" if absent else "the simulator compiles nothing"
    return pytest.mark.skipif(bool(absent or config.ENABLE_CUDASIM), reason=why)(test)


def ptx_of(body, signature, capability):
    from numba import cuda

    ptx, _ = cuda.compile_ptx(body, signature, cc=capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    return ptx


def assert_exact_and_in_registers(ptx):
    assert ".visible .entry" in ptx
    assert not (found := INEXACT.search(ptx)), f"PTX holds {found.group()}"
    assert not LOCAL.search(ptx), "PTX uses local memory"


def capabilities_for(bits, *options):
    """Both for the default of 4 bits; else one, such that each meets each width and each option.

    Of a compilation nine tenths are typing and lowering, which know no capability.
    """
    return CAPABILITIES if bits == 4 else [CAPABILITIES[(bits + sum(options)) % 2]]


@compiles
@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("max_norm", [False, True], ids=["l2", "max"])
def test_norm_kernel(max_norm, capability):
    from decentral_kernels import cuda

    ptx = ptx_of(cuda.norm_kernel(max_norm), NORM, capability)
    assert_exact_and_in_registers(ptx)
    assert max_norm or "sqrt.rn.f32" in ptx


@compiles
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
def test_encode_kernel(bits, levels):
    from decentral_kernels import cuda

    exponential = levels == "exponential"
    for capability in capabilities_for(bits, exponential):
        ptx = ptx_of(cuda.encode_kernel(bits, exponential), ENCODE, capability)
        assert_exact_and_in_registers(ptx)
        assert "rcp.rn.f32" in ptx or "div.rn.f32" in ptx


@compiles
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("add", [False, True], ids=["write", "add"])
def test_decode_kernel(bits, levels, add):
    from decentral_kernels import cuda

    exponential = levels == "exponential"
    for capability in capabilities_for(bits, exponential, add):
        ptx = ptx_of(cuda.decode_kernel(bits, exponential, add), DECODE, capability)
        assert_exact_and_in_registers(ptx)


@compiles
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("levels", LEVELS)
def test_kernels_without_a_zero_level(bits, levels):
    from decentral_kernels import cuda

    exponential = levels == "exponential"
    for capability in capabilities_for(bits, exponential):
        encode = cuda.encode_kernel(bits, exponential, False)
        decode = cuda.decode_kernel(bits, exponential, True, False)
        assert_exact_and_in_registers(ptx_of(encode, ENCODE, capability))
        assert_exact_and_in_registers(ptx_of(decode, DECODE, capability))


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
