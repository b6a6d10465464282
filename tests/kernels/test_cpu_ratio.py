"""The CPU kernels do not cut |v| / norm at 1, since it cannot be more; the reference does."""

import numpy as np
import pytest
from kernel_cases import LEVELS, NORMS, assert_equals_reference

from decentral_kernels import Quantizer, backend


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("zero_level", (True, False))
@pytest.mark.parametrize("bits", (4, 5, 8))
def test_a_coordinate_that_is_the_norm(bits, zero_level, levels, norm):
    """Any mantissa and exponent, alone or with a small neighbor that the sum of squares loses."""
    rng = np.random.default_rng(bits)
    n = 1 << 15
    exponents = rng.integers(-130, 125, n).astype(np.float32)
    x = rng.uniform(1, 2, n).astype(np.float32) * np.exp2(exponents, dtype=np.float32)
    x *= rng.choice(np.array([-1, 1], np.float32), n)
    for block_size in (1, 2, 1024):
        if block_size > 1:  # one large coordinate per block, the others are next to nothing
            alone = np.arange(n) % block_size == 0
            x = np.where(alone, x, np.roll(x, 1) * np.float32(2.0**-13)).astype(np.float32)
        q = Quantizer(bits, block_size, norm, levels, zero_level)
        assert_equals_reference(backend, x, q, weights=(1.0,))
