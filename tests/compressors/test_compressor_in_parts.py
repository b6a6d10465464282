"""Every registered compressor encodes part by part what it encodes at once."""

import numpy as np
import pytest
import torch
from compressor_cases import KEY, as_numpy, gaussian, variants

KINDS = {"numpy": np.array, "torch": lambda x: torch.tensor(np.array(x))}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("compressor", list(variants()), ids=repr)
def test_encoding_in_parts_is_encoding_and_adding(compressor, kind):
    """With what makes a part before it, and what takes it away after it."""
    n = 150_001  # two parts, or one of blocks that are as large
    made, expected, log = gaussian(n), kind(gaussian(n, seed=1)), []
    x, own = kind(np.zeros(n, np.float32)), kind(gaussian(n, seed=1))

    def before(part):
        x[part] = kind(made[part])

    def after(part):
        x[part] = 5
        log.append(part)

    one, other = compressor.fresh(), compressor.fresh()
    payload = one.encode_in_parts(x, KEY, one.new_payload(n, like=x), before, own, 0.5, after)
    same = other.encode(kind(made), KEY)
    other.accumulate(same, expected, 0.5)
    assert as_numpy(payload.buffer).tobytes() == as_numpy(same.buffer).tobytes()
    assert as_numpy(own).tobytes() == as_numpy(expected).tobytes()
    assert sum(part.stop - part.start for part in log) == n and (as_numpy(x) == 5).all()
