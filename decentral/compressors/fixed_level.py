"""What QSGD, QSGDinf and NUQSGD share: a norm per block, `bits` bits per coordinate."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

import decentral_kernels as kernels
from decentral_kernels.coding import CODINGS, coder, gaussian_entropy
from decentral_kernels.elementwise import NOT_FINITE, Applied
from decentral_kernels.layout import MAX_BITS, MIN_BITS
from decentral_kernels.narrow import gaussian_width

from ..payload import Payload, as_array, on_device_of, stream_of
from .base import Compressor, Key
from .checks import check_block_size, check_vector, is_whole, not_finite

_CHOICES = ("auto", "fixed", *CODINGS)
_FIXED, _CODED = 0, 1
# A coordinate, there and back, is .1 and 1 to 2 ns of one core (docs/papers.md). Twice that: the
# training wants the cores, too, and where two are nearly as fast the simpler one is to be taken.
_NARROW_S, _HUFFMAN_S = 2e-10, 4e-9


class FixedLevelCompressor(Compressor):
    """Round |x_i| / ||block|| stochastically to fixed levels; the body is scales, then codes.

    Args:
        bits: bits per coordinate, 2 to 8; one is the sign.
        block_size: coordinates that share a norm, at least 1.
        zero_level: whether 0 is a level. Without it all 2^bits codes are levels, as in the NUQSGD
            authors' simulator; it is here to reproduce their plots.
        coding: "fixed", or what makes messages shorter and of varying length, and costs time on the
            CPU, where vectors of a GPU are encoded then, too: "narrow", as many bits as the largest
            level of 1024 coordinates needs, or an entropy code, "elias" or "huffman". A message
            that it would make longer goes as fixed-length codes. "auto" is fixed until for_links()
            has chosen; all of them stand for the same values.

    Raises:
        ValueError: an option is out of range.
    """

    norm: ClassVar[str]
    levels: ClassVar[str]

    def __init__(
        self,
        bits: int = 4,
        block_size: int = 8192,
        zero_level: bool = True,
        coding: str = "auto",
    ) -> None:
        if not (is_whole(bits) and MIN_BITS <= bits <= MAX_BITS):
            raise ValueError(f"{self.name}: bits must be {MIN_BITS}..{MAX_BITS}, got {bits!r}")
        check_block_size(self.name, block_size, usual=8192)
        if coding not in _CHOICES:
            raise ValueError(
                f"{self.name}: coding must be one of {', '.join(_CHOICES)}, got {coding!r}"
            )
        self.bits, self.block_size = int(bits), int(block_size)
        self.zero_level, self.coding = bool(zero_level), coding
        self._quantizer = kernels.Quantizer(
            self.bits, self.block_size, self.norm, self.levels, self.zero_level
        )
        self._write_as("fixed" if coding == "auto" else coding)

    def _write_as(self, code: str) -> None:
        self._code, self.fixed_length = code, code == "fixed"
        self.device_kernels = self.fixed_length
        self._coder = None if self.fixed_length else coder(code, self.bits, self.zero_level)

    @cached_property
    def configuration(self) -> int:
        """See Compressor.configuration; what "auto" has chosen counts."""
        return zlib.crc32(f"{self!r} {self._code}".encode())

    def for_links(self, bits_per_s: Callable[[], float]) -> FixedLevelCompressor:
        """See Compressor.for_links."""
        if self.coding != "auto":
            return self
        chosen = copy.copy(self)
        chosen.__dict__.pop("configuration", None)
        chosen._write_as(self._fastest_over(bits_per_s()))
        return chosen

    def _fastest_over(self, bits_per_s: float) -> str:
        """Return what takes a coordinate least time, over a link of this speed and to code."""
        if _NARROW_S * bits_per_s >= self.bits:
            return "fixed"
        seconds = {
            "fixed": self.bits / bits_per_s,
            "narrow": gaussian_width(self._quantizer) / bits_per_s + _NARROW_S,
            "huffman": gaussian_entropy(self._quantizer) / bits_per_s + _HUFFMAN_S,
        }
        return min(seconds, key=seconds.__getitem__)

    def stats(self) -> dict[str, Any]:
        """Return the "coding" in use, which "auto" may have chosen."""
        return {"coding": self._code}

    def _options(self) -> str:
        return f"bits={self.bits}, block_size={self.block_size}"

    def __repr__(self) -> str:
        zero = "" if self.zero_level else ", zero_level=False"
        coding = "" if self.coding == "auto" else f", coding={self.coding!r}"
        return f"{type(self).__name__}({self._options()}{zero}{coding})"

    def prepare(self, threads: int = 1) -> None:
        """Compile or load the CPU kernels, and let them use so many threads."""
        kernels.set_num_threads(threads)
        kernels.compile_cpu_kernels(self._quantizer)
        if self._coder is not None:
            self._coder.compile()

    def body_nbytes(self, numel: int) -> int:
        """Return 4 bytes per block plus the packed codes, ceil(numel * bits / 8).

        Where the length varies there is one byte more, and this is the most.
        """
        fixed = 4 * self._quantizer.num_blocks(numel) + self._quantizer.codes_nbytes(numel)
        return fixed if self.fixed_length else fixed + 1

    def least_body_nbytes(self, numel: int) -> int:
        """See Compressor.least_body_nbytes."""
        if self._coder is None:
            return self.body_nbytes(numel)
        codes = min(self._quantizer.codes_nbytes(numel), self._coder.least_nbytes(numel))
        return 4 * self._quantizer.num_blocks(numel) + 1 + codes

    def _sections(self, payload: Payload, numel: int) -> tuple[Any, Any]:
        """Return (scales, codes), views; before the codes stands the byte that says how they go on.

        The codes are cut to what the message holds.
        """
        split = 4 * self._quantizer.num_blocks(numel)
        scales = payload.section(0, split, np.float32)
        split += 0 if self._coder is None else 1
        return scales, payload.section(split, self._quantizer.codes_nbytes(numel), np.uint8)

    def _encode(self, x: Any, key: Key, payload: Payload) -> int | None:
        scales, codes = self._sections(payload, len(x))
        folded, stream = kernels.fold_key(*key), stream_of(x)
        with on_device_of(x):
            bad = kernels.encode(x, folded, self._quantizer, scales, codes, stream)
        self._check_blocks(x, bad)
        return self._shorten(payload, scales, codes, len(x))

    def encode_in_parts(
        self,
        x: Any,
        key: Key,
        out: Payload,
        made: Applied,
        own: Any,
        weight: float,
        copy: tuple[Any, Any] | None = None,
    ) -> Payload:
        """See Compressor.encode_in_parts."""
        array, target = (check_vector(v, f"{self.name}: {w}") for v, w in ((x, "x"), (own, "own")))
        if not isinstance(array, np.ndarray):
            return super().encode_in_parts(x, key, out, made, own, weight, copy)
        out.resize(out.capacity)
        numel = array.size
        scales, codes = self._sections(out, numel)
        pair = None if copy is None else (as_array(copy[0]), as_array(copy[1]))
        around = kernels.Around(made, target, weight, pair)
        folded = kernels.fold_key(*key)
        bad = kernels.encode_in_parts(array, folded, self._quantizer, scales, codes, around)
        if bad == NOT_FINITE:
            self._raise_not_finite(made, array)
        self._check_blocks(array, bad)
        return self._seal(out, self._shorten(out, scales, codes, numel), key, numel)

    def _check_blocks(self, x: Any, bad: int) -> None:
        """Raise NotFiniteError for the first block that the kernels have refused; -1 is none."""
        if bad >= 0:
            raise not_finite(
                self.name, x, bad * self.block_size, self.block_size, f"the norm of block {bad}"
            )

    def _shorten(self, payload: Payload, scales: Any, codes: Any, numel: int) -> int | None:
        """Put a stream in the place of the codes, if that is asked for and shorter.

        Returns the length of the body then, else None.
        """
        if self._coder is None:
            return None
        coded = np.empty(len(codes), np.uint8)
        length = self._coder.encode(codes, numel, coded)
        mode = payload.body[scales.nbytes : scales.nbytes + 1]
        mode[0] = _FIXED if length < 0 else _CODED
        if length < 0:
            return None
        codes[:length] = coded[:length]
        return int(scales.nbytes) + 1 + length

    def _unpacked(self, payload: Payload, numel: int) -> tuple[Any, Any]:
        """Return (scales, fixed-length codes).

        Raises:
            ValueError: the stream is damaged.
        """
        scales, codes = self._sections(payload, numel)
        if self._coder is None:
            return scales, codes
        fixed, mode = self._quantizer.codes_nbytes(numel), int(payload.body[scales.nbytes])
        if mode == _FIXED and len(codes) == fixed:
            return scales, codes
        if mode != _CODED:
            raise ValueError(
                f"{self!r}: expected {fixed} bytes of codes, or a stream of them (1), got "
                f"{len(codes)} bytes and the mark {mode}; the message is damaged"
            )
        packed = np.empty(fixed, np.uint8)
        self._coder.decode(codes, numel, packed)
        return scales, packed

    def _decode(self, payload: Payload, out: Any) -> None:
        scales, codes = self._unpacked(payload, len(out))
        with on_device_of(out):
            kernels.decode(scales, codes, self._quantizer, out, stream_of(out))

    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None:
        self._accumulate_all([(payload, weight)], out)

    def _accumulate_all(self, messages: Sequence[tuple[Payload, float]], out: Any) -> None:
        unpacked = [(*self._unpacked(payload, len(out)), weight) for payload, weight in messages]
        with on_device_of(out):
            kernels.accumulate_all(unpacked, self._quantizer, out, stream_of(out))
