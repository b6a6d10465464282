"""What a rank has sent, and for what; and the figures of stats()."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .algorithms import Algorithm
from .buckets import Buckets
from .communicators.base import Communicator
from .engine import Engine


class Ledger:
    """Bytes of steps apart from those of start-up and averaging, and the last known distance."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._bytes = {"startup": comm.bytes_sent, "averaging": 0, "recovery": 0, "resumed": 0}
        self.consensus_distance = 0.0

    @contextmanager
    def counting(self, what: str, comm: Communicator | None = None) -> Iterator[None]:
        """Count the bytes sent inside as start-up's or averaging's, not steps'.

        Over `comm`, where a step's messages are under way meanwhile, else over all.
        """
        comm = self.comm if comm is None else comm
        before = comm.bytes_sent
        try:
            yield
        finally:
            self._bytes[what] += comm.bytes_sent - before

    @property
    def bytes_sent(self) -> int:
        """The bytes of all steps, also of those before a checkpoint that was loaded."""
        return self.comm.bytes_sent - sum(self._bytes.values())

    def resume(self, bytes_sent: int) -> None:
        """Go on from so many bytes of steps, whatever was sent until now."""
        self._bytes["resumed"] += self.bytes_sent - bytes_sent

    def stats(
        self, steps: int, buckets: Buckets, algorithm: Algorithm, engine: Engine
    ) -> dict[str, Any]:
        """Return the figures; see DistributedOptimizer.stats."""
        engine.wait_for_begin()
        numel = sum(b.numel for b in buckets)
        message = sum(map(algorithm.message_nbytes, range(len(buckets))))
        communication, waited = engine.communication_s, engine.waited_s
        return {
            "steps": steps,
            "parameters": numel,
            "bytes_sent": self.bytes_sent,
            "bytes_sent_startup": self._bytes["startup"],
            "bytes_sent_averaging": self._bytes["averaging"],
            "bytes_sent_recovery": self._bytes["recovery"],
            "bits_per_parameter": 8 * message / max(1, numel),
            "consensus_distance": self.consensus_distance,
            "communication_s": communication,
            "waited_s": waited,
            "hidden": max(0.0, 1 - waited / communication) if communication > 0 else 0.0,
            **algorithm.stats(),
        }
