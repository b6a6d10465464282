"""The Huffman coder writes the canonical code of the best lengths there are, bit for bit."""

import heapq

import numpy as np
import pytest

from decentral_kernels import code_tables as tables
from decentral_kernels import huffman, reference
from decentral_kernels.code_tables import LIMIT, SEGMENT
from decentral_kernels.coding import Coder

BITS = range(2, 9)


def symbols_of(codes, bits, zero_level):
    """Return the symbols of uint8[n] codes of one segment, from layout.py's words."""
    if zero_level:
        codes = np.where(codes & (1 << bits - 1) - 1, codes, 0).astype(np.uint8)
    if bits in (2, 4, 8):
        return reference.pack(codes, bits)
    if bits == 3:
        half = (codes.size + 1) // 2
        return codes[:half] | np.pad(codes[half:], (0, codes.size % 2)) << 3
    return codes


def best_lengths(counts, limit=LIMIT):
    """Return {symbol: length}: package-merge with the packages written out, symbols before pairs.

    A coin of every symbol for every length; the 2 n - 2 cheapest of the last list are taken.
    """
    coins = [(counts[s], 0, (s,)) for s in sorted(counts, key=lambda s: (counts[s], s))]
    if len(coins) == 1:
        return {coins[0][2][0]: 1}
    row = coins
    for _ in range(limit - 1):
        pairs = [(a[0] + b[0], 1, a[2] + b[2]) for a, b in zip(row[::2], row[1::2], strict=False)]
        row = sorted(coins + pairs, key=lambda coin: coin[:2])  # stable
    taken = [s for coin in row[: 2 * len(coins) - 2] for s in coin[2]]
    return {s: taken.count(s) for s in counts}


def words_of(lengths):
    """Return {symbol: word}, shorter words first, then smaller symbols; a lone symbol has ''."""
    if len(lengths) == 1:
        return dict.fromkeys(lengths, "")
    words, code, before = {}, -1, 0
    for length, symbol in sorted((n, s) for s, n in lengths.items()):
        code = (code + 1) << (length - before)
        words[symbol], before = f"{code:0{length}b}", length
    return words


def stream(codes, bits, zero_level):
    """Return (stream, bits of the code words) of uint8[n] codes, n > 0."""
    segments = [
        symbols_of(codes[i : i + SEGMENT], bits, zero_level) for i in range(0, codes.size, SEGMENT)
    ]
    values, counts = np.unique(np.concatenate(segments), return_counts=True)
    lengths = best_lengths(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    words = words_of(lengths)
    texts = ["".join(words[s] for s in segment.tolist()) for segment in segments]
    body = [np.packbits(np.frombuffer(t.encode(), np.uint8) & 1) for t in texts]
    halves = [lengths.get(int(s), 0) for s in tables.listed_symbols(bits, zero_level)] + [0]
    table = [low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=False)]
    sizes = np.array([b.size for b in body], "<u4").view(np.uint8)
    return np.concatenate([np.array(table, np.uint8), sizes, *body]), sum(map(len, texts))


def encoded(coder, codes):
    out = np.empty(coder.max_nbytes(codes.size), np.uint8)
    size = coder.encode(reference.pack(codes, coder.bits), codes.size, out)
    assert size >= 0
    return out[:size]


def counts_of(*counts):
    return np.array(counts, np.int64)


# --- the code


