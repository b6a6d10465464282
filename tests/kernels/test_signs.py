"""The kernels of EF-SignSGD and natural compression against the oracle, bit for bit."""

import numpy as np
import pytest
from kernel_cases import KEY, KINDS, SIZES, assert_same_bits, vector

from decentral_kernels import backend, reference_signs, set_num_threads, signs

BLOCK_SIZES = (1, 7, 16, 64, 1000, 30000)


def natural(implementation, x):
    exponents = np.full(x.size, 7, np.uint8)
    packed = np.full(signs.signs_nbytes(x.size), 0xA5, np.uint8)
    bad = implementation.natural_encode(x, KEY, exponents, packed)
    return bad, exponents, packed


@pytest.mark.parametrize("kind", KINDS)
def test_natural(kind):
    for n in SIZES:
        x = vector(kind, n)
        bad, exponents, packed = natural(signs, x)
        expected = natural(reference_signs, x)
        assert bad == expected[0] == -1
        assert_same_bits(exponents, expected[1], f"{n}: exponents")
        assert_same_bits(packed, expected[2], f"{n}: signs")
        decoded = reference_signs.natural_decode(exponents, packed)
        mantissas = decoded.view(np.uint32) & np.uint32(0x7FFFFF)
        assert not mantissas.any()  # powers of two and 0
        for weight in (1.0, -0.3):
            out, start = np.full(n, np.nan, np.float32), vector("gaussian", n, 5)
            signs.natural_decode(exponents, packed, out, weight, add=False)
            values = reference_signs.natural_decode(exponents, packed, weight)
            assert_same_bits(out, values, f"{n}: decoded")
            added = start.copy()
            signs.natural_decode(exponents, packed, added, weight, add=True)
            assert_same_bits(added, start + values, f"{n}: added")


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 1.8e38, -3e38))
def test_natural_names_the_unit_of_what_it_cannot_round(value):
    x = vector("gaussian", 5000)
    x[[3000, 4999]] = value
    assert natural(signs, x)[0] == 2
    assert natural(reference_signs, x)[0] == 3000
    x[[3000, 4999]] = 2.0**127  # the largest power of two
    assert natural(signs, x)[0] == -1


def test_natural_rounds_to_the_two_powers_around_with_the_right_chances():
    x = np.full(1 << 18, 1.25, np.float32)
    _, exponents, packed = natural(signs, x)
    decoded = reference_signs.natural_decode(exponents, packed)
    share = (decoded == 2).mean()
    assert set(decoded.tolist()) == {1.0, 2.0}
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / x.size)


def sign(implementation, x, residual, block_size):
    scales = np.full(2 * -(-x.size // block_size), -7, np.float32)
    packed = np.full(signs.signs_nbytes(x.size), 0xA5, np.uint8)
    left = np.full(x.size, np.nan, np.float32)
    bad = implementation.sign_encode(x, residual, left, block_size, scales, packed)
    return bad, left, scales, packed


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_sign(kind, block_size):
    for n in SIZES:
        x = vector(kind, n)
        residual = vector("gaussian", n, 1) * np.abs(x).max(initial=0)
        bad, *got = sign(signs, x, residual, block_size)
        expected_bad, *expected = sign(reference_signs, x, residual, block_size)
        assert bad == expected_bad == -1
        for mine, theirs, what in zip(got, expected, ("left", "scales", "signs"), strict=True):
            assert_same_bits(mine, theirs, f"{n}: {what}")
        _, scales, packed = got
        for weight in (1.0, -0.3):
            values = reference_signs.sign_decode(scales, packed, block_size, n, weight)
            out, start = np.full(n, np.nan, np.float32), vector("gaussian", n, 5)
            signs.sign_decode(scales, packed, block_size, out, weight, add=False)
            assert_same_bits(out, values, f"{n}: decoded")
            added = start.copy()
            signs.sign_decode(scales, packed, block_size, added, weight, add=True)
            assert_same_bits(added, start + values, f"{n}: added")


def test_sign_is_the_formula():
    """p = g + e; c = mean of |p| over its side, with the sign; e = p - c; in float64."""
    g, e = vector("gaussian", 1000), vector("gaussian", 1000, 1)
    _, new, scales, packed = sign(signs, g, e, 64)
    c = np.empty(1000, np.float32)
    signs.sign_decode(scales, packed, 64, c, 1.0, add=False)
    p = g.astype(np.float64) + e
    for start in range(0, 1000, 64):
        part, sent = p[start : start + 64], c[start : start + 64]
        for side in (part >= 0, part < 0):
            np.testing.assert_allclose(np.abs(sent[side]), np.abs(part[side]).mean(), rtol=1e-6)
        assert (np.signbit(sent) == (part < 0)).all()
    np.testing.assert_allclose(new, p - c, atol=1e-6)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 2.0**126, -3e38))
@pytest.mark.parametrize("implementation", (signs, reference_signs))
def test_sign_names_the_block_of_what_it_refuses(implementation, value):
    x, residual = vector("gaussian", 5000), vector("gaussian", 5000, 1)
    x[[3000, 4999]] = value
    assert sign(implementation, x, residual, 64)[0] == 3000 // 64


@pytest.mark.parametrize("block_size, large", ((64, 2.0**123), (8192, 2.0**116)))
@pytest.mark.parametrize("implementation", (signs, reference_signs))
def test_sign_refuses_a_block_whose_sum_overflows(implementation, block_size, large):
    """All values are in range, but not their sum, and so not the mean."""
    x, residual = vector("gaussian", 3 * 8192), np.zeros(3 * 8192, np.float32)
    x[8192 : 8192 + block_size] = -large
    assert sign(implementation, x, residual, block_size)[0] == 8192 // block_size
    x /= 4
    bad, left, scales, _ = sign(implementation, x, residual, block_size)
    assert bad == -1 and np.isfinite(left).all() and np.isfinite(scales).all()


def test_threads_write_the_same():
    n = 3 * backend.GRAIN + 12345
    x, residual = vector("gaussian", n), vector("gaussian", n, 1)
    one = (natural(signs, x), sign(signs, x, residual, 100))
    set_num_threads(3)
    try:
        three = (natural(signs, x), sign(signs, x, residual, 100))
        x[[7, n - 1]] = np.nan
        assert natural(signs, x)[0] == 0 and sign(signs, x, residual, 100)[0] == 0
    finally:
        set_num_threads(1)
    for mine, theirs in zip(sum(three, ()), sum(one, ()), strict=True):
        np.testing.assert_array_equal(mine, theirs)
