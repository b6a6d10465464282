"""Narrow codes: the stream is what the formula says, nothing is lost, no damage does harm."""

import numpy as np
import pytest
from test_coding import BITS, GUARD, VECTORS, codes_of, in_a_fresh_process

from decentral_kernels import Quantizer, reference
from decentral_kernels.coding import coder
from decentral_kernels.layout import UNIT
from decentral_kernels.narrow import Narrow, gaussian_width, widths

SIZES = (0, 1, 7, UNIT - 1, UNIT, UNIT + 1, 5 * UNIT, 9 * UNIT + 77)

each = pytest.mark.parametrize(
    ("bits", "zero_level"), [(bits, zero) for bits in BITS for zero in (True, False)]
)


def mixed(n, bits, seed=0):
    """Return uint8[n] codes of which every unit has another largest level, or none."""
    rng = np.random.default_rng([seed, n, bits])
    levels = [rng.integers(0, 1 << (k % bits), UNIT) for k in range(-(-n // UNIT))]
    signs = rng.integers(0, 2, n) << (bits - 1)
    return (np.concatenate([*levels, []])[:n].astype(np.int64) | signs).astype(np.uint8)


def vectors(n, bits, seed=0):
    return [mixed(n, bits, seed), *(codes_of(vector, n, bits, seed) for vector in VECTORS)]


def by_the_formula(codes, bits, zero_level):
    """Return the stream of codes, and the codes that it stands for."""
    whole = codes.size // UNIT * UNIT
    head, body, kept = [], [], codes.copy()
    for start in range(0, whole, UNIT):
        unit = codes[start : start + UNIT].astype(int)
        level, sign = unit % (1 << (bits - 1)), unit >> (bits - 1)
        width = next(w for w in range(2, bits + 1) if level.max() < 1 << (w - 1))
        if zero_level and not level.any():
            width, kept[start : start + UNIT] = 0, 0
        else:
            narrow = (level + (sign << (width - 1))).astype(np.uint8)
            body.append(reference.pack(narrow, width))
        head.append(width)
    body.append(reference.pack(codes[whole:], bits))
    return np.concatenate([np.array(head, np.uint8), *body]), kept


def encoded(codes, bits, zero_level, room=None):
    """Return the kernel's stream, None where there is no room, and that it wrote nothing else."""
    narrow = Narrow(bits, zero_level)
    room = narrow.max_nbytes(codes.size) if room is None else room
    out = np.full(room + GUARD, 0xA5, np.uint8)
    size = narrow.encode(reference.pack(codes, bits), codes.size, out[:room])
    assert (out[room:] == 0xA5).all()
    return None if size < 0 else out[:size].copy()


def decoded(stream, n, bits, zero_level):
    nbytes = (n * bits + 7) // 8
    out = np.full(nbytes + 2 * GUARD, 0xA5, np.uint8)
    try:
        Narrow(bits, zero_level).decode(stream, n, out[GUARD : GUARD + nbytes])
    finally:
        assert (out[:GUARD] == 0xA5).all() and (out[GUARD + nbytes :] == 0xA5).all()
    return reference.unpack(out[GUARD : GUARD + nbytes], n, bits)


@each
def test_a_stream_is_what_the_formula_says_and_comes_back(bits, zero_level):
    for n in SIZES:
        for codes in vectors(n, bits):
            expected, kept = by_the_formula(codes, bits, zero_level)
            stream = encoded(codes, bits, zero_level)
            np.testing.assert_array_equal(stream, expected)
            np.testing.assert_array_equal(decoded(stream, n, bits, zero_level), kept)
            np.testing.assert_array_equal(widths(codes, bits, zero_level), stream[: n // UNIT])
            least = Narrow(bits, zero_level).least_nbytes(n)
            assert least <= stream.size <= Narrow(bits, zero_level).max_nbytes(n)


@each
def test_the_shortest_and_the_longest_stream(bits, zero_level):
    narrow = Narrow(bits, zero_level)
    for n in SIZES:
        none = encoded(np.zeros(n, np.uint8), bits, zero_level)
        most = encoded(np.full(n, (1 << bits) - 1, np.uint8), bits, zero_level)
        assert (none.size, most.size) == (narrow.least_nbytes(n), narrow.max_nbytes(n))


@each
def test_room(bits, zero_level):
    for n in SIZES[1:]:
        codes = mixed(n, bits)
        stream = encoded(codes, bits, zero_level)
        np.testing.assert_array_equal(encoded(codes, bits, zero_level, stream.size), stream)
        for room in {0, 1, stream.size // 2, stream.size - 1} - {stream.size}:
            assert encoded(codes, bits, zero_level, room) is None


@pytest.mark.parametrize("n", (-1, 4, 7))
def test_lengths_that_do_not_fit_are_refused(n):
    narrow, three = coder("narrow", 4, True), np.zeros(3, np.uint8)
    for call in (narrow.encode, lambda *a: narrow.decode(*a[::-1])):
        with pytest.raises(ValueError, match=f"3 bytes do not hold {n} packed codes of 4 bits"):
            call(three, n, three)


def test_what_is_wrong_with_a_stream_is_said():
    n = 3 * UNIT + 5
    stream = encoded(mixed(n, 4), 4, False)
    for damaged, message in [
        (stream[:2], "is cut"),
        (stream[:-1], "is cut"),
        (np.append(stream, stream[:1]), "is too long"),
        (np.append(np.uint8(5), stream[1:]), "a width that there is not"),
        (np.append(np.uint8(1), stream[1:]), "a width that there is not"),
        (np.append(np.uint8(0), stream[1:]), "a width that there is not"),  # there is no level 0
    ]:
        with pytest.raises(ValueError, match=f"a stream of {n} narrow codes .* 4 bits .*{message}"):
            decoded(damaged, n, 4, False)


def fuzz(rounds, seed):
    """Damage streams; return how many were refused, and how many not."""
    rng, outcome = np.random.default_rng(seed), [0, 0]
    for i in range(rounds):
        bits, zero_level, n = BITS[i % 7], bool(i % 3), int(rng.integers(0, 6 * UNIT))
        stream = encoded(mixed(n, bits, i), bits, zero_level)
        kind = i % 4
        if kind == 0 and stream.size:
            stream[rng.integers(min(stream.size, 1 + n // UNIT))] = rng.integers(0, 10)
        elif kind == 1:
            stream = stream[: rng.integers(stream.size + 1)]
        elif kind == 2:
            stream = rng.integers(0, 256, rng.integers(2 * stream.size + 2)).astype(np.uint8)
        elif stream.size:
            stream[rng.integers(stream.size)] ^= 1 << rng.integers(8)
        try:
            back = decoded(stream, n, bits, zero_level)
        except ValueError as error:
            assert "narrow codes" in str(error)
            outcome[0] += 1
        else:  # it may be longer than it has to be, but stands for codes
            assert encoded(back, bits, zero_level).size <= max(stream.size, 0)
            outcome[1] += 1
    return outcome


def test_damage():
    refused, accepted = fuzz(4000, seed=0)
    assert refused > 1000 and accepted > 500


FUZZ = "import test_narrow as t; assert min(t.fuzz(400, seed=1)) > 50"


def test_no_index_is_out_of_bounds(tmp_path):
    in_a_fresh_process(FUZZ, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))


LOAD = """
from decentral_kernels import cpu_narrow
kernels = cpu_narrow.encoder(), cpu_narrow.decoder()
print([(*k.stats.cache_hits.values(), *k.stats.cache_misses.values()) for k in kernels])
"""


def test_a_second_process_loads_the_kernels_instead_of_compiling():
    Narrow(4).compile()
    assert in_a_fresh_process(LOAD).strip() == str([(1,)] * 2)


@pytest.mark.parametrize("levels", ("exponential", "uniform"))
@pytest.mark.parametrize("norm", ("l2", "max"))
@pytest.mark.parametrize("bits", BITS)
def test_the_estimate_of_a_gaussian_vectors_width(bits, norm, levels):
    q = Quantizer(bits, 8192, norm, levels)
    x = np.random.default_rng(1).standard_normal(1 << 18).astype(np.float32)
    codes = reference.quantize(x, reference.block_scales(x, q), (7, 8), q)
    expected = 8 * encoded(codes, bits, True).size / codes.size
    assert gaussian_width(q) == pytest.approx(expected, rel=0.05)  # 64 units
