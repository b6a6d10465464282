"""The network on paper: how long what a host sends takes, and where links differ.

Bandwidth and latency as in LogGP: Alexandrov, Ionescu, Schauser, Scheiman: "LogGP: Incorporating
Long Messages into the LogP Model", SPAA 1995.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from ..algorithms.rounds import Place, Round


def check(who: str, least: float = 0.0, **values: float) -> None:
    """Raise ValueError unless every value is more than `least`."""
    for name, value in values.items():
        if not value > least:
            raise ValueError(
                f"{who}: {name} must be {'positive' if least == 0 else 'at least 0'}, got "
                f"{value!r}; docs/predict.md says what it means"
            )


def check_not_negative(who: str, **values: float) -> None:
    """Raise ValueError unless every value is 0 or more."""
    check(who, -1e-300, **values)


class Link(NamedTuple):
    """What connects two hosts: bits per second, and seconds."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Links:
    """The network: every host has one full-duplex interface, which its flows share.

    Args:
        bandwidth: bits per second of an interface.
        latency: seconds from one host to another.
        goodput: share of the bandwidth that is payload; .955 was measured with TCP and packets of
            1,500 bytes, of which headers take .05.
        fairness: share of it that is left where a host sends to several others at once; TCP does
            not divide the interfaces equally, and the slowest connection counts.
        exceptions: links of pairs of hosts (a, b) that are worse, in both directions.
        per_host: ranks on a host.
        local_bandwidth: bits per second between ranks of a host, in memory.

    Raises:
        ValueError: a value is out of range.
    """

    bandwidth: float = 1e9
    latency: float = 50e-6
    goodput: float = 0.955
    fairness: float = 0.9
    exceptions: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    per_host: int = 1
    local_bandwidth: float = 4e10

    def __post_init__(self) -> None:
        names = ("bandwidth", "goodput", "fairness", "per_host", "local_bandwidth")
        check("Links", **{name: getattr(self, name) for name in names})
        check_not_negative("Links", latency=self.latency)
        both = {}
        for (a, b), link in self.exceptions.items():
            who, found = f"Links, hosts {a} and {b}", Link(*link)
            check(who, bandwidth=found.bandwidth)
            check_not_negative(who, latency=found.latency)
            both[a, b] = both[b, a] = found
        object.__setattr__(self, "exceptions", MappingProxyType(both))

    def wire(self, place: Place, plans: Iterable[Sequence[Round]]) -> float:
        """Return how long a host's links take for what its ranks send of a bucket; rank by rank.

        The interface takes the sum of what leaves the host, and a slower link its part of it.
        """
        leaving = inside = 0.0
        slow = dict.fromkeys((b for a, b in self.exceptions if a == place.host), 0.0)
        for rank, rounds in zip(place.local, plans, strict=True):
            for r in rounds:
                each = r.nbytes / max(1, others(r.targets, rank))
                near = each * _on_host(r.targets, place.host, self.per_host, rank)
                inside += near / len(place.local)
                several = others(r.targets, rank) > 1
                leaving += (r.nbytes - near) / (self.fairness if several else 1.0)
                for host in slow:
                    slow[host] += each * _on_host(r.targets, host, self.per_host, rank)
        links = [leaving / self.bandwidth]
        links += [n / self.exceptions[place.host, host].bandwidth for host, n in slow.items()]
        return 8 * (max(links) / self.goodput + inside / self.local_bandwidth)

    def delay(self, place: Place, r: Round) -> float:
        """Return the latencies of a round: of every hop, and once around more where one is slow."""
        targets = others(r.targets, place.rank)
        if targets == _on_host(r.targets, place.host, self.per_host, place.rank):
            return 0.0
        slow = [
            link.latency - self.latency
            for (a, b), link in self.exceptions.items()
            if a == place.host and _on_host(r.targets, b, self.per_host, place.rank)
        ]
        return r.hops * self.latency + -(-r.hops // place.size) * max(0.0, *slow, 0.0)


def others(targets: Sequence[int], rank: int) -> int:
    """Return how many targets there are besides the rank itself."""
    return len(targets) - (rank in targets)


def _on_host(targets: Sequence[int], host: int, per_host: int, rank: int) -> int:
    ranks = range(host * per_host, (host + 1) * per_host)
    return sum(r in targets for r in ranks if r != rank)
