"""The numba kernels equal the oracle byte for byte, on one thread and on several."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from kernel_cases import (
    BITS,
    BLOCK_SIZES,
    KINDS,
    LEVELS,
    NORMS,
    SIZES,
    assert_equals_reference,
    encoded,
    vector,
)

import decentral_kernels
from decentral_kernels import Quantizer, backend, cpu, cpu_in_parts, fold_key, reference
from decentral_kernels import threads as kernel_threads
from decentral_kernels.layout import UNIT

# Each family starts at another place in the list of block sizes, so that each width meets each
# size four times, each time with another block size, and each block size several times.
FAMILIES = [
    (norm, levels, 2 * i)
    for i, (norm, levels) in enumerate((norm, levels) for norm in NORMS for levels in LEVELS)
]

families = pytest.mark.parametrize(("norm", "levels", "shift"), FAMILIES)
widths = pytest.mark.parametrize("bits", BITS)


@pytest.fixture
def threads():
    """Return the setter of the number of threads, and undo what it did."""
    before = decentral_kernels.get_num_threads()
    yield decentral_kernels.set_num_threads
    decentral_kernels.set_num_threads(before)


def test_the_sample_of_sizes_covers_what_it_should():
    for bits in BITS:
        pairs = {case[:2] for *_, shift in FAMILIES for case in cases(bits, shift)}
        assert {n for n, _ in pairs} == set(SIZES)
        assert {block_size for _, block_size in pairs} == set(BLOCK_SIZES)
        assert len(pairs) == len(FAMILIES) * len(SIZES)


def cases(bits, shift):
    start = bits + shift
    return [(n, BLOCK_SIZES[(start + i) % len(BLOCK_SIZES)]) for i, n in enumerate(SIZES)]


@widths
@families
def test_sizes_and_block_sizes(bits, norm, levels, shift):
    for n, block_size in cases(bits, shift):
        x = vector("gaussian", n, seed=bits)
        assert_equals_reference(backend, x, Quantizer(bits, block_size, norm, levels))


@widths
@families
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_values(bits, norm, levels, shift, kind):
    x = vector(kind, 1500)
    for block_size in (100, 1024):
        assert_equals_reference(backend, x, Quantizer(bits, block_size, norm, levels))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", LEVELS)
def test_keys_matter_and_are_used_whole(norm, levels):
    x, q = vector("gaussian", 1000), Quantizer(4, 100, norm, levels)
    for key in [(0, 0), (2**32 - 1, 2**32 - 1), (1, 2**31), fold_key(2**63, -1)]:
        assert_equals_reference(backend, x, q, key)
    _, _, plain = encoded(backend, x, q, (1, 2))
    for key in [(1, 3), (3, 2), (1, 2 + 2**31), (1 + 2**31, 2)]:
        assert (encoded(backend, x, q, key)[2] != plain).any()


# --- what cannot be encoded

QUIET_NAN = np.uint32(0xFFC00001).view(np.float32)
SIGNALING_NAN = np.uint32(0x7F800001).view(np.float32)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("block_size", [64, 4096])
@pytest.mark.parametrize(
    "value", [np.nan, QUIET_NAN, SIGNALING_NAN, np.inf, -np.inf, 2.0**126, -3e38]
)
@pytest.mark.parametrize("places", [[0], [4096, 9000], [9000, 5000], [9999]], ids=str)
def test_first_bad_block(norm, block_size, value, places):
    x = vector("gaussian", 10000)
    x[places] = value
    q = Quantizer(4, block_size, norm, "exponential")
    assert encoded(reference, x, q)[0] == min(places) // block_size
    assert encoded(backend, x, q)[0] == min(places) // block_size


def test_a_norm_can_be_too_large_though_no_coordinate_is():
    x = np.full(300, 2.0**124, np.float32)
    for block_size, norm, expected in [(15, "l2", -1), (16, "l2", 0), (300, "max", -1)]:
        q = Quantizer(4, block_size, norm, "uniform")
        assert encoded(reference, x, q)[0] == encoded(backend, x, q)[0] == expected


# --- threads

LONG = 3 * backend.GRAIN + 12345  # enough for three threads


@pytest.fixture
def shared(monkeypatch):
    """Count into how many ranges each call was split, the caller's own among them."""
    counts = []
    pool = kernel_threads._pool

    class Counting:
        def __init__(self, threads):
            self.pool = pool(threads)

        def map(self, run, firsts, lasts):
            counts.append(1 + len(firsts))
            return self.pool.map(run, firsts, lasts)

    monkeypatch.setattr(kernel_threads, "_pool", Counting)
    return counts


