"""The CUDA kernels, run thread by thread in numba's simulator, equal the oracle.

The simulator has to be chosen before numba is imported, so these tests run where
NUMBA_ENABLE_CUDASIM=1 is set; test_cuda_compile.test_cuda_in_simulator starts such a process.
Sizes are small, since every CUDA thread is a Python thread here.
"""

import threading
import time

import numpy as np
import pytest
from kernel_cases import (
    BITS,
    LEVELS,
    NORMS,
    assert_equals_reference,
    assert_same_bits,
    encoded,
    vector,
)
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
    # So do thread blocks, here of no more than the simulator starts in a reasonable time.
    monkeypatch.setattr(cuda, "_THREADS", 8)
    monkeypatch.setattr(cuda, "_MAX_GRID", 4)


def displaced(array):
    """Return the same values 4 bytes further than memory is aligned."""
    return np.concatenate([np.zeros(1, array.dtype), array])[1:]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
def test_every_width(bits, levels):
    # A unit and a rest of a block that is one; less than a unit of blocks that fill none.
    for n, block_size in [(1029, 1024), (33, 100)]:
        x = vector("gaussian", n, seed=bits)
        q = Quantizer(bits, block_size, "max", levels)
        assert_equals_reference(cuda, x, q, weights=(-0.3,))


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("levels", LEVELS)
def test_every_family_without_a_zero_level(bits, levels):
    q = Quantizer(bits, 64, "l2", levels, zero_level=False)
    for kind in ("gaussian", "negative-zeros"):
        assert_equals_reference(cuda, vector(kind, 1024 + 65), q, weights=(1 / 3,))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("block_size", "sizes"),
    [
        (4, (3, 4, 5)),  # the smallest block that is encoded in one launch
        (64, (63, 64, 65, 2049)),  # a tile is 2048 of them
        (1024, (1023, 1024)),
        (2048, (2049,)),
        (3072, (3071,)),  # three rows
        (8192, (8191,)),
    ],
)
def test_blocks_that_are_read_once(norm, block_size, sizes):
    for n in sizes:
        q = Quantizer(4, block_size, norm, "exponential")
        assert_equals_reference(cuda, vector("gaussian", n), q, weights=(-0.3,))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("block_size", "n"), [(1, 5), (7, 1030), (100, 2050), (9216, 1025)])
def test_blocks_that_are_read_twice(norm, block_size, n):
    q = Quantizer(3, block_size, norm, "uniform")
    assert_equals_reference(cuda, vector("gaussian", n), q, weights=(-0.3,))


@pytest.mark.parametrize("threads", [1, 7, 32])
@pytest.mark.parametrize("block_size", [40, 32])
def test_number_of_threads(threads, block_size, monkeypatch):
    monkeypatch.setattr(cuda, "_THREADS", threads)
    assert_equals_reference(cuda, vector("gaussian", 70), Quantizer(3, block_size, "l2", "uniform"))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("block_size", [100, 64])
@pytest.mark.parametrize(
    "kind", ["zeros", "one-hot", "denormal", "1e30", "mixed", "negative-zeros"]
)
def test_kinds_of_values(norm, block_size, kind):
    # The squares of 1e30 and of denormals leave float32: the norm is taken again in float64.
    q = Quantizer(4, block_size, norm, "exponential")
    assert_equals_reference(cuda, vector(kind, 90), q, weights=(-0.3,))


@pytest.mark.parametrize("block_size", [20, 16])
def test_only_the_blocks_that_need_it_take_the_norm_in_float64(block_size):
    x = vector("gaussian", 60)
    x[:block_size] *= np.float32(1e-25)
    x[2 * block_size :] *= np.float32(1e25)
    assert_equals_reference(cuda, x, Quantizer(3, block_size, "l2", "uniform"))


# What is written of a refused vector has no meaning: an inf times the zero of its block is NaN.
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar multiply:RuntimeWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("block_size", [10, 16])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 2.0**126])
def test_first_bad_block(norm, block_size, value):
    x = vector("gaussian", 55)
    x[[53, 17]] = value
    q = Quantizer(4, block_size, norm, "exponential")
    assert encoded(reference, x, q)[0] == encoded(cuda, x, q)[0] == 1
    assert encoded(cuda, vector("gaussian", 55), q)[0] == -1  # and nothing is left of it


