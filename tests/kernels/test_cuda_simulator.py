"""The CUDA kernels, run thread by thread in numba's simulator, equal the oracle.

The simulator has to be chosen before numba is imported, so these tests run where
NUMBA_ENABLE_CUDASIM=1 is set; test_cuda_compile.test_cuda_in_simulator starts such a process.
Sizes are small, since every CUDA thread is a Python thread here.
"""

import numpy as np
import pytest
from kernel_cases import BITS, LEVELS, NORMS, assert_equals_reference, encoded, vector
from numba import config

from decentral_kernels import Quantizer, reference

if not config.ENABLE_CUDASIM:
    pytest.skip(
        "needs NUMBA_ENABLE_CUDASIM=1 at start; test_cuda_in_simulator runs it in a subprocess",
        allow_module_level=True,
    )

cuda = pytest.importorskip("decentral_kernels.cuda", reason="numba-cuda is not installed")

# uint32 arithmetic wraps around, which numba does silently and NumPy's scalars do with a warning.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:overflow encountered in scalar {what}:RuntimeWarning")
    for what in ("multiply", "add", "subtract")
]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    # Kernels step over their work by the number of threads: any number computes the same.
    monkeypatch.setattr(cuda, "_THREADS", 8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
def test_every_width(bits, levels):
    whole_unit = [(1025, 1024)] if (bits % 2 == 0) == (levels == "uniform") else []
    for n, block_size in [(1, 100), (33, 100), *whole_unit]:
        x = vector("gaussian", n, seed=bits)
        q = Quantizer(bits, block_size, "max", levels)
        assert_equals_reference(cuda, x, q, weights=(-0.3,))


@pytest.mark.parametrize("threads", [1, 7, 32])
@pytest.mark.parametrize("norm", NORMS)
def test_number_of_threads(threads, norm, monkeypatch):
    monkeypatch.setattr(cuda, "_THREADS", threads)
    assert_equals_reference(cuda, vector("gaussian", 70), Quantizer(3, 40, norm, "uniform"))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("n", "block_size"), [(1, 1), (33, 20), (150, 100), (1100, 1024)])
def test_l2_norm(levels, n, block_size):
    assert_equals_reference(cuda, vector("gaussian", n), Quantizer(4, block_size, "l2", levels))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "kind", ["zeros", "one-hot", "denormal", "1e30", "mixed", "negative-zeros"]
)
def test_kinds_of_values(norm, kind):
    # The squares of 1e30 and of denormals leave float32: the norm is taken again in float64.
    assert_equals_reference(cuda, vector(kind, 90), Quantizer(4, 100, norm, "exponential"))


def test_only_the_blocks_that_need_it_take_the_norm_in_float64():
    x = vector("gaussian", 60)
    x[:20] *= np.float32(1e-25)
    x[40:] *= np.float32(1e25)
    assert_equals_reference(cuda, x, Quantizer(3, 20, "l2", "uniform"))


# What is written of a refused vector has no meaning: an inf times the zero of its block is NaN.
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar multiply:RuntimeWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [np.nan, -np.inf, 2.0**126])
def test_first_bad_block(norm, value):
    x = vector("gaussian", 35)
    x[[33, 17]] = value
    q = Quantizer(4, 10, norm, "exponential")
    assert encoded(reference, x, q)[0] == encoded(cuda, x, q)[0] == 1


def test_an_empty_vector():
    assert_equals_reference(cuda, np.zeros(0, np.float32), Quantizer(4, 100, "l2", "uniform"))


def test_a_grid_smaller_than_the_work(monkeypatch):
    # On a GPU this takes a vector of more than 65536 blocks or units.
    monkeypatch.setattr(cuda, "_MAX_GRID", 2)
    assert_equals_reference(cuda, vector("gaussian", 3500), Quantizer(5, 900, "max", "uniform"))


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("levels", LEVELS)
def test_without_a_zero_level(bits, levels):
    q = Quantizer(bits, 100, "l2", levels, zero_level=False)
    for kind in ("gaussian", "negative-zeros"):
        assert_equals_reference(cuda, vector(kind, 300), q)
