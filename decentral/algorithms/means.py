"""Ways to a mean over ranks of encoded messages; all_reduce.py chooses among them.

All give every rank the same bits. A rank that cannot encode its part, because it holds NaN or inf,
sends a refusal instead: the mean is then NaN on all ranks, and all of them learn why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from ..communicators.base import Communicator
from ..compressors.base import Compressor, Key
from ..compressors.checks import NotFiniteError
from ..payload import Payload
from .base import Averaging, check_message, naming_senders
from .rounds import Round, message_nbytes

_ALIGN = 1024  # coordinates: the kernels' unit


def shard_edges(numel: int, n: int) -> list[int]:
    """Return where n shards of a bucket begin, and its end; the last ones may be empty."""
    each = -(-numel // (n * _ALIGN)) * _ALIGN
    return [min(numel, j * each) for j in range(n + 1)]


def shard_length(numel: int, n: int, j: int) -> int:
    """Return the coordinates of shard j of n."""
    each = -(-numel // (n * _ALIGN)) * _ALIGN
    return min(numel, (j + 1) * each) - min(numel, j * each)


def my_shard(vector: Tensor, comm: Communicator) -> Tensor:
    """Return the shard of a bucket that this rank owns."""
    edges = shard_edges(len(vector), comm.size)
    return vector[edges[comm.rank] : edges[comm.rank + 1]]


def split_ranks(hosts: Sequence[int], rank: int) -> tuple[list[int], list[int]]:
    """Return the ranks of a rank's host, and those that have its place on their hosts."""
    on_host = [r for r, host in enumerate(hosts) if host == hosts[rank]]
    place, seen = on_host.index(rank), Counter[int]()
    peers = []
    for r, host in enumerate(hosts):
        if seen[host] == place:
            peers.append(r)
        seen[host] += 1
    return on_host, peers


def encode_or_refuse(
    compressor: Compressor, x: Any, key: Key, out: Payload, start: int = 0
) -> NotFiniteError | None:
    """Encode x, which begins at coordinate `start` of its bucket, or say in `out` that it cannot.

    Returns why not.
    """
    try:
        compressor.encode(x, key, out=out)
    except NotFiniteError as error:
        compressor.refuse(len(x), key, out)
        return _of_shard(error, start)
    return None


def _of_shard(error: NotFiniteError, start: int) -> NotFiniteError:
    where = f"{error} of the shard that begins at {start}" if start else str(error)
    return NotFiniteError(where, start + error.index)


def refused_by(who: Any) -> NotFiniteError:
    """Return the error of a mean that some rank's message has made NaN."""
    return NotFiniteError(f"{who} has a gradient that is not finite", -1)


class Mean(ABC):
    """The mean of a bucket over the ranks of `comm`.

    `ranks` are their numbers in all of the job, and `total` how many that has: what is drawn for a
    message depends on them, so that no two draw the same, and errors name them.
    """

    def __init__(
        self,
        compressor: Compressor,
        comm: Communicator,
        ranks: Sequence[int],
        total: int,
    ) -> None:
        self.compressor, self.comm = compressor, comm
        self._ranks, self._total = ranks, total
        self._identity = ranks[comm.rank]

    def _key(self, seed: int, step: int, round_: int, bucket: int) -> Key:
        return seed, step, self._identity + self._total * round_, bucket

    def _check(self, payload: Payload, source: int, bucket: int, step: int) -> bool:
        """Refuse what is of another step or bucket; return whether it is a refusal itself."""
        check_message(payload, self._who, self._ranks[source], bucket, step)
        return payload.is_refusal

    @property
    def _who(self) -> str:
        return f"allreduce: rank {self._identity}"

    def _naming(
        self, messages: Mapping[int, Payload], vector: Any, bucket: int, step: int
    ) -> AbstractContextManager[None]:
        """Return what names the sender of a message that cannot be decoded into the vector."""
        sent = {self._ranks[j]: payload for j, payload in messages.items()}
        return naming_senders(self.compressor, sent, vector, self._who, bucket, step)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes of this rank's messages that together hold every coordinate once."""

    @abstractmethod
    def average(self, bucket: int, g: Any, step: int, seed: int) -> Averaging:
        """See GradientAlgorithm.average; g is a vector as the kernels take it.

        `seed` is that of the draws.
        """


class GatheredMean(Mean):
    """Everybody's message to everybody: one rounding, traffic that grows with the ranks.

    Algorithm 1 of the NUQSGD paper.
    """

    def __init__(self, vector: Tensor, *args: Any) -> None:
        super().__init__(*args)
        new = self.compressor.new_payload
        self._own = new(len(vector), vector)
        self._received = {j: new(len(vector), vector) for j in self.comm.everyone_else()}

    @property
    def nbytes(self) -> int:
        """See Mean.nbytes."""
        return self._own.nbytes

    def average(self, bucket: int, g: Any, step: int, seed: int) -> Averaging:
        """See Mean.average."""
        comm, own = self.comm, self._own
        failure = encode_or_refuse(self.compressor, g, self._key(seed, step, 0, bucket), own)
        yield comm.exchange(own, self._received, 2 * bucket + step % 2)
        g[:] = 0
        # In the same order everywhere: float addition is not associative.
        messages = [own if j == comm.rank else self._received[j] for j in range(comm.size)]
        for j, message in enumerate(messages):
            if self._check(message, j, bucket, step):
                failure = failure or refused_by(f"rank {j}")
        with self._naming(self._received, g, bucket, step):
            self.compressor.accumulate_all([(m, 1 / comm.size) for m in messages], g)
        return failure


