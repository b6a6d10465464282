"""What QSGD, QSGDinf and NUQSGD share: a norm per block, `bits` bits per coordinate."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np

import decentral_kernels as kernels
from decentral_kernels.layout import MAX_BITS, MAX_NUMEL, MIN_BITS

from ..payload import Payload, as_tensor, stream_of
from .base import Compressor, Key, NotFiniteError


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


class FixedLevelCompressor(Compressor):
    """Round |x_i| / ||block|| stochastically to fixed levels; the body is scales, then codes.

    Args:
        bits: bits per coordinate, 2 to 8; one is the sign.
        block_size: coordinates that share a norm, at least 1.

    Raises:
        ValueError: bits or block_size out of range.
    """

    norm: ClassVar[str]
    levels: ClassVar[str]

    def __init__(self, bits: int = 4, block_size: int = 8192) -> None:
        if not (_is_whole(bits) and MIN_BITS <= bits <= MAX_BITS):
            raise ValueError(f"{self.name}: bits must be {MIN_BITS}..{MAX_BITS}, got {bits!r}")
        if not (_is_whole(block_size) and 1 <= block_size <= MAX_NUMEL):
            raise ValueError(
                f"{self.name}: block_size must be an integer from 1 to {MAX_NUMEL}, "
                f"got {block_size!r}; the papers use 8192"
            )
        self.bits, self.block_size = int(bits), int(block_size)
        self._quantizer = kernels.Quantizer(self.bits, self.block_size, self.norm, self.levels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bits={self.bits}, block_size={self.block_size})"

    def prepare(self, threads: int = 1) -> None:
        """Compile or load the CPU kernels, and let them use so many threads."""
        kernels.set_num_threads(threads)
        kernels.compile_cpu_kernels(self._quantizer)

    def body_nbytes(self, numel: int) -> int:
        """Return 4 bytes per block plus the packed codes, ceil(numel * bits / 8)."""
        return 4 * self._quantizer.num_blocks(numel) + self._quantizer.codes_nbytes(numel)

    def _sections(self, payload: Payload, numel: int) -> tuple[Any, Any]:
        split = 4 * self._quantizer.num_blocks(numel)
        scales = payload.section(0, split, np.float32)
        return scales, payload.section(split, self._quantizer.codes_nbytes(numel), np.uint8)

    def _encode(self, x: Any, key: Key, payload: Payload) -> None:
        scales, codes = self._sections(payload, len(x))
        stream = stream_of(x)
        bad = kernels.encode(x, kernels.fold_key(*key), self._quantizer, scales, codes, stream)
        if bad >= 0:
            raise self._not_finite(x, bad)

    def _not_finite(self, x: Any, block: int) -> NotFiniteError:
        start = block * self.block_size
        part = as_tensor(x[start : start + self.block_size])
        wrong = (~part.isfinite()).nonzero()
        if len(wrong):
            index = start + int(wrong[0])
            return NotFiniteError(
                f"{self.name}: expected finite values, got {float(x[index])} at coordinate {index}",
                index,
            )
        index = start + int(part.abs().argmax())
        return NotFiniteError(
            f"{self.name}: the norm of block {block} is 2^126 or more, which float32 cannot "
            f"invert; the largest value is {float(x[index]):g} at coordinate {index}",
            index,
        )

    def _decode(self, payload: Payload, out: Any) -> None:
        scales, codes = self._sections(payload, len(out))
        kernels.decode(scales, codes, self._quantizer, out, stream_of(out))

    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None:
        scales, codes = self._sections(payload, len(out))
        kernels.accumulate(scales, codes, self._quantizer, out, weight, stream_of(out))
