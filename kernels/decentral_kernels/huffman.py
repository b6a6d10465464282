"""Huffman coding of packed codes: one canonical code per message, at most LIMIT bits per word.

A symbol stands for several codes where they are small, because a code word takes a whole bit at
least: at 2, 4 and 8 bits it is a packed byte (4, 2 or 1 codes), which saves the unpacking too, at
3 bits a pair (coordinates j and ceil(n/2) + j of a segment of n), above that one code. The code is
the best one with words of at most LIMIT bits (package-merge: Larmore and Hirschberg, JACM 1990); it
is canonical (shorter words first, then smaller symbols), so that the lengths say all. A message
begins with them: 4 bits for each symbol there may be, low half of a byte first, 0 for a symbol that
does not occur. A lone symbol has length 1 there, and its words take no bits at all.

Bits go most significant first into bytes, a segment is filled up with zero bits to whole bytes. The
decoder works on four segments at once, because each look-up has to wait for the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit, types

from .code_tables import (
    LIMIT,
    NOT_ZERO,
    SEGMENT,
    TOO_LONG,
    TRUNCATED,
    Bytes,
    Counts,
)
from .elias import (
    CODING_STAMP,
    ENCODE,
    SLACK,
    filling_is_zero,
    join,
    load,
    pack,
    put,
    read_bytes,
    unpack,
)

u8, u64 = np.uint8, np.uint64

_int, _bytes, _counts = types.int64, types.uint8[::1], types.int64[::1]
_read_counts = types.Array(types.int64, 1, "C", readonly=True)
_read_entries = types.Array(types.uint16, 1, "C", readonly=True)
_COUNT = types.void(read_bytes, _int, _int, _counts, _int, _int)
_LENGTHS = types.void(_read_counts, _bytes)
_DECODE = _int(read_bytes, _read_counts, _int, _int, _read_entries, _bytes, _int, _int)


def code_lengths(counts: Counts) -> Bytes:
    """Return the best code lengths, uint8[k], for symbols that occur counts[k] times, int64[k]."""
    lengths = np.zeros(counts.size, np.uint8)
    length_maker()(counts, lengths)
    return lengths


@lru_cache(maxsize=None)
def length_maker() -> Callable[..., None]:
    """Return the kernel that writes the best code lengths, uint8[k], for counts, int64[k]."""
    stamp = CODING_STAMP

    @njit(_LENGTHS, nogil=True, cache=True)
    def make_lengths(counts, lengths):
        if stamp < 0:  # never; see STAMP
            return
        lengths[:] = u8(0)
        keys = np.empty(counts.size, np.int64)
        n = 0
        for symbol in range(counts.size):
            if counts[symbol] > 0:
                keys[n] = counts[symbol] << 8 | symbol
                n += 1
        keys = np.sort(keys[:n])
        # A list per length, from LIMIT to 1: the symbols merged with the pairs of the list before,
        # by weight. is_symbol remembers which is which.
        is_symbol = np.zeros((LIMIT, 2 * n), np.bool_)
        weights, size = np.zeros(2 * n, np.int64), 0
        for row in range(LIMIT):
            pairs = weights[: size // 2 * 2].reshape(-1, 2).sum(axis=1)
            i, j = 0, 0
            while i < n or j < pairs.size:
                alone = j == pairs.size or (i < n and keys[i] >> 8 <= pairs[j])
                is_symbol[row, i + j] = alone
                weights[i + j] = keys[i] >> 8 if alone else pairs[j]
                i += alone
                j += not alone
            size = i + j
        taken = max(2 * n - 2, min(n, 1))  # a lone symbol: one item
        for row in range(LIMIT - 1, -1, -1):
            symbols = is_symbol[row, :taken].sum()
            for i in range(symbols):
                lengths[keys[i] & 255] += u8(1)
            taken = 2 * (taken - symbols)

    return make_lengths


@njit
def _gather(packed, n, bits, codes):
    """Return the symbols of a segment of n packed codes; `codes`, uint8[SEGMENT], may hold them."""
    if bits & (bits - 1) == 0:
        return packed
    unpack(packed, n, bits, codes)
    if bits == 3:
        half = (n + 1) // 2
        for j in range(n // 2):
            codes[j] |= u8(codes[half + j] << u8(3))
        return codes[:half]
    return codes[:n]


@njit
def _scatter(symbols, n, bits, codes, packed):
    """Undo _gather() but where it returned packed itself; say whether what fills up is zero."""
    if bits & (bits - 1) == 0:
        rest = n * bits % 8
        return rest == 0 or packed[packed.size - 1] >> rest == 0
    if bits == 3:
        half = (n + 1) // 2
        for j in range(half):
            codes[j] = u8(symbols[j] & u8(7))
            codes[half + j] = u8(symbols[j] >> u8(3))
        pack(codes, n, bits, packed)
        return n % 2 == 0 or codes[n] == 0
    pack(symbols, n, bits, packed)
    return True


@lru_cache(maxsize=None)
def counter() -> Callable[..., None]:
    """Return the kernel that adds to int64[256] how often each symbol occurs in its segments.

    It takes (packed, numel, bits, counts, first, last); codes of level 0 are counted as they stand.
    """
    stamp = CODING_STAMP

    @njit(_COUNT, nogil=True, cache=True)
    def count(packed, numel, bits, counts, first, last):
        if stamp < 0:  # never; see STAMP
            return
        codes = np.empty(SEGMENT, u8)
        # Equal neighbors would wait for each other in one table.
        even, odd = np.zeros(256, np.int64), np.zeros(256, np.int64)
        for segment in range(first, last):
            low, n = segment * SEGMENT, min(SEGMENT, numel - segment * SEGMENT)
            mine = packed[low * bits // 8 : ((low + n) * bits + 7) // 8]
            symbols = _gather(mine, n, bits, codes)
            for j in range(1, symbols.size, 2):
                even[symbols[j - 1]] += 1
                odd[symbols[j]] += 1
            if symbols.size % 2:
                even[symbols[symbols.size - 1]] += 1
        counts += even + odd

    return count


@lru_cache(maxsize=None)
def encoder() -> Callable[..., int]:
    """Return the kernel that writes a range of segments; it is called like elias.encoder's."""
    stamp = CODING_STAMP
    capacity = SEGMENT * LIMIT // 8 + SLACK

    @njit(ENCODE, nogil=True, cache=True)
    def encode(packed, numel, bits, table, out, sizes, first, last):
        if stamp < 0:  # never; see STAMP
            return -1
        codes = np.empty(SEGMENT, u8)
        buffer = np.empty(capacity, u8)
        total = 0
        for segment in range(first, last):
            low, n = segment * SEGMENT, min(SEGMENT, numel - segment * SEGMENT)
            mine = packed[low * bits // 8 : ((low + n) * bits + 7) // 8]
            symbols = _gather(mine, n, bits, codes)
            size, w, filled = 0, u64(0), u64(0)
            fours = symbols.size // 4 * 4
            for i in range(0, fours, 4):
                entry = join(
                    join(table[symbols[i]], table[symbols[i + 1]]),
                    join(table[symbols[i + 2]], table[symbols[i + 3]]),
                )
                size, w, filled = put(buffer, size, w, filled, entry)
            for i in range(fours, symbols.size):
                size, w, filled = put(buffer, size, w, filled, table[symbols[i]])
            sizes[segment] = 8 * size + np.int64(filled)
            size = (sizes[segment] + 7) >> 3
            if total + size <= out.size:
                out[total : total + size] = buffer[:size]
            total += size
        return total

    return encode


@lru_cache(maxsize=None)
def decoder() -> Callable[..., int]:
    """Return the kernel that decodes a range of segments; it is called like elias.decoder's."""
    stamp = CODING_STAMP
    capacity = SEGMENT * LIMIT // 8 + SLACK
    peek = 64 - LIMIT

    @njit(_DECODE, nogil=True, cache=True)
    def decode(streams, edges, numel, bits, table, packed, first, last):
        def step(w, table):
            """Return (symbol, length, the window after it)."""
            e = np.uint64(table[u64(w >> u64(peek))])
            return u8(e), np.int64(e >> u64(8)), u64(w << u64(e >> u64(8)))

        def decode_one(buffer, table, symbols):
            at = 0
            for i in range(symbols.size):
                e = np.int64(table[u64(load(buffer, at) >> u64(peek))])
                symbols[i] = u8(e)
                at += e >> 8
            return at

        def decode_four(buffers, full, table, symbols, ends):
            a, b, c, d = 0, 0, 0, 0
            b0, b1, b2, b3 = buffers[0], buffers[1], buffers[2], buffers[3]
            s0, s1 = symbols[:full], symbols[full : 2 * full]
            s2, s3 = symbols[2 * full : 3 * full], symbols[3 * full : 4 * full]
            for i in range(0, full, 4):
                wa, wb, wc, wd = load(b0, a), load(b1, b), load(b2, c), load(b3, d)
                for j in range(4):
                    s0[i + j], la, wa = step(wa, table)
                    s1[i + j], lb, wb = step(wb, table)
                    s2[i + j], lc, wc = step(wc, table)
                    s3[i + j], ld, wd = step(wd, table)
                    a += la
                    b += lb
                    c += lc
                    d += ld
            ends[0], ends[1], ends[2], ends[3] = a, b, c, d

        if stamp < 0:  # never; see STAMP
            return -1
        buffers = np.zeros((4, capacity), u8)
        per_symbol = 8 // bits  # codes
        full = SEGMENT // per_symbol
        codes, all_symbols = np.zeros(SEGMENT, u8), np.zeros(4 * full, u8)
        ends = np.zeros(4, np.int64)
        segment = first
        while segment < last:
            group = 4 if (segment + 4) * SEGMENT <= numel and segment + 4 <= last else 1
            for g in range(group):
                start, end = edges[segment + g], edges[segment + g + 1]
                size = end - start
                if size > capacity - SLACK:
                    return 8 * (segment + g) + TOO_LONG
                buffers[g, :size] = streams[start:end]
                buffers[g, size : size + SLACK] = u8(0)
            low = segment * SEGMENT
            n = min(group * SEGMENT, numel - low)
            mine = packed[low * bits // 8 : ((low + n) * bits + 7) // 8]
            symbols = mine if bits & (bits - 1) == 0 else all_symbols
            if group == 4:
                decode_four(buffers, full, table, symbols, ends)
            else:
                ends[0] = decode_one(buffers[0], table, symbols[: -(-n // per_symbol)])
            for g in range(group):
                size = edges[segment + g + 1] - edges[segment + g]
                if ends[g] > 8 * size:
                    return 8 * (segment + g) + TRUNCATED
                if ends[g] <= 8 * size - 8:
                    return 8 * (segment + g) + TOO_LONG
                start, count = low * bits // 8 + g * (SEGMENT * bits // 8), min(SEGMENT, n)
                zero = _scatter(
                    symbols[g * full :],
                    count,
                    bits,
                    codes,
                    packed[start : start + (count * bits + 7) // 8],
                )
                if not (zero and filling_is_zero(buffers[g], ends[g], size)):
                    return 8 * (segment + g) + NOT_ZERO
            segment += group
        return -1

    return decode
