"""Seconds per step from a model of links and machines: on paper, for any number of workers.

An algorithm says what it sends (Algorithm.rounds), with the sizes of its compressor's real
messages; docs/predict.md has the formulas. What overlaps with what is ours, as decentral's reducer
and mixer do it. All of it is sums and maxima of durations, so that nothing that gets faster makes a
step slower.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..algorithms import Algorithm, GossipAlgorithm
from ..algorithms.rounds import SUMS, Place, Round
from .links import Links, check, check_not_negative, others
from .workload import Workload

_EVERY_HOST, _SOME_HOSTS = 16, 7  # up to so many hosts, all are looked at; else so many
# A gossip step in vectors that are copied: the copy before the local step, and the formula, which
# reads and writes five where a copy does two.
_GOSSIP_COPIES = 3.5


@dataclass(frozen=True)
class Machine:
    """What a worker has to compute with.

    Args:
        compute_s: seconds of forward, backward and the optimizer's step.
        forward, optimizer: shares of it; backward has the rest.
        cores: of this worker. With 2 or more, coding and sending have a core of their own; with
            fewer they take their time from the computation.
        encode_bytes_per_s, decode_bytes_per_s: bytes of float32 that are encoded, or decoded and
            accumulated, per second (measure_coding()).
        copy_bytes_per_s: bytes of float32 that are copied, or added, per second.
        network_s_per_byte: processor seconds per byte that is sent, and another received.
        message_s: processor seconds per message.

    Raises:
        ValueError: a value is out of range.
    """

    compute_s: float
    forward: float = 0.3
    optimizer: float = 0.1
    cores: float = 2.0
    encode_bytes_per_s: float = 10e9
    decode_bytes_per_s: float = 15e9
    copy_bytes_per_s: float = 8e9
    network_s_per_byte: float = 0.5e-9
    message_s: float = 10e-6

    def __post_init__(self) -> None:
        check("Machine", **{k: v for k, v in vars(self).items() if k == "cores" or "per_s" in k})
        not_negative = ("compute_s", "forward", "optimizer", "message_s", "network_s_per_byte")
        check_not_negative("Machine", **{k: getattr(self, k) for k in not_negative})
        if self.forward + self.optimizer > 1:
            raise ValueError(
                f"Machine: forward and optimizer are shares of compute_s, expected a sum of at "
                f"most 1, got {self.forward} + {self.optimizer}"
            )

    def shared(self, workers: int, cores: float) -> Machine:
        """Return this machine as one of so many workers sees it that share so many cores.

        All of them work at the same time. That they share the memory's bandwidth, too, is not in
        it: measure with all of them at work, where that counts.
        """
        check("Machine.shared", workers=workers, cores=cores)
        each = cores / workers
        slower = max(1.0, 1 / each)
        slow = ("compute_s", "network_s_per_byte", "message_s")
        fast = ("encode_bytes_per_s", "decode_bytes_per_s", "copy_bytes_per_s")
        seconds = {k: getattr(self, k) * slower for k in slow}
        rates = {k: getattr(self, k) / slower for k in fast}
        return dataclasses.replace(self, cores=each, **seconds, **rates)


class StepTime(NamedTuple):
    """Seconds of a step, and where they come from, of the worker that takes longest.

    `coding` is processor time for messages, sending included, and `wire` what its interface needs;
    both may be hidden. `waiting` is what the step takes longer than computing alone. `bytes_sent`
    are a worker's, the most of any that was looked at.
    """

    total: float
    compute: float
    coding: float
    wire: float
    waiting: float
    bytes_sent: float


def predict(
    algorithm: Algorithm,
    size: int,
    model: int | nn.Module | Workload,
    links: Links,
    machine: Machine,
    local_steps: int = 1,
    sums: str = "ring",
) -> StepTime:
    """Predict the seconds per step of `size` workers, when all steps are alike.

    Args:
        algorithm: an object of decentral.algorithms, which belongs to no optimizer.
        size: workers.
        model: whose parameters travel, or their number, or its buckets.
        links: the network.
        machine: of every worker.
        local_steps: steps without an exchange, and one with.
        sums: how vectors are added up: "ring", ours, or "tree", two binary trees.

    Raises:
        ValueError: a value is out of range, or the algorithm is not for so many workers.
    """
    if size < 1 or local_steps < 1 or sums not in SUMS:
        raise ValueError(
            f"predict: expected size and local_steps of at least 1 and sums one of "
            f"{', '.join(SUMS)}, got {size}, {local_steps} and {sums!r}"
        )
    workload = model if isinstance(model, Workload) else Workload.of(model)
    found = []
    for rank in _representatives(size, links):
        place = Place(size, rank, links.per_host, sums)
        buckets, nbytes = _plan(algorithm, workload, place, links, machine)
        if isinstance(algorithm, GossipAlgorithm):
            found.append(_gossip(buckets, nbytes, workload, machine, local_steps))
        else:
            found.append(_averaging(buckets, nbytes, workload, machine, local_steps))
    longest = max(found, key=lambda step: step.total)
    return longest._replace(bytes_sent=max(step.bytes_sent for step in found))


def bytes_sent(algorithm: Algorithm, place: Place, model: int | nn.Module | Workload) -> int:
    """Return what a rank sends in a step that is not the first; equals stats()'s bytes_sent."""
    workload = model if isinstance(model, Workload) else Workload.of(model)
    return sum(r.nbytes for rounds in algorithm.rounds(workload.numels, place) for r in rounds)


