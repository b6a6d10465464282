"""Entropy coding of packed codes: a second, lossless stage behind any quantizer of fixed levels.

A stream is, for Huffman, the table of code lengths; then the length in bytes of every segment of
SEGMENT coordinates (u32, little-endian); then the segments, coded on their own, so that threads can
share them. elias.py and huffman.py say how. A code of level 0 stands for 0 whatever its sign; the
sign is dropped. Where quantizers have no zero level (`zero_level=False`), every code is a symbol of
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import code_tables as tables
from .code_tables import PROBLEMS, SEGMENT, Bytes, Counts
from .layout import MAX_BITS, MIN_BITS, Quantizer
from .narrow import Narrow
from .threads import share

KINDS = ("elias", "huffman")
CODINGS = ("narrow", *KINDS)
# A thread pays for itself from about this many segments on.
_GRAIN = 16


def gaussian_entropy(q: Quantizer) -> float:
    """Return the entropy of the codes of a Gaussian vector, in bits per code.

    Huffman's code comes near it.
    """
    codes = tables.gaussian_codes(q)
    if q.zero_level:
        codes[codes == 1 << (q.bits - 1)] = 0  # -0
    p = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(p * np.log2(p)).sum())


def _num_segments(numel: int) -> int:
    return -(-numel // SEGMENT)


def _share_segments(run: Callable[[int, int], Any], numel: int) -> list[Any]:
    """Call run(first, last) on ranges of segments that together cover `numel` coordinates."""
    return share(run, _num_segments(numel), _GRAIN)


def coder(kind: str, bits: int, zero_level: bool) -> Coder | Narrow:
    """Return the coder of that name, one of CODINGS, for codes of `bits` bits."""
    return Narrow(bits, zero_level) if kind == "narrow" else Coder(kind, bits, zero_level)


@dataclass(frozen=True)
class Coder:
    """An entropy code, "elias" or "huffman", for codes of `bits` bits.

    Raises:
        ValueError: there is no such kind, or bits is not from 2 to 8.
    """

    kind: str
    bits: int
    zero_level: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be from {MIN_BITS} to {MAX_BITS}, got {self.bits}")

    def max_nbytes(self, numel: int) -> int:
        """Return the size of a buffer in which encode() always finds room."""
        return self._head_nbytes(numel) + self._max_body(numel)

    def least_nbytes(self, numel: int) -> int:
        """Return a size below which no stream is."""
        return 4 * _num_segments(numel)

    def encode(self, packed: Bytes, numel: int, out: Bytes) -> int:
        """Write the stream of packed codes, uint8[ceil(numel * bits / 8)], to out, uint8[k].

        Returns its length in bytes, or -1 where k is too small; out holds anything then.
        """
        tables.check_packed(packed, numel, self.bits)
        if numel == 0:
            return 0
        head = self._head_nbytes(numel)
        if head > out.size:
            return -1
        table, written = self._encoding_table(packed, numel)
        sizes, body = self._encode_segments(packed, numel, table, out[head:])
        if head + body > out.size:
            return -1
        out[: written.size] = written
        out[written.size : head] = ((sizes + 7) // 8).astype("<u4").view(np.uint8)
        return head + body

    def decode(self, stream: Bytes, numel: int, packed: Bytes) -> None:
        """Write the codes in uint8[m] stream to packed, uint8[ceil(numel * bits / 8)].

        Raises:
            ValueError: it is no stream of `numel` codes; packed holds anything then.
        """
        tables.check_packed(packed, numel, self.bits)
        head = self._head_nbytes(numel)
        if stream.size < head:
            raise ValueError(
                f"{self._what} of {numel} codes begins with {head} bytes, got {stream.size}"
            )
        at = self._table_nbytes() if numel else 0
        table = self._decoding_table(stream[:at]) if numel else None
        edges = self._edges(stream[at:head].view("<u4"), stream.size - head)
        if numel == 0:
            return
        kernel = self._module().decoder(*self._key())
        found = _share_segments(
            lambda first, last: kernel(
                stream[head:], edges, numel, self.bits, table, packed, first, last
            ),
            numel,
        )
        bad = min((f for f in found if f >= 0), default=-1)
        if bad >= 0:
            raise ValueError(
                f"segment {bad // 8} of {self._what} cannot be decoded: {PROBLEMS[bad % 8]}"
            )

    def nbits(self, packed: Bytes, numel: int) -> int:
        """Return how many bits the code words of `numel` packed codes take, without all else."""
        tables.check_packed(packed, numel, self.bits)
        if numel == 0:
            return 0
        table, _ = self._encoding_table(packed, numel)
        return int(self._encode_segments(packed, numel, table, np.empty(0, np.uint8))[0].sum())

    def compile(self) -> None:
        """Compile the kernels, or load them from the disk cache."""
        module = self._module()
        module.encoder(*self._key())
        module.decoder(*self._key())
        if self.kind == "huffman":
            module.counter()
            module.length_maker()
        else:
            tables.elias_encoding_table(self.bits, self.zero_level)
            tables.elias_decoding_table(self.bits, self.zero_level)

    @property
    def _what(self) -> str:
        return "an Elias stream" if self.kind == "elias" else "a Huffman stream"

    def _module(self) -> ModuleType:
        # Here, because importing numba takes time.
        from . import elias, huffman

        return elias if self.kind == "elias" else huffman

    def _key(self) -> tuple[Any, ...]:
        """Return what the kernels are compiled for."""
        return (self.zero_level,) if self.kind == "elias" else ()

    def _table_nbytes(self) -> int:
        return 0 if self.kind == "elias" else tables.table_nbytes(self.bits, self.zero_level)

    def _head_nbytes(self, numel: int) -> int:
        """Return the size of what comes before the segments."""
        return 4 * _num_segments(numel) + (self._table_nbytes() if numel else 0)

    def _max_body(self, numel: int) -> int:
        if self.kind == "huffman":  # the best code is not longer than that of equal lengths
            bits = tables.num_symbols(numel, self.bits) * tables.symbol_bits(self.bits)
        else:
            bits = tables.elias_max_bits(numel, self.bits, self.zero_level)
        # A segment is filled up with at most 7 bits and may have an end to mark.
        return bits // 8 + 1 + _num_segments(numel)

    def _encoding_table(self, packed: Bytes, numel: int) -> tuple[npt.NDArray[np.uint64], Bytes]:
        """Return the encoder's table and what of it the stream has."""
        if self.kind == "elias":
            return tables.elias_encoding_table(self.bits, self.zero_level), np.empty(0, np.uint8)
        lengths = self._module().code_lengths(self._count(packed, numel))
        return (
            tables.huffman_encoding_table(lengths, self.bits, self.zero_level),
            tables.write_table(lengths, self.bits, self.zero_level),
        )

    def _decoding_table(self, written: Bytes) -> npt.NDArray[Any]:
        if self.kind == "elias":
            return tables.elias_decoding_table(self.bits, self.zero_level)
        return tables.huffman_decoding_table(tables.read_table(written, self.bits, self.zero_level))

    def _count(self, packed: Bytes, numel: int) -> Counts:
        """Return how often each symbol occurs, int64[2^symbol_bits]."""
        kernel = self._module().counter()

        def run(first: int, last: int) -> Counts:
            counts = np.zeros(256, np.int64)
            kernel(packed, numel, self.bits, counts, first, last)
            return counts

        canonical = tables.canonical_symbols(self.bits, self.zero_level)
        counts = np.zeros(canonical.size, np.int64)
        np.add.at(counts, canonical, sum(_share_segments(run, numel))[: canonical.size])
        return counts

    def _encode_segments(
        self, packed: Bytes, numel: int, table: npt.NDArray[np.uint64], out: Bytes
    ) -> tuple[Counts, int]:
        """Return the segments' sizes in bits and the bytes of all; write them if out has room."""
        segments = _num_segments(numel)
        sizes = np.empty(segments, np.int64)
        kernel = self._module().encoder(*self._key())

        def run(first: int, last: int) -> tuple[Bytes, int]:
            # Where a part begins is known only when those before it are done.
            room = min(out.size, self._max_body((last - first) * SEGMENT))
            part = out if last - first == segments else np.empty(room, np.uint8)
            return part, kernel(packed, numel, self.bits, table, part, sizes, first, last)

        parts = _share_segments(run, numel)
        at = 0
        for part, size in parts:
            if len(parts) > 1 and at + size <= out.size:
                out[at : at + size] = part[:size]
            at += size
        return sizes, at

    def _edges(self, sizes: npt.NDArray[np.uint32], nbytes: int) -> Counts:
        """Return where the segments begin and end, int64[segments + 1], within `nbytes` bytes."""
        edges = np.zeros(sizes.size + 1, np.int64)
        np.cumsum(sizes, out=edges[1:])
        if edges[-1] > nbytes:
            segment = int(np.argmax(edges[1:] > nbytes))
            raise ValueError(f"segment {segment} of {self._what} cannot be decoded: {PROBLEMS[0]}")
        if edges[-1] < nbytes:
            raise ValueError(f"{self._what} has {nbytes - edges[-1]} bytes after its last segment")
        return edges
