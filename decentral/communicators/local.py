"""n ranks in one process, a thread each: for tests and simulation, with the interface of MPI."""

from __future__ import annotations

import copy
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..payload import Payload, Wire
from .base import Communicator, all_reduce_nbytes, for_each

T = TypeVar("T")
_POLL_S = 0.05


class _Group:
    """What the ranks of one process share."""

    def __init__(self, size: int, timeout: float) -> None:
        self.size = size
        self.timeout = timeout
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        self.failed = threading.Event()
        self._boxes: dict[tuple[int, int, int], queue.SimpleQueue[Any]] = defaultdict(
            queue.SimpleQueue
        )
        self._lock = threading.Lock()

    def box(self, source: int, target: int, tag: int) -> queue.SimpleQueue[Any]:
        with self._lock:
            return self._boxes[source, target, tag]

    def fail(self) -> None:
        self.failed.set()
        self.barrier.abort()


class _Done:
    def wait(self) -> None:
        """Return at once."""


class _Receipt:
    """The receiving half of an exchange; sending needs no wait, since bytes are copied."""

    def __init__(self, comm: LocalCommunicator, receive: Mapping[int, Payload], tag: int) -> None:
        self._comm, self._receive, self._tag = comm, receive, tag

    def wait(self) -> None:
        """Return when every message is here."""
        receive, self._receive = self._receive, {}  # a second wait finds nothing to do
        for source, payload in receive.items():
            data = self._comm._take(source, self._tag)
            if data.size > payload.capacity:
                raise ValueError(
                    f"rank {self._comm.rank}: got {data.size} bytes from rank {source}, expected "
                    f"at most {payload.capacity}"
                )
            payload.wire.incoming(False)[: data.size] = data
            payload.landed(False, data.size)


class LocalCommunicator(Communicator):
    """One rank of run_local()."""

    def __init__(self, group: _Group, rank: int) -> None:
        self._group = group
        self.rank = self.local_rank = rank
        self.size = self.local_size = group.size
        self.hosts = (0,) * group.size

    def _take(self, source: int, tag: int) -> Any:
        box = self._group.box(source, self.rank, tag)
        for _ in range(max(1, int(self._group.timeout / _POLL_S))):
            if self._group.failed.is_set():
                break
            try:
                return box.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        why = (
            "failed" if self._group.failed.is_set() else f"sent nothing in {self._group.timeout} s"
        )
        raise threading.BrokenBarrierError(
            f"rank {self.rank}: waits for rank {source}, a rank {why}"
        )

    def exchange(
        self, send: Payload | Mapping[int, Payload], receive: Mapping[int, Payload], tag: int
    ) -> _Receipt:
        """See Communicator.exchange."""
        for target, payload in for_each(send, receive).items():
            data = np.array(payload.wire.outgoing(False, payload.nbytes))
            self.bytes_sent += data.nbytes
            self._group.box(self.rank, target, tag).put(data)
        return _Receipt(self, receive, tag)

    def _all_gather(self, value: Any) -> list[Any]:
        self.barrier()
        self._group.slots[self.rank] = value
        self.barrier()
        return list(self._group.slots)

    def all_reduce(self, vector: Any) -> _Done:
        """See Communicator.all_reduce; ranks are added in order, so the result is reproducible."""
        wire = Wire(vector)
        mine = wire.outgoing(False)
        parts = self._all_gather(mine.copy())
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        wire.incoming(False)[:] = total
        wire.landed(False)
        self.bytes_sent += all_reduce_nbytes(mine.nbytes, self.size)
        return _Done()

    def all_reduce_max(self, value: float) -> float:
        """See Communicator.all_reduce_max."""
        self.bytes_sent += all_reduce_nbytes(4, self.size)
        return max(self._all_gather(float(np.float32(value))))

    def broadcast(self, data: npt.NDArray[np.uint8], root: int = 0) -> None:
        """See Communicator.broadcast."""
        parts = self._all_gather(data)
        data[:] = parts[root]
        self.bytes_sent += data.nbytes if self.rank == root and self.size > 1 else 0
        self.barrier()

    def all_gather_object(self, value: Any) -> list[Any]:
        """See Communicator.all_gather_object; values are copied instead of pickled."""
        return copy.deepcopy(self._all_gather(copy.deepcopy(value)))

    def barrier(self) -> None:
        """See Communicator.barrier."""
        try:
            self._group.barrier.wait(self._group.timeout)
        except threading.BrokenBarrierError:
            why = "another failed" if self._group.failed.is_set() else "not all ranks came in time"
            raise threading.BrokenBarrierError(f"rank {self.rank}: barrier: {why}") from None


def run_local(
    size: int, function: Callable[[LocalCommunicator], T], timeout: float = 60.0
) -> list[T]:
    """Call function(communicator) on `size` ranks at once, and return what they return, by rank.

    A rank that raises ends them all, and its exception is raised here. `timeout` in seconds bounds
    every wait of one rank for another.
    """
    group = _Group(size, timeout)
    results: list[Any] = [None] * size
    errors: list[tuple[int, BaseException]] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(LocalCommunicator(group, rank))
        except BaseException as error:
            errors.append((rank, error))
            group.fail()

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
