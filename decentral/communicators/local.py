"""n ranks in one process, a thread each: for tests and simulation, with the interface of MPI."""

from __future__ import annotations

import copy
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..payload import Payload, Wire, backward_in_this_thread
from .base import Communicator, Traffic, all_reduce_nbytes, for_each
from .group import Fate, Group, LocalDeath
from .watch import RankLostError, Watch

T = TypeVar("T")
_POLL_S = 0.05


class _Done:
    complete = True

    def poll(self) -> bool:
        """Return False: it goes no further."""
        return False

    def wait(self) -> None:
        """Return at once."""


class _Receipt:
    """The receiving half of an exchange; sending needs no wait, since bytes are copied."""

    def __init__(self, comm: LocalCommunicator, receive: Mapping[int, Payload], tag: int) -> None:
        self._comm, self._receive, self._tag = comm, dict(receive), tag
        self._buffers = {source: p.wire.incoming(False) for source, p in receive.items()}

    @property
    def complete(self) -> bool:
        """Whether every message is here."""
        return not self._receive

    @property
    def missing(self) -> list[int]:
        """The ranks whose messages have not come."""
        return list(self._receive)

    def poll(self) -> bool:
        """Take the messages that are here; return whether there was one.

        For how long, is up to who polls: a clock here would race with that of Engine.wait().
        """
        left = len(self._receive)
        for source in list(self._receive):
            try:
                self._land(source, self._comm._box(source, self._tag).get_nowait())
            except queue.Empty:
                self._comm._check_alive(source)
        return len(self._receive) < left

    def wait(self) -> None:
        """Return when every message is here."""
        for source in list(self._receive):
            self._land(source, self._comm._take(source, self._tag))

    def _land(self, source: int, data: Any) -> None:
        payload = self._receive.pop(source)
        if data.size > payload.capacity:
            raise ValueError(
                f"rank {self._comm.rank}: got {data.size} bytes from rank {source}, expected "
                f"at most {payload.capacity}"
            )
        payload.wire.wait()
        self._buffers[source][: data.size] = data
        payload.landed(False, data.size)


