"""IntSGD's rounding against the oracle, and against what it has to be."""

import numpy as np
import pytest
from kernel_cases import KEY, KINDS, SIZES, assert_same_bits, vector

from decentral_kernels import fold_key, integers, reference_integers, set_num_threads
from decentral_kernels.threads import GRAIN

LIMITS = {np.int8: (-16.0, 15.0), np.int32: (-(2.0**31), 2147483520.0)}
ALPHAS = (1.0, 3e4, 1e30)


def rounded(x, alpha, random=True, dtype=np.int8, start=5, key=KEY):
    out = np.full(x.size, 77, dtype)
    seen = integers.round_to_integers(x, alpha, key, start, random, LIMITS[dtype], out)
    return seen, out


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda d: d.__name__)
@pytest.mark.parametrize("random", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_oracle_and_counts_what_it_clips(kind, random, dtype):
    for n in SIZES:
        for alpha in ALPHAS:
            x = vector(kind, n)
            seen, out = rounded(x, alpha, random, dtype)
            exact = reference_integers.round_to_integers(x, alpha, KEY, 5, random)
            expected = np.clip(exact, *map(np.float32, LIMITS[dtype]))
            np.testing.assert_array_equal(out, expected.astype(dtype))
            assert seen.clipped == (expected != exact).sum()
            assert seen.largest == np.abs(exact).max(initial=0)


def test_random_rounding_is_unbiased_with_variance_below_a_quarter():
    for t in (0.0, 0.25, 0.5, -0.3, 7.75, -3.0):
        x = np.full(1 << 18, t, np.float32)
        out = rounded(x, 1.0)[1].astype(np.float64)
        assert set(np.unique(out)) <= {np.floor(t), np.floor(t) + 1}
        fraction = t - np.floor(t)
        deviation = np.sqrt(fraction * (1 - fraction) / x.size)
        assert abs(out.mean() - t) <= 5 * deviation + 1e-7
        assert abs(out.var() - fraction * (1 - fraction)) <= 0.01


def test_deterministic_rounding_is_half_to_even():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, -2.51], np.float32)
    assert rounded(x, 1.0, random=False)[1].tolist() == [0, 2, 2, 0, -2, 0, -3]


def test_draws_depend_on_key_and_index_only():
    x = np.full(5000, 0.5, np.float32)
    whole = rounded(x, 1.0, start=0)[1]
    np.testing.assert_array_equal(rounded(x[2000:], 1.0, start=2000)[1], whole[2000:])
    assert (rounded(x, 1.0, start=0, key=fold_key(9))[1] != whole).any()


def test_expanding():
    for dtype in LIMITS:
        out = rounded(vector("gaussian", 5000), 3.0, dtype=dtype)[1]
        got, start = np.empty(5000, np.float32), vector("gaussian", 5000, 1)
        integers.expand_integers(out, 0.3, got, add=False)
        assert_same_bits(got, out.astype(np.float32) * np.float32(0.3), "expanded")
        added = start.copy()
        integers.expand_integers(out, 0.3, added, add=True)
        assert_same_bits(added, start + got, "added")


@pytest.mark.parametrize("kind", KINDS)
def test_sum_of_squares(kind):
    for n in SIZES:
        x = vector(kind, n)
        got = integers.sum_of_squares(x)
        assert got == reference_integers.sum_of_squares(x)
        assert got == pytest.approx((x.astype(np.float64) ** 2).sum(), rel=1e-12)


def test_threads_write_the_same():
    x = vector("gaussian", 3 * GRAIN + 12345)
    one = rounded(x, 10.0)
    set_num_threads(3)
    try:
        three = rounded(x, 10.0)
    finally:
        set_num_threads(1)
    assert three[0] == one[0] and three[0].clipped > 0
    np.testing.assert_array_equal(three[1], one[1])
