"""EF-SignSGD's residual: what is not sent is added next time, saved, and never lost."""

import numpy as np
import pytest
import torch
from compressor_cases import gaussian

from decentral.compressors import EFSignSGD, NotFiniteError


def key(step=1, rank=0, bucket=0):
    return (1, step, rank, bucket)


def test_two_bits_per_coordinate():
    for numel in (64, 64 * 1000, 1 << 20):
        assert EFSignSGD().body_nbytes(numel) * 8 == 2 * numel


def test_what_was_sent_and_the_residual_add_up_to_the_gradients():
    c, total, sent = EFSignSGD(), np.zeros(1000), np.zeros(1000)
    for step in range(1, 20):
        g = gaussian(1000, seed=step)
        total += g
        sent += c.decode(c.encode(g, key(step)))
    (residual,) = c.state_dict().values()
    np.testing.assert_allclose(sent + residual.numpy(), total, atol=1e-4)
    assert np.abs(residual.numpy()).max() > 0.1


def test_the_residual_is_used():
    c = EFSignSGD()
    g = gaussian(1000)
    first, second = (c.decode(c.encode(g, key(step))) for step in (1, 2))
    np.testing.assert_allclose(second, EFSignSGD().decode(c.fresh().encode(2 * g - first, key())))


def test_ranks_and_buckets_have_residuals_of_their_own():
    c, g = EFSignSGD(), gaussian(1000)
    c.encode(g, key())
    fresh = EFSignSGD().encode(g, key(rank=3, bucket=7)).body.tobytes()
    assert c.encode(g, key(rank=3, bucket=7)).body.tobytes() == fresh
    assert c.encode(g, key(rank=3, bucket=8)).body.tobytes() == fresh
    assert c.encode(g, key(rank=3, bucket=8)).body.tobytes() != fresh
    assert sorted(c.state_dict()) == ["0/0", "3/7", "3/8"]


def test_a_saved_residual_goes_on_bit_for_bit(tmp_path):
    one = EFSignSGD()
    for step in range(5):
        one.encode(gaussian(500, seed=step), key(step))
    torch.save(one.state_dict(), tmp_path / "state")
    other = one.fresh()
    assert not other.state_dict()
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for step in range(5, 9):
        g = gaussian(500, seed=step)
        expected = one.encode(g, key(step)).buffer.tobytes()
        assert other.encode(g, key(step)).buffer.tobytes() == expected


def test_what_was_saved_does_not_change():
    c = EFSignSGD()
    c.encode(gaussian(100), key())
    saved = c.state_dict()["0/0"]
    before = saved.clone()
    c.encode(gaussian(100), key(2))
    assert torch.equal(saved, before)


def test_bad_input_leaves_the_residual():
    c = EFSignSGD()
    c.encode(gaussian(100), key())
    before = c.state_dict()["0/0"]
    for value in (np.nan, np.inf, 3e38):
        g = gaussian(100)
        g[70] = value
        with pytest.raises(NotFiniteError, match="coordinate 70") as error:
            c.encode(g, key(2))
        assert error.value.index == 70
    g[:] = 2.0**123  # each could be sent, but the sum of a block is too large
    with pytest.raises(NotFiniteError, match="sum of a block, is 2"):
        c.encode(g, key(2))
    with pytest.raises(ValueError, match=r"bucket 0 had 100 coordinates, got 99; .* fresh"):
        c.encode(gaussian(99), key(2))
    assert torch.equal(c.state_dict()["0/0"], before)


def test_messages_of_one_step_are_retracted_together():
    c = EFSignSGD()
    c.encode(gaussian(100), key())
    before = c.state_dict()["0/0"]
    for seed in range(3):
        c.encode(gaussian(100, seed), key(2))
    c.retract(2)
    assert torch.equal(c.state_dict()["0/0"], before)


def test_torch_and_numpy_vectors_share_a_residual():
    one, other = EFSignSGD(), EFSignSGD()
    for step in (1, 2):
        g = gaussian(300, seed=step)
        a, b = one.encode(g, key(step)), other.encode(torch.tensor(g), key(step))
        assert a.buffer.tobytes() == b.buffer.numpy().tobytes()


def test_what_is_retracted_was_never_encoded():
    """One message of each bucket, and none of a bucket that could not be encoded."""
    c = EFSignSGD()
    for bucket in (0, 1):
        c.encode(gaussian(100, seed=bucket), key(bucket=bucket))
    before = c.state_dict()
    for step in (2, 3):  # again after it: each takes back but one message
        c.encode(gaussian(100, seed=step), key(step))
        with pytest.raises(NotFiniteError):
            c.encode(np.full(100, np.nan, np.float32), key(step, bucket=1))
        assert not torch.equal(c.state_dict()["0/0"], before["0/0"])
        c.retract(step - 1)  # of which nothing is left to take back
        assert not torch.equal(c.state_dict()["0/0"], before["0/0"])
        c.retract(step)
        c.retract(step)
        assert all(torch.equal(e, before[where]) for where, e in c.state_dict().items())
