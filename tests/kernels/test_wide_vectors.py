"""Kernels use what a processor has: vectors of 512 bits where those pay, and looked up values."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features
from numba import float32, njit, types

from decentral_kernels import cpu, cpu_integer, cpu_parts, cpu_sign
from decentral_kernels.elementwise import Elementwise

ATTRIBUTE = '"prefer-vector-width"="512"'
KERNELS = {
    "encode": lambda: cpu.encoder(4, True, False),
    "decode": lambda: cpu.decoder(4, True, add=True),
    "round": lambda: cpu_integer.rounder(8, random=True),
    "expand": lambda: cpu_integer.expander(8, add=True),
    "natural": lambda: cpu_sign.natural_encoder(),
    "signs": lambda: cpu_sign.sign_decoder(add=True),
    "formula": lambda: Elementwise(doubled).loop,
}


def doubled(x):
    return (x + x,)


def compiled():
    """Return a loop compiled anew."""

    def add_one(x):
        cpu_parts.wide()
        for i in range(x.size):
            x[i] += np.float32(1)

    return njit(types.void(float32[::1]))(add_one)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True}, False),
        ({"avx512f": True, "avx512vbmi2": False}, False),  # Skylake's clock would fall
        ({"avx512f": True, "avx512vbmi2": True}, True),
    ],
)
def test_the_processor_decides(monkeypatch, features, expected):
    monkeypatch.setattr(cpu_parts, "get_host_cpu_features", lambda: features)
    assert cpu_parts.has_wide_vectors() == expected
    add_one = compiled()
    (text,) = add_one.inspect_llvm().values()
    assert (ATTRIBUTE in text) == expected
    x = np.arange(100, dtype=np.float32)
    add_one(x)
    assert (x == np.arange(1, 101)).all()


def test_an_unknown_system_has_none(monkeypatch):
    def refuse():
        raise RuntimeError("cpu features")

    monkeypatch.setattr(cpu_parts, "get_host_cpu_features", refuse)
    assert not cpu_parts.has_wide_vectors()


# What numba is told to compile for, and how many codes are then looked up at once.
PROCESSORS = [("haswell", "+avx2,+fma", 8), ("generic", "", 0)]
DECODES = """
import sys
import numpy as np
from kernel_cases import assert_same_bits, encoded, vector
from decentral_kernels import Quantizer, backend, cpu_lookup, reference

for bits, levels in ((2, "exponential"), (3, "uniform"), (4, "exponential"), (5, "uniform")):
    q, x = Quantizer(bits, 2048, "l2", levels), vector("mixed", 9000)
    _, scales, codes = encoded(reference, x, q)
    for name, more in (("decode", ()), ("accumulate", (-0.3,))):
        out, expected = np.full((2, x.size), 0.1, np.float32)
        getattr(reference, name)(scales, codes, q, expected, *more)
        getattr(backend, name)(scales, codes, q, out, *more)
        assert_same_bits(out, expected, f"{q}: {name}")
assert cpu_lookup.lookup_width(4) == int(sys.argv[1])
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of that kind")
@pytest.mark.parametrize(("name", "features", "width"), PROCESSORS)
def test_other_processors_decode_alike(name, features, width, tmp_path):
    here = Path(__file__).parent
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    told |= {"NUMBA_CACHE_DIR": str(tmp_path)}
    told |= {"PYTHONPATH": os.pathsep.join([str(here), str(Path(cpu.__file__).parents[1])])}
    words = [sys.executable, "-c", DECODES, str(width)]
    done = subprocess.run(words, env=os.environ | told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not cpu_parts.has_wide_vectors(), reason="needs a processor that has them")
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_do_use_them(name):
    assert get_host_cpu_features()["avx512f"]
    kernel = KERNELS[name]()
    again = njit(kernel.signatures[0])(kernel.py_func)  # what the disk cache held has no assembly
    (code,) = again.inspect_asm().values()
    assert code.count("zmm") > code.count("ymm")