def test_an_empty_vector():
    assert_equals_reference(cuda, np.zeros(0, np.float32), Quantizer(4, 100, "l2", "uniform"))


@pytest.mark.parametrize("block_size", [900, 1024])
def test_a_grid_smaller_than_the_work(block_size, monkeypatch):
    # On a GPU this takes a vector of more than 65536 blocks or units.
    monkeypatch.setattr(cuda, "_MAX_GRID", 1)
    q = Quantizer(5, block_size, "max", "uniform")
    assert_equals_reference(cuda, vector("gaussian", 2100), q, weights=(-0.3,))


def test_memory_that_is_not_aligned():
    q, x = Quantizer(4, 1024, "l2", "exponential"), vector("gaussian", 1100)
    _, scales, codes = encoded(reference, x, q)
    got_scales, got_codes = np.empty_like(scales), displaced(np.zeros_like(codes))
    assert cuda.encode(displaced(x), (1, 2), q, got_scales, got_codes) == -1
    assert reference.encode(x, (1, 2), q, scales, codes) == -1
    assert_same_bits(got_scales, scales, "scales")
    assert_same_bits(got_codes, codes, "codes")
    out, expected = displaced(np.zeros(1100, np.float32)), np.zeros(1100, np.float32)
    cuda.decode(scales, got_codes, q, out)
    reference.decode(scales, codes, q, expected)
    assert_same_bits(out, expected, "decoded")


@pytest.mark.parametrize(("bits", "count"), [(3, 2), (4, 3), (7, 6)])
def test_several_messages_in_order(bits, count):
    q, n = Quantizer(bits, 64, "l2", "uniform"), 1090
    messages = []
    for i in range(count):
        _, scales, codes = encoded(reference, vector("gaussian", n, seed=i), q)
        messages.append((scales, codes, 0.7 - i))
    out, expected = np.ones(n, np.float32), np.ones(n, np.float32)
    cuda.accumulate_all(messages, q, out)
    for scales, codes, weight in messages:
        reference.accumulate(scales, codes, q, expected, weight)
    assert_same_bits(out, expected, "accumulated")


def test_threads_launch_in_turn(monkeypatch):
    """The first launch of a kernel loads it, which two threads must not do at once."""
    inside, most = [], []

    class Kernel:
        def __getitem__(self, grid):
            return self

        def __call__(self, *arguments):
            inside.append(1)
            time.sleep(0.01)
            most.append(len(inside))
            inside.pop()

    monkeypatch.setattr(cuda, "_compiled", lambda *kernel: Kernel())
    q = Quantizer(4, 1024, "l2", "exponential")
    _, scales, codes = encoded(reference, np.ones(100, np.float32), q)
    out = np.zeros(100, np.float32)
    threads = [threading.Thread(target=cuda.decode, args=(scales, codes, q, out)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


class Brain:
    """A vector of bfloat16, as the door sees torch's: NumPy has no such type."""

    dtype = "torch.bfloat16"

    def __init__(self, bits):
        self._bits, self.shape = bits, bits.shape

    def view(self, dtype):
        return self._bits.view(dtype)


@pytest.mark.parametrize("block_size", [1024, 100])
@pytest.mark.parametrize("source", ["bfloat16", "float16"])
def test_values_of_16_bits(source, block_size):
    q, x = Quantizer(4, block_size, "l2", "exponential"), vector("gaussian", 1040)
    x[:3] = [1e-7, -3e-6, 0]  # denormals of float16
    if source == "float16":
        given = x.astype(np.float16)
        x = given.astype(np.float32)
    else:
        given = Brain((x.view(np.uint32) >> 16).astype(np.uint16))
        x = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    _, scales, codes = encoded(reference, x, q, key=(1, 2))
    got_scales, got_codes = np.empty_like(scales), np.zeros_like(codes)
    assert cuda.encode(given, (1, 2), q, got_scales, got_codes) == -1
    assert_same_bits(got_scales, scales, "scales")
    assert_same_bits(got_codes, codes, "codes")
