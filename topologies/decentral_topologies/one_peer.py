"""The one-peer exponential graph: a single message a step, to a rank 1, 2, 4, 8, ... on in turn."""

from __future__ import annotations

from decentral_topologies.graph import Topology


class OnePeerExponential(Topology):
    """At step k rank i sends to i + 2^(k mod ceil(log2 size)) mod size; both weights are 1/2.

    At powers of two the log2(size) steps of a period give the exact average: B. Ying et al.,
    "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021,
    Lemma 1.
    """

    name = "one-peer-exponential"
    directed = True
    time_varying = True

    @property
    def period(self) -> int:
        """Return ceil(log2 size), at least 1."""
        return max(1, (self.size - 1).bit_length())

    def _adjacent(self, rank: int, step: int) -> tuple[int]:
        return ((rank + (1 << step)) % self.size,)

    def _sources(self, rank: int, step: int) -> tuple[int]:
        return ((rank - (1 << step)) % self.size,)