@pytest.mark.parametrize(
    ("bits", "norm", "levels"),
    [(3, "max", "uniform"), (4, "l2", "exponential"), (8, "l2", "uniform")],
)
@pytest.mark.parametrize("block_size", [100, 8191, 8192, 150_000, LONG + 1])
def test_threads_give_the_same_bytes(bits, norm, levels, block_size, threads, shared):
    # No block size but 8192 divides a thread's share, and the last two are larger than one.
    q = Quantizer(bits, block_size, norm, levels)
    x = vector("gaussian", LONG)
    for count in (2, 3):
        threads(count)
        assert_equals_reference(backend, x, q, weights=(1 / 3,))
    assert shared == [2, 2, 2, 3, 3, 3]  # encode, decode, accumulate


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_find_the_first_bad_block(count, threads):
    threads(count)
    q = Quantizer(4, 1000, "l2", "exponential")
    for places in ([390_000, 7], [LONG - 1], [200_000, 199_000], [LONG - 1, 140_500]):
        x = np.zeros(LONG, np.float32)
        x[places] = np.inf
        assert encoded(backend, x, q)[0] == min(places) // 1000


def test_a_short_vector_stays_on_one_thread(threads, shared):
    threads(3)
    x = vector("gaussian", 2 * backend.GRAIN - UNIT)
    assert_equals_reference(backend, x, Quantizer(4, 8192, "l2", "exponential"), weights=())
    assert shared == []


@pytest.mark.parametrize("count", [0, -1])
def test_number_of_threads_is_checked(count, threads):
    with pytest.raises(ValueError, match=rf"kernel threads must be at least 1, got {count}"):
        threads(count)
    assert decentral_kernels.get_num_threads() >= 1


def _overlaps(run):
    """Return whether the main thread ever ran while `run` was running on another thread.

    No thread gives up the lock because its time is over, since that is a minute here: only `run`
    can release it between the two assignments.
    """
    inside = seen = False

    def work():
        nonlocal inside
        for _ in range(1000):
            inside = True
            run()
            inside = False
            if seen:
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            seen = seen or inside
            time.sleep(0)  # hands the lock over
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    return seen


@pytest.mark.parametrize("work", ["encode", "decode", "accumulate"])
def test_kernels_release_the_gil(work):
    x = vector("gaussian", 200_000)
    _, scales, codes = encoded(backend, x, Quantizer(4, 8192, "l2", "exponential"))
    args = (scales, codes, 8192, np.float32(1), np.zeros_like(x), 0, 0, x.size // UNIT)
    if work == "encode":
        kernel = cpu.encoder(4, True, False)
        args = (x, np.uint32(1), np.uint32(2), 8192, 1024, scales, codes, 0, x.size // UNIT)
    else:
        kernel = cpu.decoder(4, True, work == "accumulate")
    assert _overlaps(lambda: kernel(*args))
    assert not _overlaps(lambda: sum(range(5000)))  # or the line above would mean nothing


# --- the disk cache

COMPILE = """
import json
from decentral_kernels import cpu, cpu_in_parts
kernels = cpu.encoder(4, True, False), cpu.decoder(4, True, True), cpu_in_parts.adder()
hits, misses = ([sum(getattr(k.stats, name).values()) for k in kernels]
                for name in ("cache_hits", "cache_misses"))
print(json.dumps({"hits": hits, "misses": misses}))
"""


def test_a_second_process_loads_the_kernels_instead_of_compiling(tmp_path):
    def fresh_process():
        root = os.path.dirname(os.path.dirname(decentral_kernels.__file__))
        done = subprocess.run(
            [sys.executable, "-c", COMPILE],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert fresh_process() == {"hits": [0, 0, 0], "misses": [1, 1, 1]}
    assert fresh_process() == {"hits": [1, 1, 1], "misses": [0, 0, 0]}


def test_compiling_ahead_leaves_nothing_to_compile_or_load_later():
    made = (cpu.encoder, cpu.decoder, cpu_in_parts.adder)
    for kernels in made:
        kernels.cache_clear()
    q = Quantizer(4, 8192, "l2", "exponential")
    decentral_kernels.compile_cpu_kernels(q)
    ready = [kernels.cache_info().misses for kernels in made]
    assert_equals_reference(backend, vector("gaussian", 100), q)
    assert [kernels.cache_info().misses for kernels in made] == ready == [1, 2, 1]


# --- anything else

values = npst.arrays(
    np.float32,
    st.integers(0, 300),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    x=values,
    bits=st.sampled_from(BITS),
    block_size=st.integers(1, 400),
    norm=st.sampled_from(NORMS),
    levels=st.sampled_from(LEVELS),
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_any_values(x, bits, block_size, norm, levels, key):
    assert_equals_reference(backend, x, Quantizer(bits, block_size, norm, levels), key)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(0, 6000),
    exponents=st.tuples(st.integers(-40, 30), st.integers(-40, 30)),
    bits=st.sampled_from(BITS),
    block_size=st.integers(1, 7000),
    norm=st.sampled_from(NORMS),
    levels=st.sampled_from(LEVELS),
)
def test_any_size(n, exponents, bits, block_size, norm, levels):
    powers = np.random.default_rng(n).uniform(min(exponents), max(exponents) + 1, n)
    x = vector("gaussian", n) * (10.0**powers).astype(np.float32)
    assert_equals_reference(backend, x, Quantizer(bits, block_size, norm, levels), weights=(-0.3,))
