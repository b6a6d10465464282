"""Messages of varying length: lossless, shorter, and damaged ones are refused."""

import numpy as np
import pytest
from compressor_cases import KEY, gaussian

from decentral.compressors import NUQSGD, QSGD, from_name
from decentral.payload import HEADER_NBYTES, Payload

CODINGS = ("narrow", "elias", "huffman")
NAMES = ("qsgd", "qsgdinf", "nuqsgd", "terngrad")


def bits_per_coordinate(compressor, x):
    return 8 * (compressor.encode(x, KEY).nbytes - HEADER_NBYTES) / x.size


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("numel", (0, 1, 1000, 8192, 30_001))
def test_coding_loses_nothing(name, coding, numel):
    x = gaussian(numel)
    fixed, coded = from_name(name), from_name(name, coding=coding)
    payload = coded.encode(x, KEY)
    expected = fixed.decode(fixed.encode(x, KEY))
    np.testing.assert_array_equal(coded.decode(payload), expected)  # a zero may lose its sign
    out = gaussian(numel, seed=1)
    added = out.copy()
    coded.accumulate(payload, out, -0.3)
    fixed.accumulate(fixed.encode(x, KEY), added, -0.3)
    np.testing.assert_array_equal(out, added)


@pytest.mark.parametrize(("coding", "most"), (("narrow", 3.05), ("elias", 2.45), ("huffman", 1.85)))
def test_bits_of_a_gaussian_vector(coding, most):
    """NUQSGD, 4 bits, block 8192, scales and lengths included; the symbols' entropy is 1.75."""
    bits = bits_per_coordinate(NUQSGD(coding=coding), gaussian(1 << 20))
    assert 1.75 < bits <= most


@pytest.mark.parametrize("coding", ("narrow", "elias"))  # 8 bits and a byte a unit, and 11 bits
def test_a_message_that_coding_would_lengthen_goes_as_fixed_length_codes(coding):
    x = gaussian(1 << 16)
    fixed = NUQSGD(bits=8, block_size=512)
    coded = NUQSGD(bits=8, block_size=512, coding=coding)
    payload = coded.encode(x, KEY)
    assert payload.nbytes == payload.capacity == fixed.encode(x, KEY).nbytes + 1
    np.testing.assert_array_equal(coded.decode(payload), fixed.decode(fixed.encode(x, KEY)))


def test_zeros_cost_next_to_nothing():
    x = np.zeros(1 << 20, np.float32)
    for coding in CODINGS:
        assert bits_per_coordinate(QSGD(coding=coding), x) < 0.02


def test_lengths_follow_the_data_in_one_buffer():
    c, x = NUQSGD(coding="huffman"), gaussian(20_000)
    payload = c.new_payload(x.size)
    lengths = []
    for factor in (1, 0, 1):
        assert c.encode(x * np.float32(factor), KEY, out=payload) is payload
        np.testing.assert_array_equal(c.decode(payload), c.decode(c.encode(x * factor, KEY)))
        lengths.append(payload.nbytes)
    assert lengths[0] == lengths[2] > 20 * lengths[1]


def damaged(rng, buffer):
    """Return a copy of a message with bits flipped, or bytes replaced, or cut, header and all."""
    out = buffer.copy()
    kind = rng.integers(4)
    if kind == 0:
        for place in rng.integers(0, out.size, rng.integers(1, 4)):
            out[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        start = rng.integers(HEADER_NBYTES, out.size)
        out[start:] = rng.integers(0, 256, out.size - start)
    else:
        end = rng.integers(0, out.size)
        out = out[:end].copy()
        if kind == 2 and end >= HEADER_NBYTES:  # cut, but the header agrees
            out[24:32].view("<u8")[0] = end
    return out


@pytest.mark.parametrize("coding", ("fixed", *CODINGS))
@pytest.mark.parametrize("name", NAMES)
def test_damaged_messages_are_refused_or_have_the_right_shape(name, coding):
    """100,000 of them over all cases; the kernels have as many of their own."""
    rng = np.random.default_rng(0)
    compressor = from_name(name, block_size=64, coding=coding)
    whole = [compressor.encode(gaussian(n), KEY).buffer.copy() for n in (1, 100, 3000)]
    guarded = np.full(3000 + 64, 7, np.float32)
    refused = 0
    for turn in range(8400):
        which = turn % len(whole)
        numel = (1, 100, 3000)[which]
        try:
            compressor.decode(Payload(damaged(rng, whole[which])), out=guarded[:numel])
        except ValueError:
            refused += 1
        assert (guarded[numel:] == 7).all()
        guarded[:] = 7
    assert 1000 < refused < 8400
