"""Elias coding of packed codes: gaps, signs and levels as the QSGD paper's ENCODE writes them.

Source: QSGD (Alistarh et al., NeurIPS 2017), section 3.1 and its appendix; NUQSGD (JMLR 2021) codes
the same way. For each nonzero of a segment: Elias(gap from the one before; the first counts from
position -1), a sign bit, Elias(level), where Elias is the recursive (omega) code. The end of a
segment is ours: a gap to the place one past its last coordinate. Where codes have no zero level,
every gap would be 1 and is left out: a sign bit and Elias(level + 1) per coordinate, much like the
paper's variant for dense vectors. Bits go most significant first into bytes, and a segment is
filled up with zero bits to whole bytes.

Decoding looks WINDOW bits up at once: an entry of the table has all the nonzeros that these bits
hold, so that it writes up to RUN coordinates. What no entry has is decoded number by number.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numba import njit, types

from .code_tables import (
    BAD_LEVEL,
    NOT_ZERO,
    PAST_END,
    RUN,
    SEGMENT,
    TOO_LONG,
    TRUNCATED,
    WINDOW,
    elias_max_bits,
)
from .cpu_parts import pack_rest, unpack_rest
from .layout import MAX_BITS, STAMP, UNIT

u8, u64 = np.uint8, np.uint64

_WORD = u64((1 << 56) - 1)  # of an entry, below its length
SLACK = 64  # bytes that buffers have beyond what they hold, for whole words

_int, _bytes = types.int64, types.uint8[::1]
read_bytes = types.Array(types.uint8, 1, "C", readonly=True)
_read_words = types.Array(types.uint64, 1, "C", readonly=True)
_sizes, _read_sizes = types.int64[::1], types.Array(types.int64, 1, "C", readonly=True)
ENCODE = _int(read_bytes, _int, _int, _read_words, _bytes, _sizes, _int, _int)
DECODE = _int(read_bytes, _read_sizes, _int, _int, _read_words, _bytes, _int, _int)

# Of what the kernels here and in huffman.py are made; see layout.STAMP.
_SOURCES = ("elias.py", "code_tables.py")
CODING_STAMP = zlib.crc32(
    b"".join(Path(__file__).with_name(f).read_bytes() for f in _SOURCES), STAMP
)


@njit(inline="always")
def load(buffer, at):
    """Return the 64 bits from bit `at` on, left-aligned; the last 7 of them may be missing."""
    w = u64(0)
    for k in range(8):  # one load, and so below
        w = u64(u64(w << u64(8)) | u64(buffer[u64(u64(at >> 3) + u64(k))]))
    return u64(w << u64(at & 7))


@njit(inline="always")
def join(a, b):
    """Return two entries of an encoding table, word | length << 56, as one: first a, then b."""
    length = u64(b >> u64(56))
    word = u64(u64(u64(a & _WORD) << length) | u64(b & _WORD))
    return u64(word | u64(u64(u64(a >> u64(56)) + length) << u64(56)))


@njit(inline="always")
def put(buffer, size, w, filled, e):
    """Append entry e to buffer[:size] and the `filled` bits at the top of w; return these three."""
    filled = u64(filled + u64(e >> u64(56)))
    # In two steps: where nothing is filled, a shift by 64 would mean nothing.
    w = u64(w | u64(u64(u64(e & _WORD) << u64(u64(63) - filled)) << u64(1)))
    for k in range(8):
        buffer[u64(u64(size) + u64(k))] = u8(w >> u64(56 - 8 * k))
    return size + np.int64(filled >> u64(3)), u64(w << u64(filled & u64(56))), u64(filled & u64(7))


@njit(inline="always")
def _store_run(codes, at, e):
    """Write the RUN codes of a decoding table's entry, and a zero, from codes[at] on."""
    w = u64(e & _WORD)
    for k in range(8):
        codes[u64(u64(at) + u64(k))] = u8(w >> u64(8 * k))