def gathered_rounds(c: Compressor, numel: int, ranks: range, me: int) -> list[Round]:
    """Return what GatheredMean sends among these ranks, of which this is number `me`."""
    n = len(ranks)
    nbytes = (n - 1) * message_nbytes(c, numel)
    return [Round(ranks, nbytes, encoded=4 * numel, decoded=4 * numel * n)]


class _Buffers(NamedTuple):
    edges: list[int]
    parts: dict[int, Payload]  # of my gradient, to each owner
    inbox: dict[int, Payload]  # of theirs, of my shard
    means: dict[int, Payload]  # of all shards, mine among them


class ShardedMean(Mean):
    """Reduce-scatter and all-gather of encoded shards: traffic that does not grow with the ranks.

    Ours, after the way all-reduce itself is done. Rank j owns shard j of the bucket:

        every rank i sends C(g_i[shard j]) to rank j;   rank j: m = (g_j + sum_i decode) / n, its
        own shard in full precision;   rank j sends C(m) to all;   all decode it, j too

    A rank sends 2 (n - 1) / n messages' worth instead of the all-gather's n - 1. There are two
    roundings instead of one, both unbiased where C is; n averages out the first one's noise only.

    With `inner`, a mean of this rank's shard over other communicators' ranks comes between the two
    rounds: two levels, of which this is the lower one.
    """

    def __init__(self, vector: Tensor, *args: Any, inner: Mean | None = None) -> None:
        super().__init__(*args)
        self._inner = inner
        n, me = self.comm.size, self.comm.rank
        new = self.compressor.new_payload
        edges = shard_edges(len(vector), n)
        lengths = [b - a for a, b in pairwise(edges)]
        others = self.comm.everyone_else()
        self._buffers = _Buffers(
            edges,
            {j: new(lengths[j], vector) for j in others},
            {j: new(lengths[me], vector) for j in others},
            {j: new(lengths[j], vector) for j in range(n)},
        )

    @property
    def nbytes(self) -> int:
        """See Mean.nbytes."""
        if self._inner is not None:
            return self._inner.nbytes
        parts, means = self._buffers.parts, self._buffers.means
        return sum(p.nbytes for p in parts.values()) + means[self.comm.rank].nbytes

    def average(self, bucket: int, g: Any, step: int, seed: int) -> Averaging:
        """See Mean.average."""
        edges, parts, inbox, means = self._buffers
        c, comm, n, me = self.compressor, self.comm, self.comm.size, self.comm.rank
        shards = [g[a:b] for a, b in pairwise(edges)]
        failure: NotFiniteError | None = None
        for j, payload in parts.items():
            key = self._key(seed, step, j + 1, bucket)
            failure = encode_or_refuse(c, shards[j], key, payload, edges[j]) or failure
        tag = 2 * bucket + step % 2
        yield comm.exchange(parts, inbox, tag)
        mine = shards[me]
        refusals = [j for j, p in inbox.items() if self._check(p, j, bucket, step)]
        with self._naming(inbox, mine, bucket, step):
            c.accumulate_all([(payload, 1.0) for payload in inbox.values()], mine)
        mine /= n
        if self._inner is not None:
            error = yield from self._inner.average(bucket, mine, step, seed)
            if error is not None:
                own_mistake = error.index >= 0 and not refusals
                own = _of_shard(error, edges[me]) if own_mistake else refused_by("some rank")
                failure = failure or own
                refusals = refusals or [me]  # what comes next is its consequence
        key = self._key(seed, step, n + 1, bucket)
        wrong = encode_or_refuse(c, mine, key, means[me], edges[me])
        if wrong is not None and not refusals:
            failure = failure or wrong
        others = {j: means[j] for j in inbox}
        # The tag serves again: messages of one rank to another do not overtake each other.
        yield comm.exchange(means[me], others, tag)
        for j, payload in means.items():
            if self._check(payload, j, bucket, step):
                failure = failure or refused_by("some rank")
            with self._naming({j: payload}, shards[j], bucket, step):
                c.decode(payload, shards[j])
        return failure


def sharded_rounds(
    c: Compressor, numel: int, ranks: range, me: int, inner: Sequence[Round] = ()
) -> list[Round]:
    """Return what ShardedMean sends among these ranks, of which this is number `me`.

    Most shards are equally long, so the cost does not grow with the ranks.
    """
    n = len(ranks)
    mine, longest = (shard_length(numel, n, j) for j in (me, 0))
    full, rest = divmod(numel, max(1, longest))  # the shards behind these are empty
    counted = {longest: full, rest: 1}
    parts = sum(count * message_nbytes(c, d) for d, count in counted.items() if d)
    parts += (n - full - (rest > 0)) * message_nbytes(c, 0)
    first = Round(
        ranks, parts - message_nbytes(c, mine), encoded=4 * (numel - mine), decoded=4 * mine * n
    )
    last = Round(ranks, (n - 1) * message_nbytes(c, mine), encoded=4 * mine, decoded=4 * numel)
    return [first, *inner, last]
