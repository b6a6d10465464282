"""D-PSGD: gossip in full precision.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu: "Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent", NeurIPS 2017,
arXiv:1705.09056, Algorithm 1:

    x_i^{t+1} = sum_j W_ij x_j^t - eta grad F_i(x_i^t)

The gradient is taken before mixing, so the two overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..compressors.base import Compressor
from .base import GossipAlgorithm, Publishing, TopologyLike, in_cache


class DPSGD(GossipAlgorithm):
    """Mix the neighbors' parameters, float32 on the wire.

    Raises:
        ValueError: the compressor is lossy; rounding whole parameters does not converge.
    """

    name = "d-psgd"

    def __init__(
        self, topology: TopologyLike = "ring", compressor: Compressor | None = None
    ) -> None:
        super().__init__(topology, compressor)
        if not self.compressor.lossless:
            raise ValueError(
                f"d-psgd: sends the parameters themselves and needs compressor 'none', got "
                f"{self.compressor!r}; use ecd-psgd with it"
            )

    def start(self, seed: int, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        """See Algorithm.start."""
        super().start(seed, vectors, parts)
        self.S = [v.clone() for v in vectors]  # sum_j W_ij x_j, since all x_j are equal

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        S, W_ii = self.S[bucket], self.W[self.comm.rank]
        for S_, x_, new in in_cache(S, x, x_new):
            new.add_(torch.sub(S_, x_))  # x_new was x - eta g
            torch.mul(new, W_ii, out=S_)
        self._encode(bucket, x_new, step)  # now, since the next step changes x_new

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        return self._gossip(bucket, step, weight=1.0)
