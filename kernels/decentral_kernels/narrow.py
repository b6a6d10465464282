"""Narrow codes: the codes of a unit in as many bits as its largest level needs.

Ours, and what databases do to columns of small integers, there called binary packing (Lemire and
Boytsov: "Decoding billions of integers per second through vectorization", Software: Practice and
Experience 45, 2015). Most coordinates of a block are a hundredth of its norm, so that of NUQSGD's 8
levels at 4 bits the upper half is hardly ever used: 3 bits do. It takes a small part of the time of
an entropy code, which gets down to 1.8.

A stream is a byte for every whole unit, the width of its codes; then their codes, packed at that
width as layout.py says, with the sign on top; last the codes of the unit that is not whole, as they
were. A width is 2 to `bits`, or 0 where all codes are level 0, which stands for 0: their signs are
dropped then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .code_tables import Bytes, check_packed, gaussian_codes
from .layout import UNIT, Quantizer

PROBLEMS = ("is cut", "has a unit of a width that there is not", "is too long")
TRUNCATED, NO_WIDTH, TOO_LONG = range(len(PROBLEMS))


def widths(codes: Bytes, bits: int, zero_level: bool) -> Bytes:
    """Return the width of every whole unit of codes, uint8[n // UNIT]; they are not packed here."""
    levels = codes[: codes.size // UNIT * UNIT].reshape(-1, UNIT) & np.uint8((1 << (bits - 1)) - 1)
    top = levels.max(axis=1, initial=0)
    found = 1 + np.maximum(1, np.ceil(np.log2(top + 1.0)))
    return np.where(zero_level & (top == 0), 0, found).astype(np.uint8)


def gaussian_width(q: Quantizer) -> float:
    """Return the bits per code of a Gaussian vector's stream."""
    codes = gaussian_codes(q)
    return float(widths(codes, q.bits, q.zero_level).mean()) + 8 / UNIT


@dataclass(frozen=True)
class Narrow:
    """The coder for codes of `bits` bits, as coding.Coder is one of an entropy code.

    One thread does it, whatever the number: the codes, an eighth of the vector, are in its cache.
    """

    bits: int
    zero_level: bool = True

    def max_nbytes(self, numel: int) -> int:
        """Return the size of a buffer in which encode() always finds room."""
        return numel // UNIT + -(-numel * self.bits // 8)

    def least_nbytes(self, numel: int) -> int:
        """Return the size of the shortest stream."""
        units, rest = divmod(numel, UNIT)
        least = 1 if self.zero_level else 1 + 2 * UNIT // 8
        return units * least + -(-rest * self.bits // 8)

    def encode(self, packed: Bytes, numel: int, out: Bytes) -> int:
        """Write the stream of packed codes, uint8[ceil(numel * bits / 8)], to out, uint8[k].

        Returns its length in bytes, or -1 where k is too small; out holds anything then.
        """
        from . import cpu_narrow  # here, because importing numba takes time

        check_packed(packed, numel, self.bits)
        return int(cpu_narrow.encoder()(packed, numel, self.bits, self.zero_level, out))

    def decode(self, stream: Bytes, numel: int, packed: Bytes) -> None:
        """Write the codes in uint8[m] stream to packed, uint8[ceil(numel * bits / 8)].

        Raises:
            ValueError: it is no stream of `numel` codes; packed holds anything then.
        """
        from . import cpu_narrow

        check_packed(packed, numel, self.bits)
        problem = cpu_narrow.decoder()(stream, numel, self.bits, self.zero_level, packed)
        if problem >= 0:
            raise ValueError(
                f"a stream of {numel} narrow codes of at most {self.bits} bits {PROBLEMS[problem]}"
            )

    def compile(self) -> None:
        """Compile the kernels, or load them from the disk cache."""
        from . import cpu_narrow

        cpu_narrow.encoder()
        cpu_narrow.decoder()
