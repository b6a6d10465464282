"""What moves bytes: ranks, hosts, exchanges. A communicator knows no codec."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..payload import Payload
from .speed import measure
from .watch import DEFAULT_TIMEOUT_S, Watch

# A pause is a part of what the wait has taken already, so that it makes it little longer, and no
# smaller one: waking up takes 45 to 110 us of processor time, half of that in a nap. Where
# nobody waits yet an eighth made ECD-PSGD's steps longer in three of three comparisons.
_PAUSE_MIN_S, _PAUSE_NO_HURRY_S, PAUSE_MAX_S = 100e-6, 2e-3, 30e-3
_PAUSE_PART, _PAUSE_PART_NO_HURRY = 1 / 8, 1 / 16
# Without hurry it is at least a part of what waits have usually taken: of 10.5 M parameters, a step
# of ECD-PSGD over 100 Mbit/s polls 165 times, for 318, and takes 20 to 50 ms less processor time.
_USUAL_PART, _USUAL_OVER = 1 / 8, 4


class Pending(Protocol):
    """An operation under way; the buffers it was given belong to it until it is complete.

    `missing`, where it has one, are the ranks whose messages have not come. `owner`, where
    it has one, is whose rest(bell, pauses, others) pauses until something may have moved.
    """

    @property
    def complete(self) -> bool:
        """Whether it is, as far as poll() knows."""

    def poll(self) -> bool:
        """Make progress with all operations of its communicator; return whether any went on."""

    def wait(self) -> None:
        """Return when the operation is complete."""


class Maximum:
    """The largest of the ranks' values: `value`, once it is complete."""

    def __init__(self, value: float | None = None) -> None:
        self.value = value

    @property
    def complete(self) -> bool:
        """Whether it is known."""
        return self.value is not None

    def poll(self) -> bool:
        """Return False: it goes no further."""
        return False

    def wait(self) -> None:
        """Return at once: where ranks wait for each other it is complete from the start."""


class Pauses(NamedTuple):
    """How long to pause before each look: a `part` of the wait, which began at `since`; seconds."""

    since: float
    least: float
    part: float
    most: float = PAUSE_MAX_S

    def next(self) -> float:
        """Return how long the pause is that begins now."""
        return min(max(self.least, (time.perf_counter() - self.since) * self.part), self.most)


Rest = Callable[[Pauses], object]


def sleeping(sleep: Callable[[float], object]) -> Rest:
    """Return what pauses once, by a sleep."""
    return lambda pauses: sleep(pauses.next())


class Backoff:
    """Pauses between two tests of what is under way: ever longer ones, after `spins` of none.

    Ranks that only spin starve the ranks that compute where there are more ranks than cores.
    """

    def __init__(self, spins: int = 0) -> None:
        self._spins, self._since = spins, 0.0
        self._usual_s, self._paused = 0.0, False  # what has nothing to wait for does not pause
        self.reset()

    def reset(self) -> None:
        """Begin again with short pauses, since something moved."""
        now = time.perf_counter()
        if self._paused:
            self._usual_s += (now - self._since - self._usual_s) / _USUAL_OVER
        self._left, self._since, self._paused = self._spins, now, False

    def pause(self, hurry: bool = True, rest: Rest | None = None) -> None:
        """Give the core away for a while, unless some spins are left.

        Without hurry for longer, by what waits have usually taken. `rest` takes the place of
        time's sleep, and may be more than one pause.
        """
        if hurry and self._left > 0:
            self._left -= 1
            return
        self._paused = True
        least, part = _PAUSE_MIN_S, _PAUSE_PART
        if not hurry:
            least = max(_PAUSE_NO_HURRY_S, self._usual_s * _USUAL_PART)
            part = _PAUSE_PART_NO_HURRY
        pauses = Pauses(self._since, least, part)
        time.sleep(pauses.next()) if rest is None else rest(pauses)


class Traffic:
    """The bytes that a rank has sent, over a communicator and all that were split from it."""

    def __init__(self, whole: Traffic | None = None) -> None:
        self.nbytes, self._whole, self._lock = 0, whole, threading.Lock()

    def add(self, nbytes: int) -> None:
        """Count bytes that are handed over."""
        with self._lock:
            self.nbytes += nbytes
        if self._whole is not None:
            self._whole.add(nbytes)


