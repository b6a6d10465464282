"""Part by part is what the whole is: made, encoded, added and put away, bit for bit."""

import numpy as np
import pytest
from kernel_cases import KEY, encoded, vector

from decentral_kernels import Around, Quantizer, backend, get_num_threads, set_num_threads
from decentral_kernels.elementwise import Elementwise
from decentral_kernels.layout import UNIT


@Elementwise
def doubled(x, made):
    return (made + made,)


PART = backend._PART
SIZES = (0, 1, 1023, 1025, PART, PART + 1, 3 * PART + 7777)
BLOCK_SIZES = (7, 512, 1000, 8192, 40_000, 300_000)  # some have no multiple that is a part


@pytest.fixture(params=(1, 2))
def threads(request):
    before = get_num_threads()
    set_num_threads(request.param)
    yield
    set_num_threads(before)


def in_parts(made, q, own, weight=0.7):
    """Return the bad block, the message, its vector and what was added to, and the parts."""
    x, own = np.full_like(made, 9), own.copy()
    scales = np.full(q.num_blocks(x.size), -7, np.float32)
    codes = np.full(q.codes_nbytes(x.size), 0xA5, np.uint8)
    parts = []

    def before(part):
        x[part] = made[part]

    def after(part):
        parts.append((part.start, part.stop))
        x[part] = -1

    around = Around(before, own, weight, after)
    bad = backend.encode_in_parts(x, KEY, q, scales, codes, around)
    return bad, (scales, codes), x, own, sorted(parts)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits, norm, levels", [(4, "l2", "exponential"), (3, "max", "uniform")])
def test_equals_the_whole(n, block_size, bits, norm, levels, threads):
    q, made, own = Quantizer(bits, block_size, norm, levels), vector("gaussian", n), np.ones(n, "f")
    bad, (scales, codes), x, added, parts = in_parts(made, q, own)
    expected = encoded(backend, made, q)
    assert bad == expected[0] == -1
    assert scales.tobytes() == expected[1].tobytes() and codes.tobytes() == expected[2].tobytes()
    backend.accumulate(scales, codes, q, own, 0.7)
    assert added.tobytes() == own.tobytes() and (x == -1).all()
    ends = [0] + [end for _, end in parts]
    assert [start for start, _ in parts] == ends[:-1] and ends[-1] == n
    assert all(start % block_size == 0 == start % UNIT for start, _ in parts)


def test_parts_fit_a_cache(threads):
    made = vector("gaussian", 10 * PART)
    *_, parts = in_parts(made, Quantizer(4, 8192, "l2", "exponential"), np.ones_like(made))
    assert len(parts) == 10


def test_large_parts_whose_formula_is_shared_too(threads):
    """The blocks make them so large that both the parts and the formula want the threads."""
    n, q = 2_000_000, Quantizer(4, 40_000, "l2", "exponential")
    made, x, own = vector("gaussian", n), np.zeros(n, np.float32), np.zeros(n, np.float32)
    scales, codes = np.zeros(q.num_blocks(n), np.float32), np.zeros(q.codes_nbytes(n), np.uint8)

    def before(part):
        assert doubled(x[part], made[part])

    assert backend.encode_in_parts(x, KEY, q, scales, codes, Around(before, own, 1.0)) == -1
    expected = encoded(backend, made * 2, q)
    assert scales.tobytes() == expected[1].tobytes() and codes.tobytes() == expected[2].tobytes()


def test_what_cannot_be_encoded_is_not_added(threads):
    n, part = 3 * PART + 7777, PART
    made, own = vector("gaussian", n), np.ones(n, np.float32)
    made[part + 8192] = np.inf
    bad, _, _, added, parts = in_parts(made, Quantizer(4, 8192, "l2", "exponential"), own)
    assert bad == (part + 8192) // 8192
    assert (added[part : 2 * part] == 1).all() and (part, 2 * part) not in parts
    assert np.isfinite(added).all()


def test_what_is_added_to_may_be_what_is_encoded():
    n, q = PART + 100_000, Quantizer(4, 512, "l2", "exponential")
    made, x = vector("gaussian", n), np.empty(n, np.float32)
    _, scales, codes = encoded(backend, made, q)

    def before(part):
        x[part] = made[part]

    assert (
        backend.encode_in_parts(x, KEY, q, scales.copy(), codes.copy(), Around(before, x, -1)) < 0
    )
    backend.accumulate(scales, codes, q, made, -1.0)
    assert x.tobytes() == made.tobytes()
