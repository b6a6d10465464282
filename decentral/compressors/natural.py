"""Natural compression: powers of two.

Horvath, Ho, Horvath, Sahu, Canini, Richtarik: "Natural Compression for Distributed Deep Learning",
arXiv:1905.10988, definition 1: |x_i| goes to one of the two powers of two around it, so that the
mean is x_i. E ||C(x) - x||^2 <= ||x||^2 / 8 for any x (theorem 1 there), with no scale to share.

9 bits per coordinate, a float32's sign and exponent: the body is one byte of exponent each, then
the packed signs. The round-up probability is the mantissa, so a carry out of it is the rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from decentral_kernels import fold_key, set_num_threads
from decentral_kernels import signs as kernels
from decentral_kernels.layout import UNIT

from ..payload import Payload
from .base import Compressor, Key
from .checks import not_finite


class Natural(Compressor):
    """Round every coordinate stochastically to a power of two (C_nat).

    It has CPU kernels only: a vector of a GPU is copied to the host.
    """

    name = "natural"
    bits = 9

    def __repr__(self) -> str:
        return "Natural()"

    def prepare(self, threads: int = 1) -> None:
        """See Compressor.prepare."""
        set_num_threads(threads)
        kernels.compile_natural()

    def body_nbytes(self, numel: int) -> int:
        """Return 9 bits per coordinate, in whole bytes."""
        return numel + kernels.signs_nbytes(numel)

    def _sections(self, payload: Payload, numel: int) -> tuple[Any, Any]:
        signs = payload.section(numel, kernels.signs_nbytes(numel), np.uint8)
        return payload.section(0, numel, np.uint8), signs

    def _encode(self, x: Any, key: Key, payload: Payload) -> None:
        exponents, signs = self._sections(payload, len(x))
        unit = kernels.natural_encode(x, fold_key(*key), exponents, signs)
        if unit >= 0:
            start = unit * UNIT
            raise not_finite(self.name, x, start, UNIT, "the largest value")

    def _decode(self, payload: Payload, out: Any) -> None:
        kernels.natural_decode(*self._sections(payload, len(out)), out, 1.0, add=False)

    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None:
        kernels.natural_decode(*self._sections(payload, len(out)), out, weight, add=True)
