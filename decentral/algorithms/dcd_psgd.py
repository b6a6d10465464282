"""DCD-PSGD: gossip of compressed differences.

Tang, Gan, Zhang, Zhang, Liu: "Communication Compression for Decentralized Training", NeurIPS 2018,
arXiv:1803.06443, Algorithm 1, for t = 1, 2, ...:

    z_i       = sum_j W_ij x_j^t - eta g_i(x_i^t) - x_i^t            send C(z_i)
    x_i^{t+1} = x_i^t + C(z_i), and so do the replicas of x_i        at its neighbors

So x_i itself moves by what was sent, and a replica equals it bit for bit. Of the replicas a rank
keeps only S_i = sum_j W_ij x_j - x_i. The theory wants a compressor with little noise; ours: it is
refused nothing but what is biased, and ECD-PSGD or CHOCO-SGD take coarser ones. Ours, too: x_i
stays float32 where parameters are bfloat16 or the like, and what rounding has changed of them is
sent with the next local update, or ranks would drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number

from ..compressors.base import Compressor
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike, applied, zeros
from .requirements import check_unbiased


@Elementwise
def _difference(new: Number, x: Number, S: Number) -> tuple[Number, ...]:
    """Return z, for x_new = x - eta g."""
    return ((new - x) + S,)


class DCDPSGD(GossipAlgorithm):
    """Gossip of compressed differences.

    Args:
        topology: a name, a Topology, or a function of the number of ranks.
        compressor: any that is unbiased; None sends float32.

    Raises:
        ValueError: the compressor is biased.
    """

    name = "dcd-psgd"
    formulas = (_difference,)
    x_new_at = 0
    shares_x = True
    trains_to_noise = 1.0  # docs/choosing.md

    def __init__(
        self, topology: TopologyLike = "ring", compressor: Compressor | None = None
    ) -> None:
        super().__init__(topology, compressor)
        check_unbiased(self)

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        self.S = zeros(vectors)

    def estimates(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        """See GossipAlgorithm.estimates."""
        return x

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        z = applied(_difference, x_new, x, self.S[bucket])
        # As a neighbor's replica would be, from what it was: equal to it bit for bit.
        self._encode_in_parts(bucket, x_new, step, z, x, 1.0, (x, x_new))

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        return self._gossip(bucket, step, own=self._own[bucket])