@njit
def unpack(packed, n, bits, codes):
    """Unpack the n codes of a segment, uint8[ceil(n * bits / 8)], to codes[:n]."""
    lanes, planes = 8 // (bits & -bits), bits // (bits & -bits)
    for low in range(0, n, UNIT):
        m = min(UNIT, n - low)
        columns = m // lanes
        mine, out = packed[low * bits // 8 : ((low + m) * bits + 7) // 8], codes[low : low + m]
        for j in range(lanes):
            run = out[j * columns : (j + 1) * columns]
            shift = j * bits
            p, by = shift // 8, shift % 8
            plane = mine[p * columns : (p + 1) * columns]
            if by + bits <= 8:
                for k in range(run.size):
                    run[k] = u8(u8(plane[k] >> u8(by)) & u8((1 << bits) - 1))
            else:
                upper = mine[(p + 1) * columns : (p + 2) * columns]
                for k in range(run.size):
                    c = u8(plane[k] >> u8(by)) | u8(upper[k] << u8(8 - by))
                    run[k] = u8(u8(c) & u8((1 << bits) - 1))
        unpack_rest(mine[planes * columns :], bits, out[lanes * columns :])


@njit
def pack(codes, n, bits, packed):
    """Undo unpack()."""
    lanes, planes = 8 // (bits & -bits), bits // (bits & -bits)
    for low in range(0, n, UNIT):
        m = min(UNIT, n - low)
        columns = m // lanes
        mine, source = packed[low * bits // 8 : ((low + m) * bits + 7) // 8], codes[low : low + m]
        mine[: planes * columns] = u8(0)
        for j in range(lanes):
            run = source[j * columns : (j + 1) * columns]
            shift = j * bits
            p, by = shift // 8, shift % 8
            plane = mine[p * columns : (p + 1) * columns]
            for k in range(plane.size):
                plane[k] = u8(plane[k] | u8(run[k] << u8(by)))
            if by + bits > 8:
                upper = mine[(p + 1) * columns : (p + 2) * columns]
                for k in range(upper.size):
                    upper[k] = u8(upper[k] | u8(run[k] >> u8(8 - by)))
        pack_rest(source[lanes * columns :], bits, mine[planes * columns :])


@njit(inline="always")
def _number(w):
    """Return (number, length) of the omega code at the top of w; from 2^15 on (0, 0)."""
    value, used = u64(1), u64(0)
    while u64(w << used) >> u64(63):
        width = u64(value + u64(1))
        if width > u64(15):
            return u64(0), u64(0)
        value = u64(u64(w << used) >> u64(u64(64) - width))
        used = u64(used + width)
    return value, u64(used + u64(1))


@njit
def filling_is_zero(buffer, at, size):
    """Say whether bits `at` to 8 * size, fewer than 8, are zero."""
    return at == 8 * size or buffer[size - 1] & ((1 << (8 * size - at)) - 1) == 0


@lru_cache(maxsize=None)
def encoder(zero_level: bool) -> Callable[..., int]:
    """Return the kernel that writes a range of segments one after another.

    It takes (packed, numel, bits, table, out, sizes in bits int64[segments], first, last), and
    returns how many bytes the range takes; it writes no segment that `out` has no room for.
    """
    stamp = CODING_STAMP
    capacity = elias_max_bits(SEGMENT, MAX_BITS, zero_level) // 8 + 1 + SLACK

    @njit(ENCODE, nogil=True, cache=True)
    def encode(packed, numel, bits, table, out, sizes, first, last):
        def nonzeros(codes, n, level_mask, places):
            count = 0
            for j in range(n):
                places[count] = j
                count += (codes[j] & level_mask) != 0
            return count

        if stamp < 0:  # never; see STAMP
            return -1
        codes, places = np.empty(SEGMENT, u8), np.empty(SEGMENT + 1, np.int16)
        buffer = np.empty(capacity, u8)
        gaps = table[256:]
        total = 0
        for segment in range(first, last):
            low, n = segment * SEGMENT, min(SEGMENT, numel - segment * SEGMENT)
            unpack(packed[low * bits // 8 :], n, bits, codes)
            count = nonzeros(codes, n, (1 << (bits - 1)) - 1, places) if zero_level else n
            size, w, filled, before = 0, u64(0), u64(0), -1
            for i in range(count):
                at = np.int64(places[i]) if zero_level else i
                entry = table[u64(codes[u64(at)])]
                if zero_level:
                    entry = join(gaps[u64(at - before)], entry)
                    before = at
                size, w, filled = put(buffer, size, w, filled, entry)
            if zero_level:
                size, w, filled = put(buffer, size, w, filled, gaps[u64(n - before)])
            sizes[segment] = 8 * size + np.int64(filled)
            size = (sizes[segment] + 7) >> 3
            if total + size <= out.size:
                out[total : total + size] = buffer[:size]
            total += size
        return total

    return encode


@lru_cache(maxsize=None)
def decoder(zero_level: bool) -> Callable[..., int]:
    """Return the kernel that decodes and packs a range of segments.

    It takes (streams, edges int64[segments + 1], numel, bits, table, packed, first, last), and
    returns -1 or 8 * segment + the index of what is wrong with it in PROBLEMS.
    """
    stamp = CODING_STAMP
    capacity = elias_max_bits(SEGMENT, MAX_BITS, zero_level) // 8 + 1

    @njit(DECODE, nogil=True, cache=True)
    def decode(streams, edges, numel, bits, table, packed, first, last):
        def decode_segment(buffer, size, n, bits, table, codes):
            top = (1 << (bits - 1)) - 1 if zero_level else 1 << (bits - 1)
            codes[:] = u8(0)
            at, place = 0, 0
            while True:
                if place <= n - 4 * RUN:
                    if at > 8 * size:
                        return TRUNCATED
                    w = load(buffer, at)
                    used = u64(0)
                    for _ in range(4):
                        e = table[u64(w >> u64(64 - WINDOW))]
                        _store_run(codes, place, e)
                        used = u64(e >> u64(60))
                        w = u64(w << used)
                        at += np.int64(used)
                        place += np.int64(u64(e >> u64(56)) & u64(15))
                    if used:
                        continue
                if at > 8 * size:
                    return TRUNCATED
                w = load(buffer, at)
                if zero_level:
                    gap, used = _number(w)
                    if not used:
                        return PAST_END
                    at += np.int64(used)
                    w = u64(w << used)
                    place += np.int64(gap) - 1
                    if place > n:
                        return PAST_END
                if place == n:
                    break
                level, used = _number(u64(w << u64(1)))
                if not used or level > u64(top):
                    return BAD_LEVEL
                at += 1 + np.int64(used)
                if not zero_level:
                    level = u64(level - u64(1))
                codes[place] = u8(level | u64(u64(w >> u64(63)) << u64(bits - 1)))
                place += 1
            if at > 8 * size:
                return TRUNCATED
            if at <= 8 * size - 8:
                return TOO_LONG
            return -1 if filling_is_zero(buffer, at, size) else NOT_ZERO

        if stamp < 0:  # never; see STAMP
            return -1
        codes = np.empty(SEGMENT + SLACK, u8)
        buffer = np.zeros(capacity + SLACK, u8)
        for segment in range(first, last):
            low, n = segment * SEGMENT, min(SEGMENT, numel - segment * SEGMENT)
            size = edges[segment + 1] - edges[segment]
            if size > capacity:
                return 8 * segment + TOO_LONG
            buffer[:size] = streams[edges[segment] : edges[segment + 1]]
            buffer[size : size + SLACK] = u8(0)
            problem = decode_segment(buffer, size, n, bits, table, codes)
            if problem >= 0:
                return 8 * segment + problem
            mine = packed[low * bits // 8 : ((low + n) * bits + 7) // 8]
            pack(codes, n, bits, mine)
        return -1

    return decode
