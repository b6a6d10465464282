"""QG-DSGDm: momentum of the movement with one's neighbors, for shards that differ.

Lin, Karimireddy, Stich, Jaggi: "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
Heterogeneous Data", ICML 2021, arXiv:2102.04761, Algorithm 1, in which mh is a momentum of what the
parameters did, mixing included, instead of one of the local gradients:

    x_i^{t+1} = sum_j W_ij x_j^t - eta (g_i(x_i^t) + beta mh_i^t)
    mh_i^{t+1} = beta mh_i^t + (1 - beta) (x_i^t - x_i^{t+1}) / eta

Ours: mixed before the step, as in D-PSGD, so that messages travel during the gradient, while the
paper mixes after it; and u = eta mh is kept, so that any local optimizer may have done the step.
That one should have no momentum of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number

from ..compressors.base import Compressor
from ..payload import as_array
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike, copies, zeros
from .requirements import check_lossless


@Elementwise
def _mix(
    new: Number, S: Number, u: Number, x: Number, W_ii: float, beta: float, rest: float
) -> tuple[Number, ...]:
    """Return x^{t+1}, for x_new = x - eta g, what S begins with in the next step, u, and x."""
    new = new - beta * u + (S - x)
    return new, W_ii * new, beta * u + rest * (x - new), new


class QGDSGDm(GossipAlgorithm):
    """D-PSGD with quasi-global momentum, float32 on the wire.

    Args:
        topology: any with a doubly stochastic W; a name, a Topology, or a function of the ranks.
        compressor: None, or one that loses nothing.
        beta: the momentum, in [0, 1).

    Raises:
        ValueError: the compressor is lossy, or beta out of range.
    """

    name = "qg-dsgdm"
    formulas = (_mix,)
    directed = time_varying = True
    vectors = ("S", "u")

    def __init__(
        self,
        topology: TopologyLike = "ring",
        compressor: Compressor | None = None,
        beta: float = 0.9,
    ) -> None:
        super().__init__(topology, compressor)
        check_lossless(self)
        if not 0 <= beta < 1:
            raise ValueError(f"qg-dsgdm: beta must be in [0, 1), got {beta!r}; 0.9 is usual")
        self.beta = beta

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        self.S, self.u = copies(vectors), zeros(vectors)

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        W_ii = self.W(step)[self.comm.rank]
        vectors = (x_new, self.S[bucket], self.u[bucket], x)
        _mix(*map(as_array, vectors), W_ii, self.beta, 1 - self.beta)
        self._encode(bucket, x_new, step)  # now, since the next step changes x_new

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        return self._gossip(bucket, step)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, beta={self.beta})"
