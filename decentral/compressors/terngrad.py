"""TernGrad: three levels.

Wen, Xu, Yan, Wu, Wang, Chen, Li: "TernGrad: Ternary Gradients to Reduce Communication in
Distributed Deep Learning", NeurIPS 2017, arXiv:1705.07878, equation 3:

    Q(v)_i = max|v| sign(v_i) b_i,   b_i = 1 with probability |v_i| / max|v|, else 0

It is QSGDinf with s = 1. The paper's layer-wise scales are blocks here, and its gradient clipping
(at 2.5 standard deviations) is left to the script, since it biases the estimate.
"""

from __future__ import annotations

from .fixed_level import FixedLevelCompressor


class TernGrad(FixedLevelCompressor):
    """Levels 0 and 1 of the largest absolute value, 2 bits per coordinate (TernGrad, eq. 3)."""

    name = "terngrad"
    norm = "max"
    levels = "uniform"

    def __init__(self, block_size: int = 8192, coding: str = "auto") -> None:
        super().__init__(2, block_size, coding=coding)

    def _options(self) -> str:
        return f"block_size={self.block_size}"
