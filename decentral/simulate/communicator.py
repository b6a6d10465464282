"""The communicator of ranks that take turns in one thread, and the turns."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from ..communicators.base import Communicator, Maximum, Pending, Traffic, all_reduce_nbytes
from ..communicators.watch import Watch
from ..payload import Payload, Wire

T = TypeVar("T")


def take_turns(tasks: Sequence[Generator[Pending, None, T]]) -> list[T]:
    """Run a task of every rank, from yield to yield by turns, and return what they return, by rank.

    Raises:
        RuntimeError: those that are left wait for what none of them will send.
    """
    results: list[Any] = [None] * len(tasks)
    left: dict[int, Pending | None] = dict.fromkeys(range(len(tasks)))
    while left:
        moved = False
        for rank, pending in list(left.items()):
            if pending is not None:
                pending.poll()
                if not pending.complete:
                    continue
            moved = True
            try:
                left[rank] = next(tasks[rank])
            except StopIteration as stop:
                results[rank] = stop.value
                del left[rank]
        if not moved:
            some = ", ".join(map(str, list(left)[:8]))
            raise RuntimeError(
                f"simulation: rank {some} of {len(tasks)} wait for messages that no rank sends; "
                "expected every rank to send what its peers receive. Look at the topology's "
                "neighbors, or at the algorithm's exchanges"
            )
    return results


class _Collective:
    """An operation of all ranks; the last one that joins does it."""

    def __init__(self, size: int, combine: Callable[[list[Any]], None]) -> None:
        self._parts: list[Any] = [None] * size
        self._missing, self._combine = size, combine

    @property
    def complete(self) -> bool:
        """Whether all ranks have joined."""
        return self._missing == 0

    def poll(self) -> bool:
        """Return False: it goes no further."""
        return False

    def wait(self) -> None:
        """See Pending; one thread cannot wait for another rank."""
        if not self.complete:
            _cannot_wait("Pending.wait()")

    def join(self, rank: int, part: Any) -> None:
        self._parts[rank] = part
        self._missing -= 1
        if self.complete:
            self._combine(self._parts)
            self._parts = []


class World:
    """What the ranks have in common: mailboxes by (source, target, tag), and collectives."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hosts = tuple(range(size))  # one object for all: it is as long as there are ranks
        self.boxes: defaultdict[tuple[int, int, int], deque[npt.NDArray[np.uint8]]]
        self.boxes = defaultdict(deque)
        self._collectives: dict[int, _Collective] = {}

    def collective(
        self, number: int, rank: int, part: Any, combine: Callable[[list[Any]], None]
    ) -> _Collective:
        """Join the operation of that number in the order of each rank's."""
        found = self._collectives.setdefault(number, _Collective(self.size, combine))
        found.join(rank, part)
        if found.complete:
            del self._collectives[number]
        return found


class _Maximum(Maximum):
    def wait(self) -> None:
        """See Pending; one thread cannot wait for another rank."""
        if not self.complete:
            _cannot_wait("Pending.wait()")


class _Receipt:
    """The messages that an exchange waits for."""

    def __init__(self, world: World, rank: int, receive: Mapping[int, Payload], tag: int) -> None:
        boxes = world.boxes
        self._left = [(boxes[source, rank, tag], p) for source, p in receive.items()]

    @property
    def complete(self) -> bool:
        """Whether every message is here, as far as poll() knows."""
        return not self._left

    def poll(self) -> bool:
        """Take the messages that are here; return whether there was one."""
        before = len(self._left)
        self._left = [pair for pair in self._left if not _land(*pair)]
        return len(self._left) < before

    def wait(self) -> None:
        """See Pending; one thread cannot wait for another rank."""
        self.poll()
        if self._left:
            _cannot_wait("Pending.wait()")


def _land(box: deque[npt.NDArray[np.uint8]], payload: Payload) -> bool:
    """Take a message, if there is one, into the payload."""
    if not box:
        return False
    data = box.popleft()
    payload.resize(data.size)  # raises if it does not fit
    buffer = payload.wire.incoming(False)
    payload.wire.wait()
    buffer[: data.size] = data
    payload.landed(False, data.size)
    return True


def _sum(wires: Iterable[Wire], mean: bool) -> None:
    """Add up in the order of ranks, as LocalCommunicator does."""
    arrays = []
    for wire in wires:
        arrays.append(wire.outgoing(False))
        wire.wait()
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    if mean:
        total /= len(arrays)
    for wire in wires:
        wire.incoming(False)[:] = total
        wire.landed(False)


def _largest(parts: Sequence[tuple[Maximum, float]]) -> None:
    top = max(value for _, value in parts)
    for maximum, _ in parts:
        maximum.value = top


def _cannot_wait(what: str) -> NoReturn:
    raise NotImplementedError(
        f"simulation: {what} waits for other ranks, but all of them are one thread: expected tasks "
        "that yield what they wait for. Exchange 'two-level' is not simulated; use "
        "'reduce-scatter' or 'all-gather', or run_local(), whose ranks are threads"
    )


class SimulatedCommunicator(Communicator):
    """One rank of a World, each on a host of its own."""

    threaded = False

    def __init__(self, world: World, rank: int) -> None:
        self._world, self._number = world, 0
        self.traffic, self.watch = Traffic(), Watch()
        self.rank, self.size, self.hosts = rank, world.size, world.hosts
        self.local_rank, self.local_size = 0, 1

    def exchange(
        self, send: Payload | Mapping[int, Payload], receive: Mapping[int, Payload], tag: int
    ) -> _Receipt:
        """See Communicator.exchange."""
        targets = dict.fromkeys(receive, send) if isinstance(send, Payload) else send
        copies: dict[int, npt.NDArray[np.uint8]] = {}  # a rank may overwrite what others have yet
        for target, payload in targets.items():
            data = copies.get(id(payload))
            if data is None:
                buffer = payload.wire.outgoing(False, payload.nbytes)
                payload.wire.wait()
                data = copies[id(payload)] = np.array(buffer)
            self.traffic.add(data.nbytes)
            self._world.boxes[self.rank, target, tag].append(data)
        return _Receipt(self._world, self.rank, receive, tag)

    def _join(self, part: Any, combine: Callable[[list[Any]], None]) -> _Collective:
        self._number += 1
        return self._world.collective(self._number, self.rank, part, combine)

    def all_reduce(self, vector: Any, mean: bool = False) -> _Collective:
        """See Communicator.all_reduce; ranks are added in order."""
        wire = Wire(vector)
        self.traffic.add(all_reduce_nbytes(wire.array.nbytes, self.size))
        return self._join(wire, lambda wires: _sum(wires, mean))

    def maximum(self, value: float) -> Maximum:
        """See Communicator.maximum."""
        result = _Maximum()
        self.traffic.add(all_reduce_nbytes(4, self.size))
        self._join((result, float(np.float32(value))), _largest)
        return result

    def split(self, color: int) -> NoReturn:
        """Refuse: see NotImplementedError's message."""
        _cannot_wait("split()")

    def all_reduce_max(self, value: float) -> NoReturn:
        """Refuse: maximum() is what a task can yield."""
        _cannot_wait("all_reduce_max()")

    def broadcast(self, data: npt.NDArray[np.uint8], root: int = 0) -> NoReturn:
        """Refuse: workers start equal."""
        _cannot_wait("broadcast()")

    def all_gather_object(self, value: Any) -> NoReturn:
        """Refuse."""
        _cannot_wait("all_gather_object()")

    def barrier(self) -> NoReturn:
        """Refuse."""
        _cannot_wait("barrier()")
