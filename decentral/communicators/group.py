"""What ranks that are threads of one process share: boxes, barriers, and their fate."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


class LocalDeath(BaseException):
    """Raised by a rank of run_local(): it dies, and the others learn of it as with a killed one."""


class Fate:
    """What becomes of the ranks of one process: they fail together, or one dies."""

    def __init__(self, alive: Sequence[int]) -> None:
        self.failed = threading.Event()
        self.alive = list(alive)  # of run_local()'s ranks
        self.barriers: list[threading.Barrier] = []
        self.changed = threading.Condition()

    def fail(self) -> None:
        """End all ranks."""
        self.failed.set()
        self.wake()

    def die(self, rank: int) -> None:
        """Let the others learn that a rank is no more."""
        self.alive.remove(rank)
        self.wake()

    def wake(self) -> None:
        """Let nobody wait any longer."""
        with self.changed:
            self.changed.notify_all()
        for barrier in self.barriers:
            barrier.abort()


class Group:
    """What the ranks of a communicator share; `members` are their numbers in run_local()."""

    def __init__(self, hosts: Sequence[int], fate: Fate, members: Sequence[int]) -> None:
        self.hosts, self.fate, self.members = tuple(hosts), fate, tuple(members)
        self.size = size = len(self.hosts)
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        self._arrived: set[int] = set()  # at survivors()
        self._next: Group | None = None  # of those who lived when all of them had
        self._began_with = len(fate.alive)
        fate.barriers.append(self.barrier)
        self._boxes: dict[tuple[int, int, int], queue.SimpleQueue[Any]] = defaultdict(
            queue.SimpleQueue
        )
        self._lock = threading.Lock()

    def box(self, source: int, target: int, tag: int) -> queue.SimpleQueue[Any]:
        """Return where messages from one rank to another lie, by tag."""
        with self._lock:
            return self._boxes[source, target, tag]

    def lost(self) -> list[int]:
        """Return the ranks of this group that have died."""
        return [r for r, m in enumerate(self.members) if m not in self.fate.alive]

    def broken(self) -> bool:
        """Whether a rank has died since, one of this group or of what it was split from."""
        return len(self.fate.alive) < self._began_with

    def survivors(self, rank: int, timeout: float) -> Group:
        """Return the group of those that live, when all of them have called."""
        fate, me = self.fate, self.members[rank]
        with fate.changed:
            self._arrived.add(me)
            fate.changed.notify_all()

            def together() -> bool:
                return self._arrived >= set(self.living()) or fate.failed.is_set()

            if not fate.changed.wait_for(together, timeout) or fate.failed.is_set():
                raise threading.BrokenBarrierError(f"rank {rank}: not all survivors came")
            if self._next is None:  # the same for all, also if another one dies meanwhile
                living = self.living()
                hosts = [self.hosts[self.members.index(m)] for m in living]
                self._next = Group(hosts, fate, living)
            return self._next

    def living(self) -> list[int]:
        """Return the members that live."""
        return [m for m in self.members if m in self.fate.alive]
