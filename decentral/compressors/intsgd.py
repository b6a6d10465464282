"""IntSGD: integers with an adaptive scale.

Mishchenko, Wang, Kovalev, Richtarik: "IntSGD: Adaptive Floatless Compression of Stochastic
Gradients", ICLR 2022, arXiv:2102.08374, algorithm 1:

    the first step is exact (floats)
    r_k     = beta r_{k-1} + (1 - beta) ||x^k - x^{k-1}||^2,  r_1 = ||x^1 - x^0||^2
    alpha_k = eta_k sqrt(d) / sqrt(2 n r_k + eta_k^2 eps^2)
    q_i     = Int(alpha_k g_i),  S = sum_i q_i,  g = S / (n alpha_k)

so that d / (4 n alpha_k^2), the variance that random rounding may have, is r_k / (2 eta_k^2) +
eps^2 / (4 n). Block-wise, for each tensor l of d_l coordinates:
alpha_l = eta sqrt(d_l) / sqrt(2 n r_l + eta^2 (d_l / d) eps^2).

||x^k - x^{k-1}||^2 is taken as eta_{k-1}^2 ||g^{k-1}||^2, which it is for plain SGD, and for the
authors' code, where momentum comes before the reduce. Ours, because with momentum mu after it, as
PyTorch's optimizers have it, the movement is up to 1 / (1 - mu) times as large as this step's, and
alpha would be as many times too small. Tensors with learning rates of their own count with
them; where one alpha serves all, eta^2 is their mean, weighted by size. All of it is made from what
the ranks have in common, in a fixed order, so alpha is the same on all of them bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from decentral_kernels import integers as kernels

from ..payload import as_tensor
from .integers import IntegerCompressor

Matrix = list[list[float]]  # a number per tensor, by bucket


class IntSGD(IntegerCompressor):
    """Int(alpha x) with alpha from how far the model moved (IntSGD, algorithm 1).

    Args:
        bits: of an integer on the wire, 8 or 32.
        rounding: "random" or "deterministic".
        blockwise: an alpha for each parameter tensor, instead of one for all.
        beta: of the moving average r.
        eps: keeps alpha finite where nothing moved.

    Raises:
        ValueError: an option is out of range.
    """

    name = "intsgd"

    def __init__(
        self,
        bits: int = 8,
        rounding: str = "random",
        blockwise: bool = False,
        beta: float = 0.9,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(bits, rounding)
        if not (0 <= beta < 1 and eps > 0):
            raise ValueError(
                f"{self.name}: expected 0 <= beta < 1 and eps > 0, got beta={beta}, eps={eps}"
            )
        self.blockwise, self.beta, self.eps = bool(blockwise), beta, eps
        self._step, self._exact = 0, True
        self._rates: Matrix = []
        self.r: Matrix = []  # empty until the first movement
        self._moved: Matrix = []  # of the last step, not yet in r

    def __repr__(self) -> str:
        blockwise = ", blockwise=True" if self.blockwise else ""
        return f"{super().__repr__()[:-1]}{blockwise}, beta={self.beta}, eps={self.eps})"

    def fresh(self) -> IntSGD:
        """See Compressor.fresh."""
        return type(self)(self.bits, self.rounding, self.blockwise, self.beta, self.eps)

    def begin_step(self, step: int, rates: Sequence[Sequence[float]]) -> None:
        """See IntegerCompressor.begin_step."""
        self._rates = [list(row) for row in rates]
        if step == self._step:  # gradients are averaged again in the same step
            return
        super().begin_step(step, rates)
        self._step = step
        self._exact = not self._moved  # the first step
        if not self.r:
            self.r = list(self._moved)
            return
        self.r = [
            [self.beta * r + (1 - self.beta) * m for r, m in zip(*rows, strict=True)]
            for rows in zip(self.r, self._moved, strict=True)
        ]

    def alphas(self, bucket: int, top: float | None) -> Any:
        """See IntegerCompressor.alphas."""
        if self._exact:
            return None
        d = sum(map(sum, self.parts))
        if not self.blockwise:
            weights = zip(self.parts, self._rates, strict=True)
            eta2 = sum(dl * e * e for p, row in weights for dl, e in zip(p, row, strict=True)) / d
            return [self._alpha(math.sqrt(eta2), d, sum(map(sum, self.r)), 1.0)]
        tensors = zip(self._rates[bucket], self.parts[bucket], self.r[bucket], strict=True)
        return [self._alpha(eta, dl, r, dl / d) for eta, dl, r in tensors]

    def _alpha(self, eta: float, d: int, r: float, share: float) -> float:
        below = 2 * self.size * r + eta * eta * share * self.eps**2
        return eta * math.sqrt(d) / math.sqrt(below) if below > 0 else 0.0

    def observe(self, bucket: int, g: Any) -> None:
        """See IntegerCompressor.observe."""
        if not self._moved:
            self._moved = [[0.0] * len(p) for p in self.parts]
        row, start = [], 0
        for eta, numel in zip(self._rates[bucket], self.parts[bucket], strict=True):
            row.append(eta**2 * kernels.sum_of_squares(g[start : start + numel]))
            start += numel
        self._moved[bucket] = row

    def state_dict(self) -> dict[str, Any]:
        """Return r and the last movement, float64 per tensor, by bucket, and the count of clips.

        And the step that was begun: it begins again where it was skipped.
        """
        tables = {"r": self.r, "moved": self._moved}
        state: dict[str, Any] = {
            name: [torch.tensor(row, dtype=torch.float64) for row in table]
            for name, table in tables.items()
        }
        return super().state_dict() | state | {"step": self._step, "exact": self._exact}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict() returned."""
        super().load_state_dict(state)
        self._step, self._exact = state["step"], state["exact"]
        self.r, self._moved = ([as_tensor(t).tolist() for t in state[k]] for k in ("r", "moved"))
