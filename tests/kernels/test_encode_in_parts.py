"""Part by part is what the whole is: made, encoded, added and copied, bit for bit."""

import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import KEY, encoded, vector

from decentral_kernels import Around, Quantizer, backend, get_num_threads, set_num_threads
from decentral_kernels.elementwise import NOT_FINITE, Elementwise

PART = backend._PART
SIZES = (0, 1, 1023, 1025, PART, PART + 1, 16 * PART, 52 * PART + 7777)
BLOCK_SIZES = (7, 512, 1000, 8192, 40_000, 300_000)  # some have no multiple that is a part


@Elementwise
def doubled(x, made):
    return (made + made,)


@Elementwise
def added(x, y, kept, weight: float, other: float):
    return x + weight * kept, y - other


@pytest.fixture(params=(1, 2))
def threads(request):
    before = get_num_threads()
    set_num_threads(request.param)
    yield
    set_num_threads(before)


def in_parts(made, q, own, weight=0.7):
    """Return the bad block, the message, what was added to, x and a copy, if it was encoded."""
    x, own, copied = np.full_like(made, 9), own.copy(), np.full_like(made, -1)
    scales = np.full(q.num_blocks(x.size), -7, np.float32)
    codes = np.full(q.codes_nbytes(x.size), 0xA5, np.uint8)
    around = Around(doubled.on(x, made), own, weight, (made, copied))
    bad = backend.encode_in_parts(x, KEY, q, scales, codes, around)
    return bad, (scales, codes), own, x, copied


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits, norm, levels", [(4, "l2", "exponential"), (3, "max", "uniform")])
def test_equals_the_whole(n, block_size, bits, norm, levels, threads):
    q, made, own = Quantizer(bits, block_size, norm, levels), vector("gaussian", n), np.ones(n, "f")
    bad, (scales, codes), total, x, copied = in_parts(made, q, own)
    expected = encoded(backend, made + made, q)
    assert bad == expected[0] == -1
    assert scales.tobytes() == expected[1].tobytes() and codes.tobytes() == expected[2].tobytes()
    backend.accumulate(scales, codes, q, own, 0.7)
    assert total.tobytes() == own.tobytes()
    assert x.tobytes() == (made + made).tobytes() and copied.tobytes() == made.tobytes()


def test_a_formula_of_several_vectors_and_numbers(threads):
    q, n = Quantizer(4, 512, "l2", "exponential"), 40 * PART + 5
    x, y, kept, own = (
        vector(kind, n) for kind in ("gaussian", "negative-zeros", "one-hot", "gaussian")
    )
    expected = added.function(x, y, kept, np.float32(0.3), np.float32(2))
    scales, codes = np.zeros(q.num_blocks(n), np.float32), np.zeros(q.codes_nbytes(n), np.uint8)
    around = Around(added.on(x, y, kept, 0.3, 2.0), own.copy(), 1.0)
    assert backend.encode_in_parts(x, KEY, q, scales, codes, around) == -1
    assert x.tobytes() == expected[0].tobytes() and y.tobytes() == expected[1].tobytes()
    _, *message = encoded(backend, expected[0], q)
    assert scales.tobytes() == message[0].tobytes() and codes.tobytes() == message[1].tobytes()


@pytest.mark.parametrize("where", (0, 17 * PART + 1, 40 * PART - 1))
def test_what_cannot_be_encoded_is_not_added(where, threads):
    """The norm of a block is too large, of which every coordinate is finite."""
    n, part = 40 * PART, where // PART
    made, own = vector("gaussian", n), np.ones(n, np.float32)
    made[where] = 2.0**126
    bad, _, total, _, copied = in_parts(made, Quantizer(4, 8192, "l2", "exponential"), own)
    assert bad == where // 8192
    here = slice(part * PART, (part + 1) * PART)
    assert (total[here] == 1).all() and (copied[here] == -1).all()
    assert np.isfinite(total).all() and (part == 0 or total[0] != 1)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 3e38))
@pytest.mark.parametrize("where", (0, 17 * PART + 1, 40 * PART - 1))
def test_what_is_not_finite_is_not_added(where, value, threads):
    """3e38 is, but not twice that."""
    made, own = vector("gaussian", 40 * PART), np.ones(40 * PART, np.float32)
    made[where] = value
    bad, _, total, _, _ = in_parts(made, Quantizer(4, 8192, "l2", "exponential"), own)
    assert bad == NOT_FINITE
    assert np.isfinite(total).all() and total[where] == 1


def test_what_is_added_to_may_be_what_is_encoded():
    n, q = 12 * PART + 100_000, Quantizer(4, 512, "l2", "exponential")
    made, x = vector("gaussian", n), np.empty(n, np.float32)
    _, scales, codes = encoded(backend, made + made, q)
    around = Around(doubled.on(x, made), x, -1)
    assert backend.encode_in_parts(x, KEY, q, scales.copy(), codes.copy(), around) == -1
    expected = made + made
    backend.accumulate(scales, codes, q, expected, -1.0)
    assert x.tobytes() == expected.tobytes()


SCRIPT = """
import sys
import numpy as np
from decentral_kernels import Around, Quantizer, compile_cpu_kernels, encode_in_parts, fold_key
from decentral_kernels import reference
from decentral_kernels.elementwise import Elementwise

@Elementwise
def copied(x, made):
    return (made,)

made, key = np.random.default_rng(0).standard_normal(9000).astype(np.float32), fold_key(1)
quantizers = [Quantizer(int(bits), 512, "l2", "exponential") for bits in sys.argv[1:]]
for q in quantizers:
    compile_cpu_kernels(q)
for q in quantizers:
    x, own, decoded = np.zeros((3, made.size), np.float32)
    messages = [
        (np.zeros(q.num_blocks(made.size), np.float32), np.zeros(q.codes_nbytes(made.size), "u1"))
        for _ in range(2)
    ]
    around = Around(copied.on(x, made), own, 1.0)
    assert encode_in_parts(x, key, q, *messages[0], around) == -1
    assert reference.encode(made, key, q, *messages[1]) == -1
    reference.decode(*messages[1], q, decoded)
    assert messages[0][1].tobytes() == messages[1][1].tobytes(), q
    assert (own == decoded).all(), q
"""


def test_kernels_that_other_processes_have_cached_are_told_apart(tmp_path):
    """Compiled first in their processes, they have one name but for called()'s."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for bits in (["4"], ["3"], ["3", "4"], ["4", "3"]):
        done = subprocess.run(
            [sys.executable, script, *bits],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
