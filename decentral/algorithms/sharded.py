"""A mean by reduce-scatter and all-gather of encoded shards: traffic that does not grow with ranks.

Ours, after the way all-reduce itself is done. Rank j owns shard j of every bucket:

    every rank i sends C(g_i[shard j]) to rank j;   rank j: m = (g_j + sum_i decode) / n, its own
    shard in full precision;   rank j sends C(m) to all;   all decode it, j too

A rank sends 2 (n - 1) / n messages' worth instead of the all-gather's n - 1. There are two
roundings instead of one, both unbiased where C is; n averages out the first one's noise only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..communicators.base import Communicator
from ..compressors.base import Compressor, NotFiniteError
from ..payload import Payload

Checker = Callable[[Payload, int, int, int], None]
_ALIGN = 1024  # coordinates: the kernels' unit


def shard_edges(numel: int, n: int) -> list[int]:
    """Return where n shards of a bucket begin, and its end; the last ones may be empty."""
    each = -(-numel // (n * _ALIGN)) * _ALIGN
    return [min(numel, j * each) for j in range(n + 1)]


def rounding_noise(compressor: Compressor) -> float:
    """Return ||C(x) - x||^2 / ||x||^2 of a Gaussian vector, the same one on all ranks."""
    x = np.random.default_rng(0).standard_normal(1 << 14).astype(np.float32)
    c = compressor.fresh()
    y = c.decode(c.encode(x, (0, 0, 0, 0)))
    return float(np.square(y - x).sum() / np.square(x).sum())


class _Buffers(NamedTuple):
    edges: list[int]
    parts: dict[int, Payload]  # of my gradient, to each owner
    inbox: dict[int, Payload]  # of theirs, of my shard
    means: dict[int, Payload]  # of all shards, mine among them


class ShardedMean:
    """Means over the ranks of `comm`, with messages of `compressor`."""

    def __init__(
        self, compressor: Compressor, comm: Communicator, seed: int, vectors: Sequence[Tensor]
    ) -> None:
        self._compressor, self._comm, self._seed = compressor, comm, seed
        self._buffers = [self._allocate(v) for v in vectors]

    def _allocate(self, vector: Tensor) -> _Buffers:
        n, me = self._comm.size, self._comm.rank
        edges = shard_edges(len(vector), n)
        new = self._compressor.new_payload
        lengths = [b - a for a, b in pairwise(edges)]
        others = self._comm.everyone_else()
        return _Buffers(
            edges,
            {j: new(lengths[j], vector) for j in others},
            {j: new(lengths[me], vector) for j in others},
            {j: new(lengths[j], vector) for j in range(n)},
        )

    def nbytes(self, bucket: int) -> int:
        """Return the bytes of this rank's messages that together hold every coordinate once."""
        buffers = self._buffers[bucket]
        return sum(p.nbytes for p in buffers.parts.values()) + buffers.means[self._comm.rank].nbytes

    def average(self, bucket: int, g: Tensor, step: int, check: Checker) -> None:
        """Replace g, float32[numel], by its mean; equal on all ranks, bit for bit.

        `check(payload, source, bucket, step)` refuses what is not of that step and bucket.
        """
        edges, parts, inbox, means = self._buffers[bucket]
        n, me, comm = self._comm.size, self._comm.rank, self._comm
        shards = [g[a:b] for a, b in pairwise(edges)]
        for j, payload in parts.items():
            self._encode(shards[j], payload, me + n * (j + 1), bucket, step, edges[j])
        tag = 2 * bucket + step % 2
        comm.exchange(parts, inbox, tag).wait()
        mine = shards[me]
        for j, payload in inbox.items():
            check(payload, j, bucket, step)
            self._compressor.accumulate(payload, mine)
        mine.div_(n)
        self._encode(mine, means[me], me + n * (n + 1), bucket, step, edges[me])
        others = {j: means[j] for j in inbox}
        # The tag serves again: messages of one rank to another do not overtake each other.
        comm.exchange(means[me], others, tag).wait()
        for j, payload in means.items():
            if j != me:
                check(payload, j, bucket, step)
            self._compressor.decode(payload, shards[j])

    def _encode(
        self, x: Tensor, out: Payload, who: int, bucket: int, step: int, start: int
    ) -> None:
        """Encode a shard; `who` stands for the rank in its key, so that no two draw the same."""
        try:
            self._compressor.encode(x, (self._seed, step, who, bucket), out=out)
        except NotFiniteError as error:
            where = f"{error} of the shard that begins at {start}"
            raise NotFiniteError(where, start + error.index) from error
