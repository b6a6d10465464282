"""The static exponential graph: each rank sends to those 1, 2, 4, 8, ... ranks on."""

from __future__ import annotations

from collections.abc import Iterator

from decentral_topologies.graph import Topology


class Exponential(Topology):
    """Rank i sends to i + 2^k mod size for every 2^k < size: all weights 1/(1 + ceil(log2 size)).

    It is doubly stochastic, and its gap is 2/(1 + log2 size) at powers of two: B. Ying et al.,
    "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021,
    Proposition 1.
    """

    name = "exponential"
    directed = True

    def _hops(self) -> Iterator[int]:
        return (1 << k for k in range((self.size - 1).bit_length()))

    def _adjacent(self, rank: int, step: int) -> Iterator[int]:
        return ((rank + hop) % self.size for hop in self._hops())

    def _sources(self, rank: int, step: int) -> Iterator[int]:
        return ((rank - hop) % self.size for hop in self._hops())

    def is_doubly_stochastic(self) -> bool:
        """Tell that it is, without a look: every rank sends, and receives, along the same hops."""
        return True
