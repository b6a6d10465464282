"""ECD-PSGD: gossip of compressed extrapolations.

Tang, Gan, Zhang, Zhang, Liu: "Communication Compression for Decentralized Training", NeurIPS 2018,
arXiv:1803.06443, Algorithm 2; with C = NUQSGD, Algorithm 3 of the NUQSGD paper (JMLR 2021). For
t = 1, 2, ... and xt_j the estimate of x_j that rank j and its neighbors share:

    x_i^{t+1} = sum_j W_ij xt_j^t - eta g_i(x_i^t)
    z_i       = (1 - t/2) x_i^t + (t/2) x_i^{t+1}                    send C(z_i)
    xt_j^{t+1} = (1 - 2/t) xt_j^t + (2/t) C(z_j)                     for neighbors j and j = i

The theory bounds the noise of C absolutely; a quantizer's is relative to ||z||, z holds the whole
model plus t/2 times the last update, and so the error of xt grows with t: as published the method
does not train with NUQSGD (docs/ecd-psgd.md has the curves). Two changes, ours, make the default:

1. difference coding: send C(z_i - xt_i), and xt_i += (2/t) C(z_i - xt_i). With C = identity this is
   the published update; the noise is relative to a difference instead of to the whole model.
2. horizon: t stops at `horizon`. t = 2 is a step like CHOCO-SGD's, t -> infinity is DCD-PSGD.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number

from ..compressors.base import Compressor
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike, applied, copies, zeros
from .requirements import check_unbiased


@Elementwise
def _mix(new: Number, x: Number, xt: Number, S: Number, half_t: float) -> tuple[Number, ...]:
    """Return x^{t+1} and what to send, for x_new = x - eta g and xt_i + S = sum_j W_ij xt_j."""
    new = new + ((xt - x) + S)
    return new, (x - xt) + half_t * (new - x)


@Elementwise
def _mix_as_published(
    new: Number, x: Number, xt: Number, S: Number, half_t: float, shrink: float
) -> tuple[Number, ...]:
    """Return x^{t+1}, z, and what is left of the estimates; no large numbers cancel in z."""
    new = new + ((xt - x) + S)
    return new, x + half_t * (new - x), shrink * xt, shrink * S


class ECDPSGD(GossipAlgorithm):
    """Gossip of compressed, extrapolated differences.

    Args:
        topology: a name, a Topology, or a function of the number of ranks.
        compressor: any; None sends float32.
        horizon: where t stops, at least 2.
        published: the method as published, without difference coding and horizon.

    Raises:
        ValueError: horizon below 2, where the estimates would overshoot, or a biased compressor.
    """

    name = "ecd-psgd"
    formulas = (_mix, _mix_as_published)
    x_new_at = 0
    vectors = ("S", "xt")
    trains_to_noise = 1.0  # docs/choosing.md

    def __init__(
        self,
        topology: TopologyLike = "ring",
        compressor: Compressor | None = None,
        horizon: int = 10,
        published: bool = False,
    ) -> None:
        super().__init__(topology, compressor)
        check_unbiased(self)
        if horizon < 2:
            raise ValueError(f"ecd-psgd: horizon must be at least 2, got {horizon}; 10 is usual")
        self.horizon = horizon
        self.published = published

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        self.S, self.xt = zeros(vectors), copies(vectors)

    def _t(self, step: int) -> int:
        return step if self.published else min(step, self.horizon)

    def estimates(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        """See GossipAlgorithm.estimates."""
        return self.xt

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        t, xt = self._t(step), self.xt[bucket]
        vectors = (x_new, x, xt, self.S[bucket])
        if self.published:
            z = applied(_mix_as_published, *vectors, t / 2, 1 - 2 / t)
        else:
            z = applied(_mix, *vectors, t / 2)
        self._encode_in_parts(bucket, x, step, z, xt, 2 / t, (x_new, x))

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        return self._gossip(bucket, step, 2 / self._t(step), own=self._own[bucket])

    def __repr__(self) -> str:
        how = "published=True" if self.published else f"horizon={self.horizon}"
        return f"{super().__repr__()[:-1]}, {how})"
