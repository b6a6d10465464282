"""Identity: float32 as it is; the trivial member, and the NUQSGD paper's baseline "SuperSGD"."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..payload import Payload, as_tensor
from .base import Compressor, Key
from .checks import check_finite


class Identity(Compressor):
    """Send the coordinates unchanged, 4 bytes each."""

    name = "none"
    lossless = True
    device_kernels = True

    def __repr__(self) -> str:
        return "Identity()"

    def body_nbytes(self, numel: int) -> int:
        """Return 4 bytes per coordinate."""
        return 4 * numel

    def _values(self, payload: Payload) -> Any:
        return payload.section(0, payload.nbytes, np.float32)

    def _encode(self, x: Any, key: Key, payload: Payload) -> None:
        check_finite(x, self.name)
        self._values(payload)[:] = x

    def _decode(self, payload: Payload, out: Any) -> None:
        out[:] = self._values(payload)

    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None:
        torch.as_tensor(out).add_(as_tensor(self._values(payload)), alpha=weight)