class Communicator(ABC):
    """`size` ranks, of which this is `rank`; all of them call the same methods in the same order.

    `hosts[r]` numbers the host of rank r; `local_rank` and `local_size` count within this host;
    `cores_per_rank` is this rank's share of the host's usable cores, at least 1. `device_direct`
    says whether device memory is handed over as it is (CUDA-aware MPI) or staged through pinned
    host memory, as it is before somebody has asked. `threaded` says whether two threads may call at
    once: operations that were begun may then be driven by one of them, whatever the other does.
    `survives` says whether the others can go on when a rank dies.
    `watch` bounds its waits.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    hosts: tuple[int, ...]
    cores_per_rank: int = 1
    device_direct: bool = False
    threaded: bool = True
    survives: bool = False
    spins: int = 0
    traffic: Traffic
    watch: Watch

    @property
    def bytes_sent(self) -> int:
        """What this rank handed over for sending since construction.

        A library's all-reduce counts as the bandwidth-optimal ring, 2 (n - 1) / n of the vector.
        """
        return self.traffic.nbytes

    def ask_for_device_direct(self, arrives: Callable[[], bool]) -> None:  # noqa: B027
        """Find out `device_direct`; for ranks with parameters on a GPU, all of which call it.

        arrives() tries, at some cost, whether device memory that is sent arrives.
        """

    def link_speed(self) -> float:
        """Return how many bits per second the slowest link between two hosts carries; measured.

        Equal on all ranks, all of which call it; inf where there is no such link.
        """
        return measure(self)

    @abstractmethod
    def split(self, color: int) -> Communicator:
        """Return a communicator of the ranks that give the same color, in the same order.

        What it sends counts as sent over this one too.
        """

    def survivors(self) -> Communicator:
        """Return a communicator of the ranks that live, in the same order; all of them must call.

        This one, and all that were split from it, are then of no use. Its traffic counts on.

        Raises:
            RuntimeError: a rank's death cannot be survived here.
        """
        raise RuntimeError(f"{type(self).__name__} cannot go on without a rank")

    @abstractmethod
    def exchange(
        self, send: Payload | Mapping[int, Payload], receive: Mapping[int, Payload], tag: int
    ) -> Pending:
        """Send payloads, and receive one from every rank in `receive`.

        `send` is one for all those ranks, or each target's own. Between two ranks, messages of a
        tag arrive in the order in which they were sent; tags are 0..32767.
        """

    @abstractmethod
    def all_reduce(self, vector: Any, mean: bool = False) -> Pending:
        """Replace a vector, an array or a tensor, by its sum over ranks, equal on all of them.

        float32[n], or its mean; int8[n] or int32[n], which must not overflow.
        """

    @abstractmethod
    def all_reduce_max(self, value: float) -> float:
        """Return the largest of the ranks' values, which are float32."""

    def maximum(self, value: float) -> Maximum:
        """Return all_reduce_max() as what a task can yield.

        A task that yields what is complete goes on at once, so that collective operations keep
        their order; where one thread is all ranks (decentral.simulate) it is completed by the last.
        """
        return Maximum(self.all_reduce_max(value))

    @abstractmethod
    def broadcast(self, data: npt.NDArray[np.uint8], root: int = 0) -> None:
        """Replace uint8[n] by the root's."""

    @abstractmethod
    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank; values are pickled."""

    @abstractmethod
    def barrier(self) -> None:
        """Return when every rank has called it."""

    def everyone_else(self) -> tuple[int, ...]:
        """Return all ranks but this one."""
        return tuple(r for r in range(self.size) if r != self.rank)

    def around(self) -> list[int]:
        """Return all ranks as a ring in which those of a host are neighbors."""
        return sorted(range(self.size), key=lambda r: (self.hosts[r], r))

    def first_on_each_host(self, action: Callable[[], None]) -> None:
        """Call action() on one rank of every host, and then on the others.

        For work whose result is cached on disk: eight ranks that compile the same kernels at once
        on two cores take eight times as long. The others wait for it as long as is usual, even if
        they are to be less patient from then on.
        """
        if self.local_rank == 0:
            action()
        timeout = self.watch.timeout
        self.watch.timeout = max(timeout, DEFAULT_TIMEOUT_S)
        try:
            self.barrier()
        finally:
            self.watch.timeout = timeout
        if self.local_rank != 0:
            action()


def messages_of(ranks: Collection[int]) -> str:
    """Return in words what an operation waits for that needs messages of these ranks."""
    who = "all ranks" if not ranks else f"rank {', '.join(map(str, sorted(ranks)))}"
    return f"messages of {who}"


def for_each(send: Payload | Mapping[int, Payload], sources: Iterable[int]) -> dict[int, Payload]:
    """Return what exchange() sends to each target."""
    return dict.fromkeys(sources, send) if isinstance(send, Payload) else dict(send)


def all_reduce_nbytes(nbytes: int, size: int) -> int:
    """Return what one rank sends in the bandwidth-optimal all-reduce of so many bytes."""
    return 2 * (size - 1) * nbytes // size
