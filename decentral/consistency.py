"""Whether ranks still have in common what they should have: equal replicas, or shared estimates.

A lost message, a flipped bit or a parameter changed by hand on one rank parts ranks for good, and
nothing but the result would tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .algorithms import GossipAlgorithm
from .algorithms.means import encode_or_refuse
from .buckets import Buckets, Flat
from .communicators.base import Communicator
from .compressors.base import lossless
from .mixer import Mixer
from .startup import as_bytes

# Estimates and sums of t steps in float32 part by about sqrt(t) roundings of the largest estimate,
# 1.6 sqrt(t) at most in what was tried (random, constant and converging gradients, 2,000 steps).
_DRIFT, _ROUNDING = 16.0, 2.0**-24
_HUGE = 1e300  # how far off an infinite estimate of a neighbor's is; one's own is further


class InconsistentError(RuntimeError):
    """Ranks differ in what they should have in common."""


class Replicas:
    """Compares parameters that all ranks should have equal, bit for bit, by checksums."""

    def __init__(self, comm: Communicator, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._comm, self._named = comm, list(named)

    def check(self, step: int, compared: bool = True) -> None:
        """Compare; a rank that is behind the others takes part without being `compared`.

        Raises:
            InconsistentError: on all ranks, naming those that differ from most, and a parameter.
        """
        sums = [blake2b(as_bytes(p).numpy().data, digest_size=16).digest() for _, p in self._named]
        mine = blake2b(b"".join(sums), digest_size=16).digest() if compared else None
        everyone = self._comm.all_gather_object(mine)
        present = {rank: value for rank, value in enumerate(everyone) if value is not None}
        if len(set(present.values())) < 2:
            return
        model, odd = _majority(present)
        tables = self._comm.all_gather_object(sums)
        differing = (
            name
            for i, (name, _) in enumerate(self._named)
            if any(tables[rank][i] != tables[model][i] for rank in odd)
        )
        raise InconsistentError(
            f"after step {step} the parameters of {_ranks(odd)} differ from those of rank {model}, "
            f"expected the same bits; the first that does is {next(differing)!r}. Something has "
            "changed them on one rank only: the script, or faulty memory. Resume from a checkpoint"
        )


def _majority(values: Mapping[int, bytes]) -> tuple[int, list[int]]:
    """Return a rank to go by, and those that differ: of most ranks, with a tie the first one."""
    most = Counter(values.values()).most_common(2)
    first = next(iter(values))
    right = values[first] if most[0][1] == most[1][1] else most[0][0]
    odd = [rank for rank, value in values.items() if value != right]
    return next(rank for rank, value in values.items() if value == right), odd


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


class _Off(NamedTuple):
    """How far a rank's sum is from its neighbors' estimates: bucket, coordinate, and how far."""

    bucket: int
    coordinate: int
    distance: float
    allowed: float


class Estimates:
    """Compares S_i = sum_j W_ij (xt_j - xt_i) with what the neighbors send of their xt_j."""

    def __init__(
        self, algorithm: GossipAlgorithm, comm: Communicator, buckets: Buckets, parameters: Flat
    ) -> None:
        self._algorithm, self._comm, self._buckets = algorithm, comm, buckets
        self._compressor = lossless()
        # The largest estimates that were seen, since what was rounded in the past stays.
        self._largest = [float(b.of(parameters).abs().max()) for b in buckets]

    def check(self, t: int, mixer: Mixer) -> None:
        """Compare after exchange t, bucket by bucket, so that little memory is needed.

        Raises:
            InconsistentError: on all ranks, naming those whose sum is the furthest off, and a
                parameter.
        """
        estimates = self._algorithm.estimates(mixer.iterate())
        if not estimates:
            return
        mixer.settle()
        tolerance = _DRIFT * math.sqrt(t) * _ROUNDING
        offs = [self._off(b, estimate, t, tolerance) for b, estimate in enumerate(estimates)]
        mine = next((off for off in offs if off is not None), None)
        everyone = self._comm.all_gather_object(mine)
        found = {rank: off for rank, off in enumerate(everyone) if off is not None}
        if found:
            raise InconsistentError(self._say(found, t))

    def _off(self, b: int, estimate: Tensor, t: int, tolerance: float) -> _Off | None:
        """Return where the sum of bucket b is off by more than rounding explains."""
        c, rank, row = self._compressor, self._comm.rank, dict(self._algorithm.W(t))
        S, W_ii = self._algorithm.S[b], row.pop(rank)
        own = c.new_payload(len(estimate), like=estimate)
        received = {j: c.new_payload(len(estimate), like=estimate) for j in row}
        failure = encode_or_refuse(c, estimate, (0, t, rank, b), own)
        self._comm.exchange(own, received, tag=b % 2).wait()
        expected, largest = (W_ii - 1) * estimate.double(), estimate.abs().max()
        for j, W_ij in row.items():
            theirs = c.decode(received[j])
            expected.add_(theirs, alpha=W_ij)
            largest = torch.maximum(largest, theirs.abs().max())
        size = max(self._largest[b], float(largest + S.abs().max()))
        allowed = size * tolerance
        distances = (S - expected).abs_().nan_to_num_(nan=_HUGE, posinf=_HUGE)
        where = int(distances.argmax())
        distance = float(distances[where])
        if distance <= allowed < math.inf:
            self._largest[b] = size
            return None
        own_mistake = failure is not None or not S.isfinite().all()
        return _Off(b, where, math.inf if own_mistake else distance, allowed)

    def _say(self, found: Mapping[int, _Off], t: int) -> str:
        """Name the ranks that are the furthest off: a neighbor sees but its share of a mistake."""
        b = min(off.bucket for off in found.values())
        there = {rank: off for rank, off in found.items() if off.bucket == b}
        most = max(off.distance for off in there.values())
        worst = [rank for rank, off in there.items() if off.distance >= 0.99 * most]
        off = there[worst[0]]
        name = self._buckets[b].name_at(off.coordinate)
        return (
            f"after exchange {t} the estimate of {_ranks(worst)} that its neighbors share, or its "
            f"sum of theirs, is off by {off.distance:.3g} in parameter {name!r} (bucket {b}), "
            f"expected at most {off.allowed:.3g}: a message was lost, or a number changed by the "
            "script or faulty memory. Resume from a checkpoint"
        )
