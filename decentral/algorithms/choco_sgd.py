"""CHOCO-SGD: gossip of compressed differences to estimates that all neighbors share.

Koloskova, Stich, Jaggi: "Decentralized Stochastic Optimization and Gossip Algorithms with
Compressed Communication", ICML 2019, arXiv:1902.00340, Algorithms 2 and 6, and Koloskova, Lin,
Stich, Jaggi: "Decentralized Deep Learning with Arbitrary Communication Compression", ICLR 2020,
arXiv:1907.09356, Algorithm 1:

    x_i    <- x_i - eta g_i(x_i)
    q_i     = Q(x_i - xh_i)                                          send q_i
    xh_j   <- xh_j + q_j                                             for neighbors j and j = i
    x_i    <- x_i + gamma sum_j W_ij (xh_j - xh_i)

The next gradient is taken after mixing with messages of this step, so they are waited for. Q has
to contract: of an unbiased C with ||C(z) - z||^2 = eps ||z||^2 it is C / (1 + eps) where eps >= 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number
from decentral_topologies import Topology

from ..compressors.base import Compressor
from .base import Publishing
from .gossip import GossipAlgorithm, TopologyLike, applied, copies, zeros
from .noise import contraction
from .requirements import check_stateless


@Elementwise
def _difference(x: Number, new: Number, xh: Number) -> tuple[Number, ...]:
    """Return what to send, in the place of x, which is not needed."""
    return (new - xh,)


def theorem_gamma(graph: Topology, omega: float) -> float:
    """Return the consensus step size of the ICML paper's Theorem 2.

    It holds for ||Q(z) - z||^2 <= (1 - omega) ||z||^2, in the mean over Q's draws.
    """
    eigenvalues = np.linalg.eigvalsh(graph.mixing_matrix())
    delta, beta = graph.spectral_gap(), 1 - float(eigenvalues[0])
    return (
        delta**2
        * omega
        / (16 * delta + delta**2 + 4 * beta**2 + 2 * delta * beta**2 - 8 * delta * omega)
    )


class ChocoSGD(GossipAlgorithm):
    """Gossip with error feedback, for any compressor.

    Args:
        topology: a name, a Topology, or a function of the number of ranks.
        compressor: any without state of its own; None sends float32.
        gamma: the consensus step size, in (0, 1]; "theorem" takes the proven one, some hundredths;
            None takes 1 / (1 + eps), ours: it is 1 without noise, and all that was tried trained.

    Raises:
        ValueError: gamma is none of these, or the compressor keeps a residual.
    """

    name = "choco-sgd"
    formulas = (_difference,)
    x_new_at = 1
    synchronous, keeps_x = True, False
    vectors = ("S", "xh")

    def __init__(
        self,
        topology: TopologyLike = "ring",
        compressor: Compressor | None = None,
        gamma: float | str | None = None,
    ) -> None:
        super().__init__(topology, compressor)
        check_stateless(self)
        given = gamma is not None and gamma != "theorem"
        if given and not (isinstance(gamma, (int, float)) and 0 < gamma <= 1):
            raise ValueError(
                f"choco-sgd: gamma must be in (0, 1], 'theorem' or None, got {gamma!r}; "
                "the noisier the compressor, the smaller"
            )
        self.gamma = gamma

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        eps, self._scale, omega = contraction(self.compressor, vectors)
        self._gamma = self._step_size(omega, eps)
        self.S, self.xh = zeros(vectors), copies(vectors)

    def _step_size(self, omega: float, eps: float) -> float:
        if self.gamma == "theorem":
            assert isinstance(self.topology, Topology)
            return theorem_gamma(self.topology, omega)
        return 1 / (1 + eps) if self.gamma is None else float(self.gamma)

    def estimates(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        """See GossipAlgorithm.estimates."""
        return self.xh

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        xh = self.xh[bucket]
        z = applied(_difference, x, x_new, xh)
        self._encode_in_parts(bucket, x, step, z, xh, self._scale)

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        return self._gossip(bucket, step, self._scale, own=self._own[bucket])

    def finish(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.finish."""
        x_new.add_(self.S[bucket], alpha=self._gamma)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, gamma={self.gamma!r})"
