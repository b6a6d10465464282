"""CoCoD-SGD: an all-reduce that travels during the next forward and backward pass.

Shen, Xu, Liu, Liang, Cheng: "Faster Distributed Deep Net Training: Computation and Communication
Decoupled Stochastic Gradient Descent", IJCAI 2019, arXiv:1906.12043, Algorithm 1:

    x_i^{t+k} = xh^t + (x_i^t - eta sum_{s=t}^{t+k-1} g_i(x_i^s) - x_i^t),  xh^t = 1/n sum_j x_j^t

k are `local_steps`. A rank's own update counts at once, the others' a round later. Ours: what
travels is what the round has moved by, d_i, since it may be compressed, as in mixer.py's
PeriodicMean; what all ranks add up of it is the same on all of them, bit for bit:

    xh^{t+k} = xh^t + 1/n sum_j C(d_j),  x_i = xh + d_i

Without rounding it is D-PSGD over the complete graph, with 2 (n - 1) / n messages instead of n - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from decentral_kernels.elementwise import Elementwise, Number
from decentral_topologies import Complete, Topology

from ..compressors.base import Compressor
from ..compressors.checks import check_finite
from ..payload import as_array
from .all_reduce import AllReduce
from .base import Publishing
from .gossip import GossipAlgorithm, copies, zeros
from .rounds import Place, Round


@Elementwise
def _decouple(new: Number, x: Number, S: Number, xh: Number) -> tuple[Number, ...]:
    """Return the next iterate, twice, what travels, and xh, for x_new = x + d and S, mean of d."""
    return (xh + S) + (new - x), (xh + S) + (new - x), new - x, xh + S


class CoCoDSGD(GossipAlgorithm):
    """Gossip with everybody at once, by an all-reduce of updates.

    Args:
        compressor: any whose messages are not added; None sends float32.
        exchange: as AllReduce's.

    Raises:
        ValueError: the exchange is not known, or the compressor is one of integers, whose scale
            follows from sums of all buckets, which are under way here.
    """

    name = "cocod-sgd"
    formulas = (_decouple,)
    vectors = ("S", "xh")

    def __init__(self, compressor: Compressor | None = None, exchange: str = "auto") -> None:
        super().__init__("complete", compressor)
        if self.compressor.summable:
            raise ValueError(
                f"cocod-sgd: needs a compressor whose messages are not added, got "
                f"{self.compressor!r}; use nuqsgd here, or this one with allreduce"
            )
        self._mean = AllReduce(self.compressor, exchange)

    @classmethod
    def accepts(cls, graph: Topology) -> bool:
        """See GossipAlgorithm.accepts."""
        return isinstance(graph, Complete)

    def join(self, comm: Any) -> None:
        """See Algorithm.join."""
        super().join(comm)
        self._mean.rejoin(comm)

    def _allocate(self, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        self._mean.compressor = self.compressor
        self._mean.start(self._seed, vectors, parts)
        self.compressor = self._mean.compressor

    def reset(self, vectors: Sequence[Tensor]) -> None:
        """See GossipAlgorithm.reset."""
        self.S, self.xh = zeros(vectors), copies(vectors)

    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """See GossipAlgorithm.update."""
        vectors = (x_new, x, self.S[bucket], self.xh[bucket])
        if not _decouple(*map(as_array, vectors)):
            check_finite(x_new, self.name)

    def publish(self, bucket: int, step: int) -> Publishing:
        """See GossipAlgorithm.publish."""
        failure = yield from self._mean.average(bucket, self.S[bucket], step)
        if failure is not None:
            raise failure

    def message_nbytes(self, bucket: int) -> int:
        """See Algorithm.message_nbytes."""
        return self._mean.message_nbytes(bucket)

    def rounds(self, numels: Sequence[int], place: Place) -> list[list[Round]]:
        """See Algorithm.rounds."""
        return self._mean.rounds(numels, place)

    def stats(self) -> dict[str, Any]:
        """Return what the compressor counts, and the "exchange" of each bucket."""
        return self._mean.stats()

    def __repr__(self) -> str:
        return repr(self._mean).replace(type(self._mean).__name__, type(self).__name__, 1)
