"""Synchronous data-parallel SGD.

Algorithm 1 of Ramezani-Kebrya et al.: "NUQSGD: Provably Communication-efficient Data-parallel SGD
via Nonuniform Quantization", JMLR 22 (2021), arXiv:2104.13818:

    every worker i:  send ENCODE(Q(g_i)) to all;  receive and decode all
                     x <- x - (eta / n) sum_j DECODE(m_j)

One rounding per message, and traffic that grows with n. Without a compressor it is the float32
all-reduce, which the paper calls SuperSGD. The step on x is the wrapped optimizer's, so momentum
and weight decay come after the mean.
"""

from __future__ import annotations

from torch import Tensor

from ..compressors.base import check_finite
from .base import GradientAlgorithm


class AllReduce(GradientAlgorithm):
    """Average gradients over all ranks; with a compressor by an all-gather of encoded gradients."""

    name = "allreduce"

    def average(self, bucket: int, g: Tensor, step: int) -> None:
        """See GradientAlgorithm.average; equal on all ranks, bit for bit."""
        n = self.comm.size
        if self.compressor.lossless:
            check_finite(g, self.name)  # here, where the rank is known, and before it spreads
            self.comm.all_reduce(g).wait()
            g.div_(n)
            return
        own, pending = self._post(bucket, g, step)
        pending.wait()
        g.zero_()
        for j in range(n):  # in the same order everywhere, since float addition is not associative
            message = own if j == self.comm.rank else self._arrived(bucket, j, step)
            self.compressor.accumulate(message, g, 1 / n)

    def message_nbytes(self, numel: int) -> int:
        """See Algorithm.message_nbytes; the float32 all-reduce has no header."""
        return 4 * numel if self.compressor.lossless else super().message_nbytes(numel)
