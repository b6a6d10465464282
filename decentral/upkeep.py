"""What all ranks do together after so many steps, beside training."""

from __future__ import annotations

from collections.abc import Callable

from .algorithms import GossipAlgorithm
from .buckets import Buckets
from .communicators.base import Communicator
from .consensus import Consensus
from .consistency import Estimates
from .ledger import Ledger
from .mixer import Every, Mixer

Due = Callable[[int], bool]


class Upkeep:
    """Acts in turn, each after the steps at which it is due; both are given the step's number."""

    def __init__(self, *acts: tuple[Due, Callable[[int], None]]) -> None:
        self._acts = acts

    def after(self, step: int) -> None:
        """Do what is due after a step."""
        for due, act in self._acts:
            if due(step):
                act(step)


def upkeep_of_gossip(
    every: Every,
    ledger: Ledger,
    aside: Communicator,
    mixer: Mixer,
    algorithm: GossipAlgorithm,
    buckets: Buckets,
    seed: int,
) -> Upkeep:
    """Compare estimates, estimate how far ranks are apart, and average their parameters.

    Over `aside`, a communicator of its own, while a step's messages are under way.
    """
    consensus = Consensus(aside, buckets, seed)
    estimates = Estimates(algorithm, aside, buckets, mixer.parameters())

    def check(step: int) -> None:
        with ledger.counting("averaging", aside):
            estimates.check(step // every.local_steps, mixer)

    def look(_: int) -> None:
        with ledger.counting("averaging", aside):
            ledger.consensus_distance = consensus.measure(mixer.parameters())

    def average(_: int) -> None:
        mixer.settle()
        with ledger.counting("averaging"):
            ledger.consensus_distance = mixer.average()

    return Upkeep((every.checks, check), (every.looks, look), (every.averages, average))
