"""Every registered compressor encodes part by part what it encodes at once."""

import numpy as np
import pytest
import torch
from compressor_cases import KEY, as_numpy, gaussian, variants

from decentral.compressors import NotFiniteError
from decentral.payload import as_array
from decentral_kernels.elementwise import Elementwise

KINDS = {"numpy": np.array, "torch": lambda x: torch.tensor(np.array(x))}


@Elementwise
def taken(x, made):
    return (made,)


@Elementwise
def squared(x, y):
    return y, y * y


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("compressor", list(variants()), ids=repr)
def test_encoding_in_parts_is_encoding_and_adding(compressor, kind):
    """With what makes a part before it, and what copies it after it."""
    n = 150_001  # many parts, or one of blocks that are as large
    made, expected = kind(gaussian(n)), kind(gaussian(n, seed=1))
    x, own, copied = kind(np.zeros(n, np.float32)), kind(gaussian(n, seed=1)), kind(gaussian(n))
    copied[:] = 0
    one, other = compressor.fresh(), compressor.fresh()
    out, z = one.new_payload(n, like=x), taken.on(as_array(x), as_array(made))
    payload = one.encode_in_parts(x, KEY, out, z, own, 0.5, (made, copied))
    same = other.encode(made, KEY)
    other.accumulate(same, expected, 0.5)
    assert as_numpy(payload.buffer).tobytes() == as_numpy(same.buffer).tobytes()
    assert as_numpy(own).tobytes() == as_numpy(expected).tobytes()
    assert as_numpy(copied).tobytes() == as_numpy(made).tobytes()
    assert as_numpy(x).tobytes() == as_numpy(made).tobytes()


@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("compressor", list(variants()), ids=repr)
def test_what_is_made_must_be_finite(compressor, value):
    n = 30_001
    made, x, own = gaussian(n), np.zeros(n, np.float32), np.zeros(n, np.float32)
    made[20_002] = value
    with pytest.raises(NotFiniteError, match=r"expected finite values, got .* coordinate 20002$"):
        compressor.fresh().encode_in_parts(
            x, KEY, compressor.new_payload(n), taken.on(x, made), own, 0.5
        )
    assert np.isfinite(own).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("compressor", list(variants()), ids=repr)
def test_what_else_is_made_must_be_finite(compressor, kind):
    """The message is, but not what the formula writes besides."""
    n = 30_001
    x, y = kind(np.zeros(n, np.float32)), kind(gaussian(n))
    y[20_002] = 1e20
    z, out = squared.on(as_array(x), as_array(y)), compressor.new_payload(n, like=x)
    with pytest.raises(
        NotFiniteError, match=r"expected finite values, got inf at coordinate 20002"
    ):
        compressor.fresh().encode_in_parts(x, KEY, out, z, kind(gaussian(n)), 0.5)
