"""D-PSGD: gossip in full precision.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu: "Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent", NeurIPS 2017,
arXiv:1705.09056, Algorithm 1:

    x_i^{t+1} = sum_j W_ij x_j^t - eta grad F_i(x_i^t)

The gradient is taken before mixing, so the two overlap. W may be of a directed graph and change
with t as long as its rows and columns add up to 1. With the one-peer exponential graph it is what
Ying, Yuan, Chen, Hu, Pan, Yin: "Exponential Graph is Provably Efficient for Decentralized Deep
Training", NeurIPS 2021, arXiv:2110.13363 study: a single message per step, and the exact average
after log2(n) of them, if n is a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number

from ..compressors.base import Compressor
from ..payload import as_array
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike, copies
from .requirements import check_lossless


@Elementwise
def _mix(new: Number, S: Number, x: Number, W_ii: float) -> tuple[Number, ...]:
    """Return x^{t+1}, for x_new = x - eta g, what S begins with in the next step, and x."""
    new = new + (S - x)
    return new, W_ii * new, new


class DPSGD(GossipAlgorithm):
    """Mix the neighbors' parameters, float32 on the wire.

    Raises:
        ValueError: the compressor is lossy; rounding whole parameters does not converge.
    """

    name = "d-psgd"
    formulas = (_mix,)
    directed = time_varying = True

    def __init__(
        self, topology: TopologyLike = "ring", compressor: Compressor | None = None
    ) -> None:
        super().__init__(topology, compressor)
        check_lossless(self)

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        self.S = copies(vectors)  # sum_j W_ij x_j, since all x_j are equal

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        W_ii = self.W(step)[self.comm.rank]
        _mix(as_array(x_new), as_array(self.S[bucket]), as_array(x), W_ii)
        self._encode(bucket, x_new, step)  # now, since the next step changes x_new

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        return self._gossip(bucket, step)
