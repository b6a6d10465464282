"""IntDIANA: integers of gradient differences, for data that differs between workers.

Mishchenko, Wang, Kovalev, Richtarik: "IntSGD: Adaptive Floatless Compression of Stochastic
Gradients", ICLR 2022, arXiv:2102.08374, algorithm 2 (IntDIANA); h is the mean of the h_i:

    u_i = Int(alpha (g_i - h_i)),  h_i += u_i / alpha          the first step is not rounded
    S = sum_i u_i,  g = h + S / (n alpha),  h += S / (n alpha)

IntSGD's largest integer grows without bound where the workers' gradients do not vanish at the
optimum, since alpha does; the differences vanish. With the estimator of decentral.LSVRG it is
VR-IntDIANA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..compressors.base import Compressor
from .all_reduce import AllReduce
from .base import Averaging


class IntDIANA(AllReduce):
    """Average gradients by the integer all-reduce of what they differ from learned shifts.

    Without rounding (compressor None or "none") it is the float32 all-reduce.

    Raises:
        ValueError: the compressor's messages cannot be added.
    """

    name = "intdiana"

    def __init__(self, compressor: Compressor | None = None) -> None:
        super().__init__(compressor)
        if not (self.compressor.summable or self.compressor.lossless):
            raise ValueError(
                f"intdiana: needs a compressor whose messages can be added, got "
                f"{self.compressor!r}; use intsgd"
            )

    def _allocate(self, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        super()._allocate(vectors, parts)
        self.h_i = [torch.zeros_like(v) for v in vectors]
        self.h = [torch.zeros_like(v) for v in vectors]

    def average(self, bucket: int, g: Tensor, step: int) -> Averaging:
        """See GradientAlgorithm.average; equal on all ranks, bit for bit."""
        if self.compressor.lossless:
            return self._exact_mean(g)
        return self._shifted_mean(bucket, g, step)

    def _shifted_mean(self, bucket: int, g: Tensor, step: int) -> Averaging:
        h = self.h[bucket]
        g -= self.h_i[bucket]
        failure = yield from self._mean_of_integers(bucket, g, step, sent=self.h_i[bucket])
        if failure is None:
            h += g
            g.copy_(h)
            self._observe(bucket, g)
        return failure

    def state_dict(self) -> dict[str, Any]:
        """See Algorithm.state_dict."""
        vectors = {"h_i": self.h_i, "h": self.h}
        return super().state_dict() | {k: [v.clone() for v in vs] for k, vs in vectors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Algorithm.load_state_dict."""
        super().load_state_dict(state)
        for name, vectors in (("h_i", self.h_i), ("h", self.h)):
            for vector, saved in zip(vectors, state[name], strict=True):
                vector.copy_(saved)