def _representatives(size: int, links: Links) -> list[int]:
    """Return the first rank of every host, or of some, and of those with a link of their own."""
    hosts = -(-size // links.per_host)
    chosen = set(range(hosts))
    if hosts > _EVERY_HOST:
        chosen = {i * (hosts - 1) // (_SOME_HOSTS - 1) for i in range(_SOME_HOSTS)}
        chosen |= {a for a, _ in links.exceptions if a < hosts}
    return [h * links.per_host for h in sorted(chosen)]


class _Bucket(NamedTuple):
    """A bucket's seconds: the wire, latencies, and processor time.

    That is `before` the wire, `sending` while it is busy, and `after` it.
    """

    before: float
    wire: float
    delay: float
    sending: float
    after: float

    @property
    def coding(self) -> float:
        """All processor time."""
        return self.before + self.sending + self.after


def _plan(
    algorithm: Algorithm, workload: Workload, place: Place, links: Links, machine: Machine
) -> tuple[list[_Bucket], int]:
    """Return the buckets' seconds at this rank, and what it sends."""
    plans = [algorithm.rounds(workload.numels, place._replace(rank=r)) for r in place.local]
    mine = plans[place.rank - place.local[0]]
    buckets = [
        _bucket(mine[b], [plan[b] for plan in plans], place, links, machine)
        for b in range(len(workload.numels))
    ]
    return buckets, sum(r.nbytes for rounds in mine for r in rounds)


def _bucket(
    mine: list[Round], everyone: list[list[Round]], place: Place, links: Links, machine: Machine
) -> _Bucket:
    encoding = [r.encoded / machine.encode_bytes_per_s for r in mine]
    decoded = sum(r.decoded for r in mine) / machine.decode_bytes_per_s
    added = sum(r.added for r in mine) / machine.copy_bytes_per_s
    messages = sum(max(r.hops, others(r.targets, place.rank)) for r in mine)
    return _Bucket(
        before=sum(encoding[:1]),
        wire=links.wire(place, everyone),
        delay=sum(links.delay(place, r) for r in mine),
        sending=sum(r.nbytes for r in mine) * machine.network_s_per_byte,
        after=sum(encoding[1:]) + decoded + added + messages * machine.message_s,
    )


def _averaging(
    buckets: list[_Bucket], nbytes: int, workload: Workload, machine: Machine, every: int
) -> StepTime:
    """Gradients: a bucket is encoded when backward has filled it, and the wire is free again.

    The step ends when the last bucket is decoded. Without a core to spare, backward is later by
    what the buckets before have taken of the processor.
    """
    compute, spare = machine.compute_s, machine.cores >= 2
    forward, last = compute * machine.forward, compute * machine.optimizer
    encoded = arrived = done = taken = 0.0
    for b, share in zip(buckets, workload.ready, strict=True):
        ready = forward + (compute - last - forward) * share + (0.0 if spare else taken)
        taken += b.coding
        encoded = max(encoded, ready) + b.before
        arrived = max(arrived, encoded) + b.wire
        done = max(done, arrived + b.delay + b.after)
    busy = max(compute - last, taken) if spare else compute - last + taken
    total = (max(done, busy) + last + (every - 1) * compute) / every
    wire = sum(b.wire for b in buckets)
    return _step_time(total, compute, taken / every, wire / every, nbytes / every)


def _gossip(
    buckets: list[_Bucket], nbytes: int, workload: Workload, machine: Machine, every: int
) -> StepTime:
    """Gossip: messages of all buckets share the wire during the next forward and backward pass.

    They arrive at about the same time, at its end, and are mixed and encoded then.
    """
    compute = machine.compute_s * every
    copies = _GOSSIP_COPIES * 4 * workload.numel / machine.copy_bytes_per_s if nbytes else 0.0
    mixing, after = copies + sum(b.before for b in buckets), sum(b.after for b in buckets)
    background = after + sum(b.sending for b in buckets)
    wire, delay = sum(b.wire for b in buckets), max((b.delay for b in buckets), default=0.0)
    busy = max(compute, background) if machine.cores >= 2 else compute + background
    total = (max(busy, wire + delay + after) + mixing) / every
    coding = (mixing + background) / every
    return _step_time(total, machine.compute_s, coding, wire / every, nbytes / every)


def _step_time(total: float, compute: float, coding: float, wire: float, nbytes: float) -> StepTime:
    return StepTime(total, compute, coding, wire, total - compute, nbytes)
