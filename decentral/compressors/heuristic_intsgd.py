"""Heuristic IntSGD: integers with the scale of SwitchML.

Sapio et al.: "Scaling Distributed Machine Learning with In-Network Aggregation", NSDI 2021
(SwitchML), as the IntSGD authors' code has it to compare with:

    alpha = (2^(b-1) - 1) / (n 2^E),   E = floor(log2(max_i ||g_i||_inf))

the maximum over all ranks by an extra all-reduce of one float per bucket. A coordinate above 2^E
may be clipped; stats() counts them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .integers import ALPHA_LIMIT, IntegerCompressor


class HeuristicIntSGD(IntegerCompressor):
    """Int(alpha x) with alpha from the largest coordinate of all ranks (SwitchML)."""

    name = "heuristic-intsgd"

    def fresh(self) -> HeuristicIntSGD:
        """See Compressor.fresh."""
        return type(self)(self.bits, self.rounding)

    def own_top(self, x: Any) -> float:
        """See IntegerCompressor.own_top."""
        return float(np.abs(x).max(initial=0))

    def alphas(self, bucket: int, top: float | None) -> Any:
        """See IntegerCompressor.alphas."""
        assert top is not None
        exponent = math.frexp(top)[1] - 1 if top > 0 else 0
        alpha = (2 ** (self.bits - 1) - 1) / (self.size * 2.0**exponent)
        return [min(alpha, ALPHA_LIMIT / 2)]
