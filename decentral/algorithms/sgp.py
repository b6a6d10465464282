"""Stochastic gradient push: gossip along arcs of one direction, corrected by push-sum weights.

Assran, Loizou, Ballas, Rabbat: "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019,
arXiv:1811.10792, Algorithm 1, with P_ij = 1 / (1 + targets of j), whose columns add up to 1:

    z_i = x_i / w_i
    x_i <- sum_j P_ij (x_j - eta g_j(z_j)),    w_i <- sum_j P_ij w_j,    w_i = 1 at first

The model holds z. W is P here, and every message carries its w as one coordinate more. The next
gradient is taken after mixing with messages of this step, so they are waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..compressors.base import Compressor
from ..compressors.checks import check_finite
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike
from .requirements import check_lossless


class SGP(GossipAlgorithm):
    """Push-sum gossip, float32 on the wire.

    Args:
        topology: any; a name, a Topology, or a function of the number of ranks.
        compressor: None, or one that loses nothing.

    Raises:
        ValueError: the compressor is lossy; rounding whole parameters does not converge.
    """

    name = "sgp"
    directed = time_varying = synchronous = True
    averages = False
    vectors = ("S",)

    def __init__(
        self, topology: TopologyLike = "exponential", compressor: Compressor | None = None
    ) -> None:
        super().__init__(topology, compressor)
        check_lossless(self)

    def _allocate(self, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        super()._allocate([v.new_empty(self._travels(len(v))) for v in vectors], parts)

    def _travels(self, numel: int) -> int:
        return numel + 1

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        self.S = [torch.cat([v, v.new_ones(1)]) for v in vectors]  # x and w

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update; x are z here, and so S, x, moves by as much as they do."""
        S = self.S[bucket]
        S[:-1].sub_(x.sub_(x_new))
        check_finite(S[:-1], self.name)

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        S = self.S[bucket]
        self._encode(bucket, S, step)
        S.mul_(self.W(step)[self.comm.rank])
        return self._gossip(bucket, step)

    def finish(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.finish."""
        S = self.S[bucket]
        torch.div(S[:-1], S[-1], out=x_new)
        x.copy_(x_new)
