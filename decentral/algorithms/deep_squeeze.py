"""DeepSqueeze: gossip of compressed models, with the error of compression added to the next one.

Tang, Lian, Qiu, Yuan, Zhang, Zhang, Liu: "DeepSqueeze: Decentralization Meets Error-Compensated
Compression", 2019, arXiv:1907.07346, Algorithm 1:

    v_i  = x_i - eta g_i(x_i) + e_i                                  send C(v_i)
    e_i <- v_i - C(v_i)
    x_i <- x_i - eta g_i(x_i) + gamma sum_j (W_ij - 1{i = j}) C(v_j)

There are no estimates of neighbors to keep, so the topology may change from step to step. But the
whole model is compressed, so its noise is that of the model's size: gamma has to be small. Q = C
has to contract, or e grows with every step; ours: an unbiased C with ||C(z) - z||^2 = eps ||z||^2
is divided by 1 + eps where eps >= 1, as in CHOCO-SGD.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number

from ..compressors.base import Compressor
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike, applied, zeros
from .noise import contraction
from .requirements import check_stateless


@Elementwise
def _compensate(e: Number, new: Number) -> tuple[Number, ...]:
    """Return v."""
    return (new + e,)


class DeepSqueeze(GossipAlgorithm):
    """Gossip of compressed models with error compensation.

    Args:
        topology: a name, a Topology, or a function of the number of ranks; it may change with time.
        compressor: any without state of its own; None sends float32.
        gamma: the consensus step size, in (0, 1]; None takes 1 / (1 + eps)^2 / 2, ours, where eps
            is the compressor's ||C(z) - z||^2 / ||z||^2.

    Raises:
        ValueError: gamma is out of range, or the compressor keeps a residual.
    """

    name = "deepsqueeze"
    formulas = (_compensate,)
    x_new_at = 1
    directed = time_varying = synchronous = True
    keeps_x = False
    vectors = ("S", "e")

    def __init__(
        self,
        topology: TopologyLike = "ring",
        compressor: Compressor | None = None,
        gamma: float | None = None,
    ) -> None:
        super().__init__(topology, compressor)
        check_stateless(self)
        if gamma is not None and not (isinstance(gamma, (int, float)) and 0 < gamma <= 1):
            raise ValueError(
                f"deepsqueeze: gamma must be in (0, 1] or None, got {gamma!r}; the noisier the "
                "compressor, the smaller"
            )
        self.gamma = gamma

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        eps, self._scale, _ = contraction(self.compressor, vectors)
        self._gamma = 0.5 / (1 + eps) ** 2 if self.gamma is None else self.gamma
        self.S, self.e = zeros(vectors), zeros(vectors)

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        e = self.e[bucket]
        v = applied(_compensate, e, x_new)
        self._encode_in_parts(bucket, e, step, v, e, -self._scale)

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        self.S[bucket].zero_()
        return self._gossip(bucket, step, self._scale, own=self._own[bucket])

    def finish(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.finish."""
        x_new.add_(self.S[bucket], alpha=self._gamma)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, gamma={self.gamma!r})"
