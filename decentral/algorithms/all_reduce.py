"""Synchronous data-parallel SGD.

Algorithm 1 of Ramezani-Kebrya et al.: "NUQSGD: Provably Communication-efficient Data-parallel SGD
via Nonuniform Quantization", JMLR 22 (2021), arXiv:2104.13818:

    every worker i:  send ENCODE(Q(g_i)) to all;  receive and decode all
                     x <- x - (eta / n) sum_j DECODE(m_j)

One rounding per message, and traffic that grows with n: where ranks share hosts, or from 4 ranks
on, buckets that are large enough go other ways (means.py). Without a compressor it is the float32
all-reduce, which the paper calls SuperSGD. The step on x is the wrapped optimizer's, so momentum
and weight decay come after the mean.

A compressor whose messages may be added (IntSGD) goes through the integer all-reduce instead:
algorithm 1 of Mishchenko et al., "IntSGD", ICLR 2022, which decentral/compressors/intsgd.py quotes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..communicators.base import Communicator
from ..compressors.base import Compressor, lossless
from ..compressors.checks import NotFiniteError, check_finite
from ..payload import as_array
from .base import Averaging, GradientAlgorithm
from .means import (
    GatheredMean,
    Mean,
    ShardedMean,
    gathered_rounds,
    my_shard,
    refused_by,
    shard_length,
    sharded_rounds,
    split_ranks,
)
from .noise import rounding_noise
from .rounds import Place, Round, summed

EXCHANGES = ("auto", "all-gather", "reduce-scatter", "two-level")
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
            as much whatever the number of ranks, and rounds twice; "two-level" adds up in float32
            within a host and exchanges messages between hosts, every rank a part; "auto" chooses by
            hosts, ranks, size of the bucket, and how noisy the compressor is.

    Raises:
        ValueError: the exchange is not known; when joining ranks, hosts have unequal numbers of
            ranks for "two-level".
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
        self._draws = self._seed
        self._numels = [len(v) for v in vectors]
        self._means: list[Mean] = []
        self._chosen = ["all-reduce"] * len(vectors)
        if self.compressor.summable:
            self._integers.attach(self.comm.size, parts)
        elif not self.compressor.lossless:
            self._choose(vectors)

    def _noisy(self, numel: int) -> bool:
        return rounding_noise(self.compressor, numel) > _SHARDED_UP_TO_NOISE

    def _choose(self, vectors: Sequence[Tensor]) -> None:
        ranks = set(Counter(self.comm.hosts).values())
        even = len(set(self.comm.hosts)) > 1 and ranks == {max(ranks)} != {1}
        auto = self.exchange == "auto"
        self._chosen = [
            self._way(self.comm.size, even, len(v)) if auto else self.exchange for v in vectors
        ]
        if "two-level" in self._chosen:
            self._local, self._across = self._split()
        ways = zip(vectors, self._chosen, strict=True)
        everyone = range(self.comm.size)
        self._means = [self._mean(v, self.comm, everyone, way) for v, way in ways]

    def _way(self, size: int, even: bool, numel: int) -> str:
        """Return what "auto" stands for; `even`: hosts have equally many ranks, several each."""
        if numel < _SHARDED_FROM_NUMEL or self._noisy(numel):
            return "all-gather"
        if even:
            return "two-level"
        return "reduce-scatter" if size >= _SHARDED_FROM_RANKS else "all-gather"

    def _split(self) -> tuple[Communicator, Communicator]:
        """Return the ranks of this host, and this rank's peers on all hosts."""
        comm = self.comm
        ranks = Counter(comm.hosts)
        if len(set(ranks.values())) > 1:
            raise ValueError(
                f"allreduce: exchange='two-level' needs equally many ranks on every host, got "
                f"{sorted(ranks.values())}; use 'auto'"
            )
        host = comm.hosts[comm.rank]
        return comm.split(host), comm.split(comm.hosts[: comm.rank].count(host))

    def _mean(self, vector: Tensor, comm: Communicator, ranks: Sequence[int], way: str) -> Mean:
        """Return the mean over a communicator whose ranks are these of the job."""
        arguments = (self.compressor, comm, ranks, self.comm.size)
        if way == "all-gather":
            return GatheredMean(vector, *arguments)
        if way == "reduce-scatter":
            return ShardedMean(vector, *arguments)
        local, across = self._local, self._across
        on_host, peers = split_ranks(self.comm.hosts, self.comm.rank)
        lower = (lossless(), local, on_host, self.comm.size)
        part = my_shard(vector, local)
        inner = self._mean(part, across, peers, self._way(across.size, False, len(part)))
        return ShardedMean(vector, *lower, inner=inner)

    def rounds(self, numels: Sequence[int], place: Place) -> list[list[Round]]:
        """See Algorithm.rounds."""
        if place.size == 1:
            return [[] for _ in numels]
        if self.compressor.summable:
            return self._integer_rounds(numels, place)
        if self.compressor.lossless:
            return [[summed(numel, 4 * numel, place)] for numel in numels]
        return [self._encoded_rounds(numel, place) for numel in numels]

    def _encoded_rounds(self, numel: int, place: Place) -> list[Round]:
        way = self._way(place.size, place.even, numel) if self.exchange == "auto" else self.exchange
        if way != "two-level":
            return self._flat_rounds(numel, range(place.size), place.rank, way)
        across, local = place.across, place.local
        part = shard_length(numel, len(local), place.rank - local[0])
        way = self._way(len(across), False, part)
        inner = self._flat_rounds(part, across, place.host, way)
        return sharded_rounds(lossless(), numel, local, place.rank - local[0], inner)

    def _flat_rounds(self, numel: int, ranks: range, me: int, way: str) -> list[Round]:
        how = gathered_rounds if way == "all-gather" else sharded_rounds
        return how(self.compressor, numel, ranks, me)

    def _integer_rounds(self, numels: Sequence[int], place: Place) -> list[list[Round]]:
        width, asks = self._integers.bits // 8, self._integers.asks(place.size)
        sums = [summed(numel, (numel + 1) * width, place) for numel in numels]  # and a flag
        ask = [summed(0, 4, place)] if asks else []
        return [[*ask, r._replace(encoded=r.added, decoded=r.added)] for r in sums]

    @property
    def _integers(self) -> Any:
        """The compressor, where it is one of compressors/integers.py."""
        return self.compressor

    def begin_step(self, step: int, rates: Sequence[Sequence[float]], again: int = 0) -> None:
        """See GradientAlgorithm.begin_step."""
        self._draws = self._seed + (again << 32)  # other draws than those of the same step
        if self.compressor.summable:
            self._integers.begin_step(step, rates)

    def average(self, bucket: int, g: Tensor, step: int) -> Averaging:
        """See GradientAlgorithm.average; equal on all ranks, bit for bit."""
        if self.compressor.lossless:
            return self._exact_mean(g)
        if self.compressor.summable:
            return self._observed_mean(bucket, g, step)
        return self._means[bucket].average(bucket, as_array(g), step, self._draws)

    def _exact_mean(self, g: Tensor) -> Averaging:
        failure = self._own_mistake(g)
        yield self.comm.all_reduce(g, mean=True)
        return failure or self._others_mistake(g)

    def _own_mistake(self, g: Tensor) -> NotFiniteError | None:
        """Return what is not finite in g, and make all of it NaN, for the others to see."""
        try:
            check_finite(g, self.name)
        except NotFiniteError as error:
            g.fill_(torch.nan)
            return error
        return None

    def _others_mistake(self, mean: Tensor) -> NotFiniteError | None:
        """Return what is not finite in the mean, which has the same bits on all ranks."""
        if mean[:1].isnan().any():
            return refused_by("some rank")
        try:
            check_finite(mean, f"{self.name}: the sum over ranks")  # of finite ones, may overflow
        except NotFiniteError as error:
            return error
        return None

    def _observed_mean(self, bucket: int, g: Tensor, step: int) -> Averaging:
        failure = yield from self._mean_of_integers(bucket, g, step)
        if failure is None:
            self._observe(bucket, g)
        return failure

    def _mean_of_integers(
        self, bucket: int, g: Tensor, step: int, sent: Tensor | None = None
    ) -> Averaging:
        """Replace g by S / (n alpha); add to `sent` what this rank's integers stand for."""
        c, comm = self._integers, self.comm
        host = g.cpu()  # the same memory, unless g is on a GPU
        key = (self._draws, step, comm.rank, bucket)
        x, failure = host.numpy(), None
        try:
            check_finite(x, c.name)  # before the maximum, which would spread it
        except NotFiniteError as error:  # all ranks have to do the same operations
            x, failure = np.zeros(len(g), np.float32), error
        top = c.own_top(x)
        if top is not None:
            largest = comm.maximum(top)
            yield largest
            top = largest.value
        integers = c.round(bucket, x, key, top)
        own = g.clone() if sent is not None else g
        if integers is None:
            other = yield from self._exact_mean(g)
            failure = failure or other
        else:
            if sent is not None:
                c.expand(bucket, integers, host.numpy(), ranks=1)
                own.copy_(host)
            wire = c.wire(bucket, refused=failure is not None)
            yield comm.all_reduce(wire)
            c.expand(bucket, integers, host.numpy(), ranks=comm.size)
            g.copy_(host)
            if wire[-1]:
                g.fill_(torch.nan)
                failure = failure or refused_by("some rank")
        if sent is not None and failure is None:
            sent += own
        return failure

    def _observe(self, bucket: int, g: Tensor) -> None:
        self._integers.observe(bucket, g.cpu().numpy())

    def message_nbytes(self, bucket: int) -> int:
        """See Algorithm.message_nbytes; what an all-reduce adds has no header."""
        if self.compressor.summable:
            return int(self._numels[bucket] * self._integers.bits // 8)
        if self.compressor.lossless:
            return 4 * self._numels[bucket]
        return self._means[bucket].nbytes

    def stats(self) -> dict[str, Any]:
        """Return what the compressor counts, and the "exchange" of each bucket."""
        return super().stats() | {"exchange": list(self._chosen)}
