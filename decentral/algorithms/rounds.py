"""What an algorithm sends in a step, on paper: for predictions, which need no ranks to talk to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..communicators.base import all_reduce_nbytes
from ..compressors.base import Compressor
from ..payload import HEADER_NBYTES

SUMS = ("ring", "tree")
_SAMPLE = 1 << 16  # coordinates, to estimate the length of a message that varies


class Place(NamedTuple):
    """One rank of a job: `rank` of `size`, which lie side by side on hosts of `per_host` each.

    `sums` says how vectors are added up: "ring", as we do it, or "tree", as others do.
    """

    size: int
    rank: int = 0
    per_host: int = 1
    sums: str = "ring"

    @property
    def host(self) -> int:
        """The number of its host."""
        return self.rank // self.per_host

    @property
    def local(self) -> range:
        """The ranks on its host."""
        first = self.host * self.per_host
        return range(first, min(self.size, first + self.per_host))

    @property
    def across(self) -> range:
        """The ranks with its place on all hosts."""
        return range(self.rank % self.per_host, self.size, self.per_host)

    @property
    def even(self) -> bool:
        """Whether there are several hosts, each with as many ranks, which are several."""
        return 1 < self.per_host < self.size and self.size % self.per_host == 0


class Round(NamedTuple):
    """One exchange of a bucket, as one rank sees it.

    `targets` are whom it sends `nbytes` altogether, equally; itself among them does not count.
    `hops` messages come one after the other. `encoded`, `decoded` and `added` are bytes of float32
    that it encodes before, and decodes, or adds, after.
    """

    targets: Sequence[int]
    nbytes: int
    hops: int = 1
    encoded: int = 0
    decoded: int = 0
    added: int = 0


def message_nbytes(compressor: Compressor, numel: int) -> int:
    """Return the size of a message with its header; of a Gaussian vector's where it varies."""
    if compressor.fixed_length:
        return HEADER_NBYTES + compressor.body_nbytes(numel)
    sample = min(numel, _SAMPLE)
    estimate = _sampled_body(compressor, sample) * numel / max(1, sample)
    return HEADER_NBYTES + min(round(estimate), compressor.body_nbytes(numel))


@functools.lru_cache(maxsize=64)
def _sampled_body(compressor: Compressor, numel: int) -> int:
    x = np.random.default_rng(0).standard_normal(numel).astype(np.float32)
    return compressor.fresh().encode(x, (0, 0, 0, 0)).nbytes - HEADER_NBYTES


def summed(numel: int, nbytes: int, place: Place) -> Round:
    """Return an all-reduce of a vector of so many bytes as one round.

    A ring: 2 (n - 1) / n of the vector, in 2 (n - 1) hops (communicators/ring.py). A tree: two
    binary trees, of which each reduces and broadcasts half of the vector, so that every rank sends
    it twice, in 2 log2 n hops, pipelined (Sanders, Speck, Traff: "Two-tree algorithms for full
    bandwidth broadcast, reduction and scan", Parallel Computing 35, 2009).
    """
    n, rank = place.size, place.rank
    if place.sums == "tree":
        sent, hops = 2 * nbytes if n > 1 else 0, 2 * (n - 1).bit_length()
    else:
        sent, hops = all_reduce_nbytes(nbytes, n), 2 * (n - 1)
    return Round(((rank + 1) % n,), sent, hops, added=4 * numel)
