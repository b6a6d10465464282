"""The codes themselves, in plain Python and NumPy: their words, and the tables made of them.

elias.py and huffman.py say what the codes are; their kernels look words up in the tables from here.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from . import reference
from .layout import MAX_NUMEL, UNIT, Quantizer
from .rng import fold_key

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

SEGMENT = 8 * UNIT  # coordinates that are coded on their own: the papers' block
# Elias: bits that the decoder looks up at once, coordinates that one look-up may write.
WINDOW, RUN = 12, 7
# Huffman: bits of the longest code word. At 12 a message is 0.2 % longer than at 14, its tables
# take a quarter of the memory. Four words must fit into the 57 bits that a load brings.
LIMIT = 12
_SAMPLE = 1 << 16  # coordinates that the length of a stream is estimated from
# What is wrong with a segment: a kernel returns 8 * segment + an index.
PROBLEMS = (
    "it is truncated",
    "it is too long",
    "a gap goes past the end",
    "a level is out of range",
    "bits that fill it up are not zero",
)
TRUNCATED, TOO_LONG, PAST_END, BAD_LEVEL, NOT_ZERO = range(5)


def gaussian_codes(q: Quantizer) -> Bytes:
    """Return the codes of a Gaussian vector, not packed, to estimate the length of a stream from.

    Without compiled kernels: for who has yet to choose a code.
    """
    x = np.random.default_rng(0).standard_normal(_SAMPLE).astype(np.float32)
    return reference.quantize(x, reference.block_scales(x, q), fold_key(0, 0, 0, 0), q)


def check_packed(packed: Bytes, numel: int, bits: int) -> None:
    """Refuse what would make a kernel, which checks no index, leave its arrays."""
    if not 0 <= numel <= MAX_NUMEL or packed.size != -(-numel * bits // 8):
        raise ValueError(f"{packed.size} bytes do not hold {numel} packed codes of {bits} bits")


# --- Elias


def omega(number: int) -> str:
    """Return the recursive Elias code of a positive number as a string of bits."""
    code = "0"
    while number > 1:
        group = f"{number:b}"
        code = group + code
        number = len(group) - 1
    return code


def elias_max_bits(n: int, bits: int, zero_level: bool) -> int:
    """Return the most bits that n coordinates of one segment can take."""
    top = (1 << (bits - 1)) - 1 if zero_level else 1 << (bits - 1)
    longest = len(omega(top)) + 1
    # A longer gap takes fewer bits than the nonzeros that could stand in its place.
    return n * (longest + 1) + 1 if zero_level else n * longest


def _code_words(bits: int, zero_level: bool) -> list[str]:
    """Return sign and level, as they are written, of every code that is not zero."""
    levels = 1 << (bits - 1)
    words = [omega(max(1, i % levels + (not zero_level))) for i in range(2 * levels)]
    return [str(i // levels) + word for i, word in enumerate(words)]


@lru_cache(maxsize=None)
def elias_encoding_table(bits: int, zero_level: bool) -> npt.NDArray[np.uint64]:
    """Return uint64[256 + SEGMENT + 2]: code word | length << 56, of codes and then of gaps."""
    words = _code_words(bits, zero_level)
    words += [""] * (256 - len(words))
    words += [omega(max(1, gap)) for gap in range(SEGMENT + 2)]
    return np.array([int("0" + word, 2) | len(word) << 56 for word in words], np.uint64)


@lru_cache(maxsize=None)
def elias_decoding_table(bits: int, zero_level: bool) -> npt.NDArray[np.uint64]:
    """Return uint64[2^WINDOW]: RUN codes, 8 bits each, coordinates << 56, bits used << 60."""
    words = _code_words(bits, zero_level)
    levels = 1 << (bits - 1)
    symbols = sorted(
        (len(gap_word + words[code]), int(gap_word + words[code], 2), gap, code)
        for gap in range(1, RUN + 1 if zero_level else 2)
        for gap_word in (omega(gap) if zero_level else "",)
        for code in range(2 * levels)
        if code % levels or not zero_level
    )
    table = np.zeros(1 << WINDOW, np.uint64)

    def fill(prefix: int, used: int, run: int, count: int) -> None:
        rest = WINDOW - used
        table[prefix << rest : (prefix + 1) << rest] = run | count << 56 | used << 60
        for length, word, gap, code in symbols:
            if length > rest:
                return
            if count + gap <= RUN:
                place = count + gap - 1
                fill(prefix << length | word, used + length, run | code << 8 * place, place + 1)

    fill(0, 0, 0, 0)
    return table


# --- Huffman


def symbol_bits(bits: int) -> int:
    """Return how many bits a symbol has: that of a byte, of a pair, or of one code."""
    return {2: 8, 3: 6, 4: 8}.get(bits, bits)


def num_symbols(n: int, bits: int) -> int:
    """Return how many symbols n coordinates of one segment have."""
    width = symbol_bits(bits)
    return -(-n // (width // bits))


@lru_cache(maxsize=None)
def canonical_symbols(bits: int, zero_level: bool) -> Bytes:
    """Return uint8[2^symbol_bits]: each symbol with codes of level 0 replaced by code 0."""
    width = symbol_bits(bits)
    symbols = np.arange(1 << width)
    canonical = np.zeros_like(symbols)
    for shift in range(0, width, bits):
        code = symbols >> shift & (1 << bits) - 1
        is_zero = zero_level & (code & (1 << (bits - 1)) - 1 == 0)
        canonical |= np.where(is_zero, 0, code) << shift
    return canonical.astype(np.uint8)


@lru_cache(maxsize=None)
def listed_symbols(bits: int, zero_level: bool) -> Bytes:
    """Return the symbols that the table of a message lists, in order."""
    return np.unique(canonical_symbols(bits, zero_level))


def table_nbytes(bits: int, zero_level: bool) -> int:
    """Return the size of the table of code lengths that a message begins with."""
    return (listed_symbols(bits, zero_level).size + 1) // 2


def write_table(lengths: Bytes, bits: int, zero_level: bool) -> Bytes:
    """Return the code lengths, uint8[2^symbol_bits], as a message has them."""
    listed = listed_symbols(bits, zero_level)
    halves = np.zeros(2 * table_nbytes(bits, zero_level), np.uint8)
    halves[: listed.size] = lengths[listed]
    return halves[::2] | halves[1::2] << np.uint8(4)


def read_table(table: Bytes, bits: int, zero_level: bool) -> Bytes:
    """Return the code lengths, uint8[2^symbol_bits], that write_table() was given.

    Raises:
        ValueError: they are no lengths of a complete code.
    """
    listed = listed_symbols(bits, zero_level)
    halves = np.stack((table & np.uint8(15), table >> np.uint8(4)), axis=1).ravel()
    used = halves[halves > 0].astype(np.int64)
    complete = int((1 << LIMIT >> used).sum()) == 1 << LIMIT
    lone = used.size == 1 and used[0] == 1
    if not (complete or lone) or used.max() > LIMIT or halves[listed.size :].any():
        raise ValueError("the table of code lengths is none of a complete code")
    lengths = np.zeros(1 << symbol_bits(bits), np.uint8)
    lengths[listed] = halves[: listed.size]
    return lengths


def _canonical_code(lengths: Bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the symbols in the order of their words, and the lengths of the words as written."""
    order = np.lexsort((np.arange(lengths.size), lengths))
    order = order[lengths[order] > 0]
    return order, lengths[order].astype(np.int64) * (order.size > 1)


def huffman_encoding_table(lengths: Bytes, bits: int, zero_level: bool) -> npt.NDArray[np.uint64]:
    """Return uint64[2^symbol_bits]: code word | length << 56, for symbols as they are packed."""
    order, length = _canonical_code(lengths)
    width = 1 << LIMIT >> length
    table = np.zeros(lengths.size, np.uint64)
    table[order] = (np.cumsum(width) - width) >> (LIMIT - length) | length << 56
    return table[canonical_symbols(bits, zero_level)]


def huffman_decoding_table(lengths: Bytes) -> npt.NDArray[np.uint16]:
    """Return uint16[2^LIMIT]: symbol | length << 8, by the next LIMIT bits."""
    order, length = _canonical_code(lengths)
    return np.repeat((order | length << 8).astype(np.uint16), 1 << LIMIT >> length)
