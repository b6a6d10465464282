"""Statistics of every registered compressor: unbiased, under its bound, within its norm."""

import numpy as np
import pytest
from compressor_cases import (
    block_norms,
    blocks_of,
    errors_over_keys,
    gaussian,
    variance_bound,
    variants,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

# Some 400 comparisons at 4 sigma (one in 16000): chance fails one choice of seeds in 40.
SIGMAS, KEYS, NUMEL = 4, 300, 700
VARIANTS = list(variants())
UNBIASED = pytest.mark.parametrize("compressor", [c for c in VARIANTS if c.unbiased], ids=repr)


@UNBIASED
def test_unbiased(compressor):
    # Signed towards or away from zero, and by magnitude: rounding errs differently in each class.
    errors, x = errors_over_keys(compressor, NUMEL, KEYS), gaussian(NUMEL)
    order = np.argsort(np.abs(x)).reshape(7, -1)
    for members in (*order, np.flatnonzero(x > 0), np.flatnonzero(x < 0)):
        outward = (errors[:, members] * np.sign(x[members])).mean(axis=1)
        deviation = outward.std() / np.sqrt(KEYS)
        assert abs(outward.mean()) <= SIGMAS * deviation + 1e-7


@UNBIASED
def test_variance_is_under_the_bound_and_above_a_floor(compressor):
    squares, x = errors_over_keys(compressor, NUMEL, KEYS) ** 2, gaussian(NUMEL)
    bound = sum(variance_bound(compressor, b.size) * (b @ b) for b in blocks_of(compressor, x))
    totals = squares.sum(axis=1)
    rounding = 2.0**-46 * (x.astype(np.float64) @ x)  # of float32 itself, to see 32 bits' by
    assert totals.mean() <= bound + SIGMAS * totals.std() / np.sqrt(KEYS) + rounding
    # The least here is QSGDinf's with 8 bits and blocks of 64: a level every 1/127 of about 2.4
    # standard deviations, so (2.4 / 127)^2 / 6 = 6e-5. Not to quantize at all gives zero.
    # IntSGD's with 32 bits is far below.
    floor = 1e-5 if not compressor.summable else 1e-20
    assert compressor.lossless == (totals.mean() < floor * (x.astype(np.float64) @ x))


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(
    x=npst.arrays(np.float32, st.integers(0, 200), elements=finite),
    compressor=st.sampled_from(VARIANTS),
    key=st.tuples(*[st.integers(0, 60_000)] * 4),
)
def test_any_vector_comes_back_within_its_norm(x, compressor, key):
    y = compressor.decode(compressor.fresh().encode(x, key))
    assert y.shape == x.shape and np.isfinite(y).all()
    if getattr(compressor, "zero_level", compressor.name != "ef-signsgd"):
        assert ((y == 0) | (np.sign(y) == np.sign(x))).all()
    norms = block_norms(compressor, x) if x.size else 0
    assert (np.abs(y.astype(np.float64) - x) <= norms * (1 + 1e-6)).all()
    assert not compressor.lossless or y.tobytes() == x.tobytes()
