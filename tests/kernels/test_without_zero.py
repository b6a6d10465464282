"""Levels without a zero: all codes are levels, and what is near zero goes to either sign."""

import numpy as np
import pytest
from kernel_cases import (
    BITS,
    KEY,
    KINDS,
    LEVELS,
    NORMS,
    assert_equals_reference,
    encoded,
    vector,
)

from decentral_kernels import Quantizer, backend, fold_key, reference

SIZES = (0, 1, 33, 1025, 8193)


def quantizer(bits, levels, norm="l2", block_size=100):
    return Quantizer(bits, block_size, norm, levels, zero_level=False)


def magnitudes(bits, levels):
    """Return the positive levels, as the authors' simulator has them."""
    count = 2 ** (bits - 1)
    if levels == "uniform":
        return np.linspace(-1, 1, 2 * count)[count:]
    return 2.0 ** np.arange(1 - count, 1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
def test_levels_are_those_of_the_authors_simulator(bits, levels):
    codes = np.arange(1 << bits, dtype=np.uint8)
    one = np.array([1], np.float32)
    values = reference.dequantize(codes, one, quantizer(bits, levels, block_size=256))
    grid = magnitudes(bits, levels)
    # 2^-127, at 8 bits, is below the normal numbers and decoded as 0
    np.testing.assert_allclose(values, np.concatenate([grid, -grid]), rtol=1e-6, atol=2.0**-126)


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("norm", NORMS)
def test_cpu_equals_the_oracle(bits, levels, norm):
    for n in SIZES:
        for kind in KINDS:
            assert_equals_reference(backend, vector(kind, n), quantizer(bits, levels, norm))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bits", (2, 3, 4))
def test_each_coordinate_goes_to_its_two_neighbors_without_bias(bits, levels):
    grid = magnitudes(bits, levels)
    both = np.concatenate([-grid[::-1], grid])
    x = np.array([1, 0.01, -0.01, 0, 0.3, -0.3, 0.6, -0.97], np.float32)
    q = quantizer(bits, levels, "max", block_size=8)
    keys = 4000
    total = np.zeros(8)
    for k in range(keys):
        _, scales, codes = encoded(backend, x, q, fold_key(k))
        out = np.empty(8, np.float32)
        backend.decode(scales, codes, q, out)
        total += out
        for value, r in zip(out, x, strict=True):
            near = np.abs(both - value).argmin()
            assert abs(both[near] - value) < 1e-6
            gap = both[min(near + 1, len(both) - 1)] - both[max(near - 1, 0)]
            assert abs(value - r) <= gap + 1e-6
    widest = np.diff(both).max()
    assert (np.abs(total / keys - x) <= 4 * widest / 2 / np.sqrt(keys) + 1e-6).all()


def test_zeros_stay_zeros():
    x = np.zeros(300, np.float32)
    for levels in LEVELS:
        q = quantizer(4, levels)
        out = np.full(300, 7, np.float32)
        _, scales, codes = encoded(backend, x, q, KEY)
        backend.decode(scales, codes, q, out)
        assert not out.any()
