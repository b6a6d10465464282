"""How threads of a process wake each other: who waits for messages may be asleep meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator


class Bell:
    """Wakes one thread: an Event whose calls are a lock's, which take next to no Python.

    `fd` can be read when it has rung, for sleeps outside of Python; -1 where the system has none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.sleep: Callable[[float], object] = functools.partial(self._lock.acquire, True)
        self.fd = -1
        with contextlib.suppress(AttributeError, OSError):  # not Linux; too many files are open
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """End a sleep, or the next one at once."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._lock.release()
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def hush(self) -> None:
        """Forget that it rang."""
        if self._lock.acquire(False) and self.fd >= 0:
            with contextlib.suppress(BlockingIOError):  # who slept outside of Python has read it
                os.eventfd_read(self.fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


_here = threading.local()


def own_bell() -> Bell:
    """Return the bell of the calling thread, for its waits outside of an engine."""
    if not hasattr(_here, "bell"):
        _here.bell = Bell()
    return _here.bell


class Claim:
    """A lock that may be taken again by who has it, and held in one's sleep: others end it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bell: Bell | None = None
        self._wanted_by: set[int] = set()

    def __enter__(self) -> None:
        if self._lock.acquire(False):
            return
        me = threading.get_ident()
        self._wanted_by.add(me)
        if (bell := self._bell) is not None:
            bell.ring()
        self._lock.acquire()
        self._wanted_by.discard(me)

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextlib.contextmanager
    def asleep(self, bell: Bell) -> Iterator[bool]:
        """Hold it in a sleep that the bell ends; False where others, who come first, want it."""
        if not self._lock.acquire(False):
            yield False
            return
        self._bell = bell  # and only then look: either we see who comes, or he sees the bell
        try:
            yield not self._wanted_by
        finally:
            self._bell = None
            self._lock.release()
