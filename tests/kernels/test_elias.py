"""The Elias coder writes what the papers' ENCODE writes, bit for bit."""

import numpy as np
import pytest

from decentral_kernels import reference
from decentral_kernels.code_tables import SEGMENT, elias_decoding_table, elias_max_bits, omega
from decentral_kernels.coding import Coder

# The recursive Elias (omega) code as it is published.
OMEGA = {
    1: "0",
    2: "100",
    3: "110",
    4: "101000",
    7: "101110",
    8: "1110000",
    15: "1111110",
    16: "10100100000",
    17: "10100100010",
    31: "10100111110",
    32: "101011000000",
    100: "1011011001000",
    1000: "11100111111010000",
}


def elias(k):
    """Return the paper's Elias(k), by its recursion: the code of 1 is 0, and the rest goes before.

    Appendix A of the QSGD paper: start with a 0; while k > 1, prepend the binary representation of
    k and go on with its length less one.
    """

    def groups(k):
        return "" if k == 1 else groups(k.bit_length() - 1) + bin(k)[2:]

    return groups(k) + "0"


def segment_bits(codes, bits, zero_level=True):
    """Return what stands for the uint8[n] codes of one segment, as a string of bits."""
    text, before = "", -1
    for i, code in enumerate(int(c) for c in codes):
        level, sign = code % (1 << bits - 1), code >> bits - 1
        if not zero_level:
            text += str(sign) + elias(level + 1)
        elif level:
            text += elias(i - before) + str(sign) + elias(level)
            before = i
    return text + elias(len(codes) - before) if zero_level else text


def stream(codes, bits, zero_level=True):
    """Return (stream, bits of the code words) of uint8[n] codes."""
    texts = [
        segment_bits(codes[i : i + SEGMENT], bits, zero_level)
        for i in range(0, codes.size, SEGMENT)
    ]
    body = [np.packbits(np.frombuffer(t.encode(), np.uint8) & 1) for t in texts]
    sizes = np.array([b.size for b in body], "<u4").view(np.uint8)
    return np.concatenate([sizes, *body]), sum(map(len, texts))


def framed(*texts):
    """Return a stream of one segment whose bytes are the given bits."""
    bits = "".join(texts)
    body = bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))
    return np.frombuffer(len(body).to_bytes(4, "little") + body, np.uint8)


def assert_equals_oracle(codes, bits, zero_level=True):
    coder, packed = Coder("elias", bits, zero_level), reference.pack(codes, bits)
    out = np.empty(coder.max_nbytes(codes.size), np.uint8)
    size = coder.encode(packed, codes.size, out)
    expected, nbits = stream(codes, bits, zero_level)
    np.testing.assert_array_equal(out[:size], expected)
    assert coder.nbits(packed, codes.size) == nbits


@pytest.mark.parametrize(("number", "code"), OMEGA.items())
def test_published_code_words(number, code):
    assert omega(number) == elias(number) == code


def test_code_words_of_all_gaps():
    for gap in range(1, SEGMENT + 2):
        assert omega(gap) == elias(gap)


def test_a_segment_by_hand():
    # 0 +1 0 0 -3 0 +2 0 0: gaps 2, 3, 2, and 3 to the end.
    codes = np.array([0, 1, 0, 0, 8 | 3, 0, 2, 0, 8], np.uint8)
    by_hand = "10000" + "1101110" + "1000100" + "110"
    assert segment_bits(codes, 4) == by_hand
    out = np.empty(100, np.uint8)
    size = Coder("elias", 4).encode(reference.pack(codes, 4), 9, out)
    np.testing.assert_array_equal(out[:size], framed(by_hand))


def test_a_segment_by_hand_without_a_zero_level():
    codes = np.array([0, 1, 4, 7, 2], np.uint8)  # +1 +2 -1 -4 +3, counted from 1
    by_hand = "0001001011010000110"
    out = np.empty(100, np.uint8)
    size = Coder("elias", 3, zero_level=False).encode(reference.pack(codes, 3), 5, out)
    np.testing.assert_array_equal(out[:size], framed(by_hand))


@pytest.mark.parametrize("zero_level", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_equals_the_oracle(bits, zero_level):
    rng = np.random.default_rng(bits)
    for n in (1, 7, 1025, SEGMENT, 2 * SEGMENT + 1):
        for share in (0.0, 0.002, 0.2, 1.0):
            codes = rng.integers(0, 1 << bits, n).astype(np.uint8) * (rng.random(n) < share)
            assert_equals_oracle(codes, bits, zero_level)


def test_every_gap_and_every_level():
    codes = np.zeros(SEGMENT, np.uint8)
    for at in range(0, SEGMENT, 61):
        codes[:] = 0
        codes[at] = 1 + at % 7
        assert_equals_oracle(codes, 4)
    for bits in (4, 8):
        assert_equals_oracle(np.arange(1 << bits).astype(np.uint8), bits)
        assert_equals_oracle(np.arange(1 << bits).astype(np.uint8), bits, zero_level=False)


@pytest.mark.parametrize("zero_level", [True, False])
def test_the_table_holds_what_its_bits_say(zero_level):
    """Every entry, read again with the oracle's code words."""
    table = elias_decoding_table(4, zero_level)
    for window in range(0, table.size, 3):
        entry = int(table[window])
        count, used = entry >> 56 & 15, entry >> 60
        codes = np.array([entry >> 8 * i & 255 for i in range(count)], np.uint8)
        end = 1 if zero_level else 0  # the oracle's mark of the end, which is not in the table
        text = segment_bits(codes, 4, zero_level)
        assert f"{window:012b}"[:used] == text[: len(text) - end]


def test_no_vector_takes_more_bits_than_said():
    for bits in range(2, 9):
        for n in (1, 2, 3, 10):
            largest = np.full(n, (1 << bits) - 1, np.uint8)
            for zero_level in (True, False):
                text = segment_bits(largest, bits, zero_level)
                assert len(text) == elias_max_bits(n, bits, zero_level)


def refuse(damaged, n, message, bits=4, zero_level=True):
    out = np.empty((n * bits + 7) // 8, np.uint8)
    with pytest.raises(ValueError, match=message):
        Coder("elias", bits, zero_level).decode(damaged, n, out)


@pytest.mark.parametrize("n", [9, 1000])  # the first is too short for look-ups
def test_what_is_wrong_is_said(n):
    refuse(framed(elias(n + 2)), n, "segment 0 of an Elias stream .* a gap goes past the end")
    refuse(framed("111111111111"), n, "a gap goes past the end")
    refuse(framed("00", elias(8), elias(n)), n, "a level is out of range")
    refuse(framed("00", "111111111111"), n, "a level is out of range")
    refuse(framed(elias(n - 1)[:-1]), n, "truncated|past the end")
    refuse(framed("000" * 3), n, "truncated")
    refuse(framed(elias(n + 1), "0" * 8), n, "too long")
    word = elias(n + 1)
    refuse(framed(word.ljust(-len(word) % 8 + len(word) - 1, "0"), "1"), n, "fill it up")


def test_what_is_wrong_is_said_without_a_zero_level():
    word = "0" + elias(8)
    for text, message in [
        ("0" + elias(9), "out of range"),
        (word * 49, "truncated"),
        (word * 51, "too long"),
        (word * 50 + "00000000", "too long"),
    ]:
        refuse(framed(text), 50, message, zero_level=False)
    refuse(framed("00" * 3, "01"), 3, "fill it up", zero_level=False)


def test_a_segment_longer_than_any_is_refused_before_it_is_read():
    refuse(framed("0" * 8 * 20000), 100, "too long")