@pytest.mark.parametrize("zero_level", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_equals_the_oracle(bits, zero_level):
    rng = np.random.default_rng(bits)
    coder = Coder("huffman", bits, zero_level)
    for n in (1, 7, 1025, SEGMENT + 1, 5 * SEGMENT + 3):
        levels = np.minimum(rng.geometric(0.4, n) - 1, (1 << bits - 1) - 1)
        codes = (levels | rng.integers(0, 2, n) << bits - 1).astype(np.uint8)
        expected, nbits = stream(codes, bits, zero_level)
        np.testing.assert_array_equal(encoded(coder, codes), expected)
        assert coder.nbits(reference.pack(codes, bits), n) == nbits


def fibonacci(n):
    values = [1, 1]
    while len(values) < n:
        values.append(values[-1] + values[-2])
    return values


@pytest.mark.parametrize(
    "counts",
    [
        [7],
        [0, 0, 3, 0],
        [1, 1],
        [1, 10**9],
        [5] * 256,
        [5] * 255,
        [0, *fibonacci(40)],
        [2**k for k in range(31)],
        list(range(256)),
        [2**31 - 257, *[1] * 255],
    ],
    ids=lambda counts: f"{len(counts)}-{max(counts)}",
)
def test_lengths_are_the_best_within_the_limit(counts):
    lengths = huffman.code_lengths(counts_of(*counts))
    used = {s: int(n) for s, n in enumerate(lengths) if n}
    assert used == best_lengths({s: c for s, c in enumerate(counts) if c})
    assert max(used.values()) <= LIMIT
    assert len(used) == 1 or sum(2**-n for n in used.values()) == 1


def huffman_cost(counts):
    """Return the bits that Huffman's own algorithm needs."""
    heap, cost = [c for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        cost += pair
        heapq.heappush(heap, pair)
    return cost


def test_costs_what_huffmans_algorithm_costs_where_the_limit_does_not_bind():
    rng = np.random.default_rng(5)
    for k in [2, 3, 10, 100, 256] * 10:
        counts = rng.integers(20, 200, k)
        assert counts @ huffman.code_lengths(counts).astype(int) == huffman_cost(counts.tolist())


def test_a_message_of_one_symbol_takes_no_bits():
    for bits in BITS:
        coder = Coder("huffman", bits)
        packed = np.zeros(3 * SEGMENT * bits // 8, np.uint8)
        assert coder.nbits(packed, 3 * SEGMENT) == 0
        size = encoded(coder, np.zeros(3 * SEGMENT, np.uint8)).size
        assert size == tables.table_nbytes(bits, True) + 12


def test_signs_of_zeros_are_no_symbols_of_their_own():
    assert tables.listed_symbols(2, True).size == 3**4
    assert tables.listed_symbols(4, True).size == 15**2
    assert tables.listed_symbols(8, True).size == 255
    assert tables.listed_symbols(4, False).size == 256
    assert tables.canonical_symbols(4, True)[0x88] == 0
    assert tables.canonical_symbols(4, True)[0x8F] == 0x0F
    assert tables.canonical_symbols(4, False)[0x8F] == 0x8F


# --- what is refused


def table(*lengths, bits=5):
    """Return a table of code lengths of 31 symbols."""
    halves = np.zeros(32, np.uint8)
    halves[: len(lengths)] = lengths
    return halves[::2] | halves[1::2] << 4


@pytest.mark.parametrize(
    "lengths",
    [
        (),
        (2,),
        (1, 2),
        (1, 1, 1),
        (2, 2, 2),
        (1, 2, 3, 4, 4, 15),
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 13),
        (*[0] * 30, 1, 1),  # the last is no symbol
    ],
    ids=str,
)
def test_tables_that_are_no_code(lengths):
    coder = Coder("huffman", 5)
    stream = np.concatenate([table(*lengths), np.zeros(4, np.uint8)])
    with pytest.raises(ValueError, match="the table of code lengths is none of a complete code"):
        coder.decode(stream, 9, np.zeros(6, np.uint8))


def test_tables_that_are_a_code_though_not_the_best():
    coder, out = Coder("huffman", 5), np.zeros(6, np.uint8)
    lone = np.concatenate([table(0, 1), np.zeros(4, np.uint8)])
    coder.decode(lone, 9, out)
    np.testing.assert_array_equal(reference.unpack(out, 9, 5), np.ones(9))
    stream = np.concatenate([table(1, 2, 2), np.array([2, 0, 0, 0, 0b01011010, 0b11000000])])
    coder.decode(stream.astype(np.uint8), 9, out)
    np.testing.assert_array_equal(reference.unpack(out, 9, 5), [0, 1, 2, 0, 1, 2, 0, 0, 0])


def test_what_is_wrong_is_said():
    coder, out = Coder("huffman", 5), np.zeros(6, np.uint8)
    for lengths, body, message in [
        ((1, 2, 2), [0b01011010], "segment 0 of a Huffman stream .* truncated"),
        ((1, 2, 2), [0b01011010, 0b11000000, 0], "too long"),
        ((1, 2, 2), [0b01011010, 0b11000001], "bits that fill it up are not zero"),
        ((1,), [0], "too long"),
    ]:
        stream = np.array([*table(*lengths), len(body), 0, 0, 0, *body], np.uint8)
        with pytest.raises(ValueError, match=message):
            coder.decode(stream, 9, out)


@pytest.mark.parametrize(("bits", "more"), [(2, 4), (3, 2), (4, 2)])
def test_codes_past_the_end_are_refused(bits, more):
    coder = Coder("huffman", bits)
    for n in (more, SEGMENT + more, 6 * SEGMENT - more):
        stream = encoded(coder, np.ones(n, np.uint8))
        out = np.zeros(((n - 1) * bits + 7) // 8, np.uint8)
        with pytest.raises(ValueError, match="bits that fill it up are not zero"):
            coder.decode(stream, n - 1, out)
