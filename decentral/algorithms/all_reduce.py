"""Synchronous data-parallel SGD.

Algorithm 1 of Ramezani-Kebrya et al.: "NUQSGD: Provably Communication-efficient Data-parallel SGD
via Nonuniform Quantization", JMLR 22 (2021), arXiv:2104.13818:

    every worker i:  send ENCODE(Q(g_i)) to all;  receive and decode all
                     x <- x - (eta / n) sum_j DECODE(m_j)

One rounding per message, and traffic that grows with n: from 4 ranks on, buckets large enough go by
reduce-scatter and all-gather instead (sharded.py). Without a compressor it is the float32
all-reduce, which the paper calls SuperSGD. The step on x is the wrapped optimizer's, so momentum
and weight decay come after the mean.

A compressor whose messages may be added (IntSGD) goes through the integer all-reduce instead:
algorithm 1 of Mishchenko et al., "IntSGD", ICLR 2022, which decentral/compressors/intsgd.py quotes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..compressors.base import Compressor, check_finite
from .base import GradientAlgorithm
from .sharded import ShardedMean, rounding_noise

EXCHANGES = ("auto", "all-gather", "reduce-scatter")
# An all-gather sends n - 1 messages, the other way 2 (n - 1) / n, in two rounds.
_SHARDED_FROM_RANKS, _SHARDED_FROM_NUMEL = 4, 1 << 14
# The second rounding's noise, which n does not average out, may be as large as the mean. QSGD's is
# 9 times that at 4 bits and block 8192, and costs a point of accuracy (docs/results.md).
_SHARDED_UP_TO_NOISE = 1.0


class AllReduce(GradientAlgorithm):
    """Average gradients over all ranks.

    Float32 and integers go by an all-reduce, other messages as `exchange` says.

    Args:
        compressor: any; None sends float32.
        exchange: "all-gather" is the paper's; "reduce-scatter" (and all-gather of the means) sends
            as much whatever the number of ranks, and rounds twice; "auto" chooses by ranks, size of
            the bucket, and how noisy the compressor is.

    Raises:
        ValueError: the exchange is not known.
    """

    name = "allreduce"

    def __init__(self, compressor: Compressor | None = None, exchange: str = "auto") -> None:
        super().__init__(compressor)
        if exchange not in EXCHANGES:
            raise ValueError(
                f"allreduce: exchange must be one of {', '.join(EXCHANGES)}, got {exchange!r}"
            )
        self.exchange = exchange

    def __repr__(self) -> str:
        how = "" if self.exchange == "auto" else f", exchange={self.exchange!r}"
        return f"{super().__repr__()[:-1]}{how})"

    def _allocate(self, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        self._numels = [len(v) for v in vectors]
        if self.compressor.summable:
            self._integers.attach(self.comm.size, parts)
        elif not self.compressor.lossless:
            self._noise = rounding_noise(self.compressor)
            # An empty vector takes the place of a bucket that goes the other way.
            sharded = [v if self._is_sharded(len(v)) else v[:0] for v in vectors]
            gathered = [v[:0] if self._is_sharded(len(v)) else v for v in vectors]
            self._sharded = ShardedMean(self.compressor, self.comm, self._seed, sharded)
            super()._allocate(gathered, parts)

    def _is_sharded(self, numel: int) -> bool:
        if self.exchange != "auto":
            return self.exchange == "reduce-scatter"
        large = self.comm.size >= _SHARDED_FROM_RANKS and numel >= _SHARDED_FROM_NUMEL
        return large and self._noise <= _SHARDED_UP_TO_NOISE

    @property
    def _integers(self) -> Any:
        """The compressor, where it is one of compressors/integers.py."""
        return self.compressor

    def begin_step(self, step: int, rates: Sequence[Sequence[float]]) -> None:
        """See GradientAlgorithm.begin_step."""
        if self.compressor.summable:
            self._integers.begin_step(step, rates)

    def average(self, bucket: int, g: Tensor, step: int) -> None:
        """See GradientAlgorithm.average; equal on all ranks, bit for bit."""
        if self.compressor.lossless:
            self._exact_mean(g)
        elif self.compressor.summable:
            self._mean_of_integers(bucket, g, step)
            self._observe(bucket, g)
        elif self._is_sharded(len(g)):
            self._sharded.average(bucket, g, step, self._check)
        else:
            self._mean_of_messages(bucket, g, step)

    def _exact_mean(self, g: Tensor) -> None:
        check_finite(g, self.name)  # here, where the rank is known, and before it spreads
        self.comm.all_reduce(g).wait()
        g.div_(self.comm.size)

    def _mean_of_messages(self, bucket: int, g: Tensor, step: int) -> None:
        n = self.comm.size
        own, pending = self._post(bucket, g, step)
        pending.wait()
        g.zero_()
        for j in range(n):  # in the same order everywhere, since float addition is not associative
            message = own if j == self.comm.rank else self._arrived(bucket, j, step)
            self.compressor.accumulate(message, g, 1 / n)

    def _mean_of_integers(
        self, bucket: int, g: Tensor, step: int, sent: Tensor | None = None
    ) -> None:
        """Replace g by S / (n alpha); add to `sent` what this rank's integers stand for."""
        c, comm = self._integers, self.comm
        host = g.cpu()  # the same memory, unless g is on a GPU
        key = (self._seed, step, comm.rank, bucket)
        integers = c.round(bucket, host.numpy(), key, comm.all_reduce_max)
        if integers is None:
            if sent is not None:
                sent += g
            self._exact_mean(g)
            return
        if sent is not None:
            own = torch.zeros_like(host)
            c.expand(bucket, integers, own.numpy(), ranks=1)
            sent += own.to(sent.device)
        comm.all_reduce(integers).wait()
        c.expand(bucket, integers, host.numpy(), ranks=comm.size)
        g.copy_(host)

    def _observe(self, bucket: int, g: Tensor) -> None:
        self._integers.observe(bucket, g.cpu().numpy())

    def message_nbytes(self, bucket: int) -> int:
        """See Algorithm.message_nbytes; what an all-reduce adds has no header."""
        if self.compressor.summable:
            return int(self._numels[bucket] * self._integers.bits // 8)
        if self.compressor.lossless:
            return 4 * self._numels[bucket]
        if self._is_sharded(self._numels[bucket]):
            return self._sharded.nbytes(bucket)
        return super().message_nbytes(bucket)

    def stats(self) -> dict[str, Any]:
        """Return what the compressor counts, and the "exchange" of each bucket."""
        if self.compressor.lossless or self.compressor.summable:
            chosen = ["all-reduce"] * len(self._numels)
        else:
            ways = ("all-gather", "reduce-scatter")
            chosen = [ways[self._is_sharded(numel)] for numel in self._numels]
        return super().stats() | {"exchange": chosen}