class LocalCommunicator(Communicator):
    """One rank of run_local()."""

    survives = True

    def __init__(self, group: Group, rank: int, watch: Watch) -> None:
        self._group, self.watch = group, watch
        self.traffic = Traffic()
        self.rank, self.size, self.hosts = rank, group.size, group.hosts
        self.local_rank = self.hosts[:rank].count(self.hosts[rank])
        self.local_size = self.hosts.count(self.hosts[rank])

    def split(self, color: int) -> LocalCommunicator:
        """See Communicator.split."""
        colors = self._all_gather(color)
        members = [r for r, c in enumerate(colors) if c == color]
        group = None
        if members[0] == self.rank:
            hosts = [self.hosts[r] for r in members]
            group = Group(hosts, self._group.fate, [self._group.members[r] for r in members])
        groups = self._all_gather(group)
        part = LocalCommunicator(groups[members[0]], members.index(self.rank), self.watch)
        part.traffic = Traffic(self.traffic)
        return part

    def survivors(self) -> LocalCommunicator:
        """See Communicator.survivors."""
        old = self._group
        group = old.survivors(self.rank, self.watch.timeout)
        part = LocalCommunicator(group, group.members.index(old.members[self.rank]), self.watch)
        part.traffic = self.traffic
        return part

    def _box(self, source: int, tag: int) -> queue.SimpleQueue[Any]:
        return self._group.box(source, self.rank, tag)

    def _check_alive(self, source: int, since: float = math.inf) -> None:
        """Raise what ends the wait for a message of `source`, if there is a reason."""
        self._check_lives()
        failed, timeout = self._group.fate.failed.is_set(), self.watch.timeout
        if failed or time.monotonic() - since > timeout:
            why = "failed" if failed else f"sent nothing in {timeout} s"
            raise threading.BrokenBarrierError(
                f"rank {self.rank}: waits for rank {source}, a rank {why}"
            )

    def _check_lives(self) -> None:
        group = self._group
        if group.broken() and not group.fate.failed.is_set():
            lost = group.lost()
            who = f"rank {', '.join(map(str, lost))} has" if lost else "another rank has"
            raise RankLostError(f"rank {self.rank} of {self.size}: {who} died", lost)

    def _take(self, source: int, tag: int) -> Any:
        box, begun = self._box(source, tag), time.monotonic()
        while True:
            try:
                return box.get(timeout=_POLL_S)
            except queue.Empty:
                self._check_alive(source, begun)

    def exchange(
        self, send: Payload | Mapping[int, Payload], receive: Mapping[int, Payload], tag: int
    ) -> _Receipt:
        """See Communicator.exchange."""
        for target, payload in for_each(send, receive).items():
            buffer = payload.wire.outgoing(False, payload.nbytes)
            payload.wire.wait()
            data = np.array(buffer)
            self.traffic.add(data.nbytes)
            self._group.box(self.rank, target, tag).put(data)
        return _Receipt(self, receive, tag)

    def _all_gather(self, value: Any) -> list[Any]:
        self.barrier()
        self._group.slots[self.rank] = value
        self.barrier()
        return list(self._group.slots)

    def all_reduce(self, vector: Any, mean: bool = False) -> _Done:
        """See Communicator.all_reduce; ranks are added in order, so the result is reproducible."""
        wire = Wire(vector)
        mine = wire.outgoing(False)
        wire.wait()
        parts = self._all_gather(mine.copy())
        total = parts[0].copy()
        with np.errstate(over="ignore", invalid="ignore"):  # who asks looks at the sum
            for part in parts[1:]:
                total += part
        if mean:
            total /= self.size
        wire.incoming(False)[:] = total
        wire.landed(False)
        self.traffic.add(all_reduce_nbytes(mine.nbytes, self.size))
        return _Done()

    def all_reduce_max(self, value: float) -> float:
        """See Communicator.all_reduce_max."""
        self.traffic.add(all_reduce_nbytes(4, self.size))
        return max(self._all_gather(float(np.float32(value))))

    def link_speed(self) -> float:
        """See Communicator.link_speed; the hosts are pretended."""
        return math.inf

    def broadcast(self, data: npt.NDArray[np.uint8], root: int = 0) -> None:
        """See Communicator.broadcast."""
        parts = self._all_gather(data)
        data[:] = parts[root]
        self.traffic.add(data.nbytes if self.rank == root and self.size > 1 else 0)
        self.barrier()

    def all_gather_object(self, value: Any) -> list[Any]:
        """See Communicator.all_gather_object; values are copied instead of pickled."""
        return copy.deepcopy(self._all_gather(copy.deepcopy(value)))

    def barrier(self) -> None:
        """See Communicator.barrier."""
        try:
            self._group.barrier.wait(self.watch.timeout)
        except threading.BrokenBarrierError:
            self._check_lives()
            failed = self._group.fate.failed.is_set()
            why = "another failed" if failed else "not all ranks came in time"
            raise threading.BrokenBarrierError(f"rank {self.rank}: barrier: {why}") from None


def run_local(
    size: int,
    function: Callable[[LocalCommunicator], T],
    timeout: float = 60.0,
    hosts: Sequence[int] | None = None,
) -> list[T]:
    """Call function(communicator) on `size` ranks at once, and return what they return, by rank.

    A rank that raises ends them all, and its exception is raised here. `timeout` in seconds bounds
    every wait of one rank for another. `hosts` pretends that ranks are on different hosts. A rank
    that raises LocalDeath returns None, and the others go on, if they can.
    """
    fate = Fate(range(size))
    group = Group([0] * size if hosts is None else hosts, fate, range(size))
    results: list[Any] = [None] * size
    errors: list[tuple[int, BaseException]] = []

    def run(rank: int) -> None:
        try:
            with backward_in_this_thread():
                results[rank] = function(LocalCommunicator(group, rank, Watch(timeout)))
        except LocalDeath:
            fate.die(rank)
        except BaseException as error:
            errors.append((rank, error))
            fate.fail()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # Ranks that only stopped because another failed say nothing new.
        first = [e for _, e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise first[0] if first else errors[0][1]
    return results
