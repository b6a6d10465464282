"""What both entropy coders promise: nothing is lost, nothing damaged does harm."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decentral_kernels
from decentral_kernels import code_tables as tables
from decentral_kernels import coding, reference, threads
from decentral_kernels.code_tables import SEGMENT
from decentral_kernels.coding import KINDS, Coder

BITS = tuple(range(2, 9))
SIZES = (0, 1, 2, 7, 1023, 1024, 1025, 8191, 8192, 8193, 20000, 4 * SEGMENT + 77)
VECTORS = ("zeros", "largest", "uniform", "peaked", "sparse")
GUARD = 64
CODERS = [(kind, zero_level) for kind in KINDS for zero_level in (True, False)]

coders = pytest.mark.parametrize(("kind", "zero_level"), CODERS)
widths = pytest.mark.parametrize("bits", BITS)


def codes_of(vector, n, bits, seed=0):
    """Return uint8[n] codes, not packed, with codes of level 0 of both signs."""
    rng = np.random.default_rng([seed, n, bits])
    largest = (1 << bits) - 1
    if vector in ("zeros", "largest"):
        return np.full(n, largest * (vector == "largest"), np.uint8)
    if vector == "peaked":
        levels = np.minimum(rng.geometric(0.5, n) - 1, largest >> 1)
        return (levels | rng.integers(0, 2, n) << (bits - 1)).astype(np.uint8)
    codes = rng.integers(0, largest + 1, n).astype(np.uint8)
    return codes if vector == "uniform" else codes * (rng.random(n) < 0.01)


def without_lost_signs(codes, bits, zero_level=True):
    """Return codes as they must come back: level 0 has no sign."""
    is_zero = zero_level & (codes & (1 << bits - 1) - 1 == 0)
    return np.where(is_zero, np.uint8(0), codes)


def stream_of(coder, codes):
    """Return the stream of uint8[n] codes as it comes with room to spare."""
    out = np.full(coder.max_nbytes(codes.size) + GUARD, 0xA5, np.uint8)
    packed = reference.pack(codes, coder.bits)
    packed.flags.writeable = False
    size = coder.encode(packed, codes.size, out[:-GUARD])
    assert 0 <= size <= out.size - GUARD and (out[-GUARD:] == 0xA5).all()
    stream = out[:size].copy()
    stream.flags.writeable = False
    return stream


def decoded(coder, stream, n):
    """Return the uint8[n] codes of a stream; nothing beside the output may have changed."""
    nbytes = (n * coder.bits + 7) // 8
    out = np.full(nbytes + 2 * GUARD, 0xA5, np.uint8)
    try:
        coder.decode(stream, n, out[GUARD : GUARD + nbytes])
    finally:
        assert (out[:GUARD] == 0xA5).all() and (out[GUARD + nbytes :] == 0xA5).all()
    return reference.unpack(out[GUARD : GUARD + nbytes], n, coder.bits)


def assert_comes_back(coder, codes):
    stream = stream_of(coder, codes)
    expected = without_lost_signs(codes, coder.bits, coder.zero_level)
    np.testing.assert_array_equal(decoded(coder, stream, codes.size), expected)
    return stream


# --- round trips


@widths
@coders
def test_sizes_and_kinds_of_codes(kind, zero_level, bits):
    coder = Coder(kind, bits, zero_level)
    for n in SIZES:
        for vector in VECTORS:
            codes = codes_of(vector, n, bits)
            stream = assert_comes_back(coder, codes)
            lossless = without_lost_signs(codes, bits, zero_level)
            np.testing.assert_array_equal(stream, stream_of(coder, lossless))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    coder=st.sampled_from(CODERS),
    bits=st.sampled_from(BITS),
    n=st.integers(0, 2 * SEGMENT),
    vector=st.sampled_from(VECTORS),
    runs=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 300)), max_size=20),
)
def test_any_codes(coder, bits, n, vector, runs):
    codes = [codes_of(vector, n, bits), *(np.full(k, c % (1 << bits)) for c, k in runs)]
    assert_comes_back(Coder(coder[0], bits, coder[1]), np.concatenate(codes).astype(np.uint8))


# --- sizes


@widths
@coders
def test_room(kind, zero_level, bits):
    coder = Coder(kind, bits, zero_level)
    for n in (1, 1000, SEGMENT + 5):
        codes = codes_of("uniform", n, bits)
        packed, stream = reference.pack(codes, bits), stream_of(coder, codes)
        out = np.full(stream.size + GUARD, 0xA5, np.uint8)
        assert coder.encode(packed, n, out[: stream.size]) == stream.size
        np.testing.assert_array_equal(out[: stream.size], stream)
        for room in {0, 1, stream.size // 2, stream.size - 1}:
            out[:] = 0xA5
            assert coder.encode(packed, n, out[:room]) == -1
            assert (out[room:] == 0xA5).all()


@coders
def test_threads_do_not_change_a_byte(kind, zero_level, monkeypatch):
    monkeypatch.setattr(coding, "_GRAIN", 1)
    before = threads.get_num_threads()
    codes = codes_of("peaked", 13 * SEGMENT + 4321, 4)
    coder = Coder(kind, 4, zero_level)
    try:
        threads.set_num_threads(1)
        stream = assert_comes_back(coder, codes)
        for n in (2, 3, 16):
            threads.set_num_threads(n)
            np.testing.assert_array_equal(assert_comes_back(coder, codes), stream)
            packed, out = reference.pack(codes, 4), np.empty(stream.size, np.uint8)
            assert coder.encode(packed, codes.size, out) == stream.size
            assert coder.encode(packed, codes.size, out[:-1]) == -1
            with pytest.raises(ValueError, match=r"segment \d+ of an? .* cannot be decoded"):
                decoded(coder, stream[: -stream.size // 3], codes.size)
    finally:
        threads.set_num_threads(before)


# --- what is refused


def test_arguments():
    with pytest.raises(ValueError, match="elias, huffman, got 'lzw'"):
        Coder("lzw", 4)
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"from 2 to 8, got {bits}"):
            Coder("elias", bits)
    coder, three = Coder("elias", 4), np.zeros(3, np.uint8)
    for n in (-1, 4, 7):
        for call in (
            lambda n=n: coder.encode(three, n, np.zeros(100, np.uint8)),
            lambda n=n: coder.decode(np.zeros(9, np.uint8), n, three),
            lambda n=n: coder.nbits(three, n),
        ):
            with pytest.raises(ValueError, match=f"3 bytes do not hold {n} packed codes of 4 bits"):
                call()


@coders
def test_lengths_that_do_not_fit(kind, zero_level):
    coder = Coder(kind, 4, zero_level)
    n = 2 * SEGMENT + 100
    stream = stream_of(coder, codes_of("peaked", n, 4))
    at = coder._head_nbytes(n) - 12
    for damage, message in [
        (lambda s: s[: at + 11], "begins with"),
        (lambda s: s[:-1], "segment 2 .* truncated"),
        (lambda s: np.append(s, s[:1]), "has 1 bytes after its last segment"),
        (lambda s: _add(s, at + 4, 1), "segment 2 .* truncated"),  # the sum is too large
        (lambda s: _add(s, at + 3, 255), "segment 0 .* truncated"),
        (lambda s: _add(_add(s, at, -1), at + 4, 1), "segment 0"),
        (lambda s: _add(_add(s, at + 4, 1), at + 8, -1), "segment 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            decoded(coder, damage(stream), n)
    with pytest.raises(ValueError, match="1 bytes after"):
        decoded(coder, np.zeros(1, np.uint8), 0)


def _add(stream, at, value):
    changed = stream.copy()
    changed[at] = (int(changed[at]) + value) % 256
    return changed


# --- damage


def _damaged(stream, rng):
    kind = rng.integers(4)
    if kind == 0:
        return stream[: rng.integers(stream.size + 1)]
    if kind == 1:
        return rng.integers(0, 256, rng.integers(2 * stream.size + 2), dtype=np.uint8)
    changed = stream.copy()
    for at in rng.integers(0, 8 * max(1, stream.size), kind - 1 if stream.size else 0):
        changed[at // 8] ^= 1 << at % 8
    return changed


def fuzz_kernels(kind, rounds, per_message=50, seed=0):
    # Return how many were refused, and how many not; those must be what the encoder writes.
    rng = np.random.default_rng(seed)
    outcome = [0, 0]
    for i in range(rounds // per_message):
        bits, n = BITS[i % 7], int(rng.integers(1, 60) if i % 20 else SEGMENT - rng.integers(40))
        coder = Coder(kind, bits, bool(i % 3))
        packed = reference.pack(codes_of(VECTORS[2 + i % 3], n, bits, i), bits)
        table, written = coder._encoding_table(packed, n)
        back = coder._decoding_table(written)
        out, sizes = np.zeros(coder.max_nbytes(n), np.uint8), np.zeros(1, np.int64)
        module, key = coder._module(), coder._key()
        encode, decode = module.encoder(*key), module.decoder(*key)
        stream = out[: encode(packed, n, bits, table, out, sizes, 0, 1)].copy()
        guarded = np.full(packed.size + 2 * GUARD, 0xA5, np.uint8)
        got = guarded[GUARD : GUARD + packed.size]
        for _ in range(per_message):
            damaged = _damaged(stream, rng)
            bad = decode(damaged, np.array([0, damaged.size]), n, bits, back, got, 0, 1)
            assert -1 <= bad < len(tables.PROBLEMS)
            outcome[bad < 0] += 1
            if bad < 0:
                size = encode(got, n, bits, table, out, sizes, 0, 1)
                assert out[:size].tobytes() == damaged.tobytes()
        assert (guarded[:GUARD] == 0xA5).all() and (guarded[-GUARD:] == 0xA5).all()
    return outcome


def fuzz_streams(kind, rounds, seed=0):
    # The same for whole streams, lengths and tables too; a table need not be the encoder's.
    rng = np.random.default_rng(seed)
    outcome = [0, 0]
    for i in range(rounds):
        bits, n = BITS[i % 7], int(rng.integers(0, 100) if i % 20 else rng.integers(6 * SEGMENT))
        coder = Coder(kind, bits, bool(i % 3))
        stream = stream_of(coder, codes_of(VECTORS[i % 5], n, bits, i))
        try:
            decoded(coder, _damaged(stream, rng), n)
            outcome[1] += 1
        except ValueError as error:
            assert "stream" in str(error) or "table of code lengths" in str(error)
            outcome[0] += 1
    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_damage(kind):
    refused, accepted = fuzz_kernels(kind, 100_000)
    assert refused > 20_000 and accepted > 2_000
    refused, accepted = fuzz_streams(kind, 3_000)
    assert refused > 1_500 and accepted > 20


def in_a_fresh_process(script, **environment):
    """Run a script that may import this file; return what it printed."""
    here, package = Path(__file__).parent, Path(decentral_kernels.__file__).parent.parent
    environment = {"PYTHONPATH": os.pathsep.join((str(here), str(package)))} | environment
    options = {"env": os.environ | environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], timeout=280, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


FUZZ = """
import test_coding as t
for kind in t.KINDS:
    assert min(t.fuzz_kernels(kind, 5000, per_message=10, seed=1)) > 50
    t.fuzz_streams(kind, 200, seed=1)
"""


def test_no_index_is_out_of_bounds(tmp_path):
    in_a_fresh_process(FUZZ, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))


# --- the disk cache

LOAD = """
import test_coding as t
from decentral_kernels import elias, huffman
for kind, zero_level in t.CODERS:
    t.Coder(kind, 4, zero_level).compile()
made = [f(z) for f in (elias.encoder, elias.decoder) for z in (True, False)]
made += [huffman.encoder(), huffman.decoder(), huffman.counter(), huffman.length_maker()]
print([(*k.stats.cache_hits.values(), *k.stats.cache_misses.values()) for k in made])
"""


def test_a_second_process_loads_the_kernels_instead_of_compiling():
    for kind, zero_level in CODERS:
        Coder(kind, 4, zero_level).compile()
    assert in_a_fresh_process(LOAD).strip() == str([(1,)] * 8)
