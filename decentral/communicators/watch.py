"""Waits that end: bounded in time, and by the death of a rank; and whose fault it was.

What a rank waits for is often not what keeps it waiting: along a ring the left neighbor has
nothing to send because its own left neighbor has not. So a rank whose patience is over calls the
roll: ranks that wait, too, or have a step's messages under way, answer; who is stopped or dead does
not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

DEFAULT_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.1
_PATIENCE_S = 2.0  # for the answer of a rank that shares its core with others


class RankLostError(RuntimeError):
    """A rank has died; `lost` are those that this rank knows of, by number in the communicator."""

    def __init__(self, message: str, lost: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.lost = tuple(lost)


class WaitTimeoutError(RuntimeError):
    """Another rank was waited for in vain; `silent` are those that do not answer at all."""

    def __init__(self, message: str, silent: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.silent = tuple(silent)


class Roll(Protocol):
    """How the ranks of a job learn who is there; see Watch."""

    def answer(self, waits: bool) -> None:
        """Answer who has called, if anybody has: this rank is there, and waits or does not."""

    def call(self, patience: float) -> tuple[list[int], list[int]]:
        """Return the ranks that are silent, and those that are there, but wait for nobody."""


class Watch:
    """The patience of a rank, for a communicator and all that were split from it.

    `timeout` is in seconds, for one wait; `roll` is None where ranks need not be called.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT_S, roll: Roll | None = None) -> None:
        self.timeout, self.roll = timeout, roll
        self._waits, self._lock = 0, threading.Lock()
        self._looked = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[Callable[[Callable[[], str]], None]]:
        """Inside, this rank waits; yields what has to be called now and then, with what for.

        Raises:
            WaitTimeoutError: for too long.
        """
        begun = time.monotonic()

        def look(what: Callable[[], str]) -> None:
            self.look()
            if time.monotonic() - begun > self.timeout:
                raise self.complaint(what())

        with self._lock:
            self._waits += 1
        try:
            yield look
        finally:
            with self._lock:
                self._waits -= 1

    @contextmanager
    def bounded(self, too_late: Callable[[], object]) -> Iterator[None]:
        """Call too_late(), in another thread, if what is inside takes longer than the timeout."""
        timer = threading.Timer(self.timeout, too_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def look(self) -> None:
        """Answer who calls the roll, if it is time to look after that."""
        now = time.monotonic()
        if self.roll is not None and now - self._looked > _LOOK_EVERY_S:
            self._looked = now
            self.roll.answer(self._waits > 0)

    def complaint(self, what: str) -> WaitTimeoutError:
        """Return the error of a wait for `what` that took too long."""
        text = f"{what}: waited for {self.timeout:g} s"
        silent, busy = self.roll.call(_PATIENCE_S) if self.roll is not None else ([], [])
        if silent:
            text += f"; {_ranks(silent)} not answer: stopped, dead, or outside of decentral since"
        if busy:
            text += f"; {_ranks(busy)} not wait for anybody: computing, or at a step of their own"
        if self.roll is not None and not (silent or busy):
            text += (
                "; all ranks answer, and wait themselves: they are in different calls "
                "(step(), averaged(), save())"
            )
        text += (
            ". All ranks have to take as many steps, evaluate and save at the same ones; "
            "with unequal numbers of batches, loop inside DistributedOptimizer.join(); "
            "raise timeout= if one of them needs longer"
        )
        return WaitTimeoutError(text, silent)


def _ranks(ranks: Sequence[int]) -> str:
    many = len(ranks) > 1
    return f"rank{'s' * many} {', '.join(map(str, ranks))} {'do' if many else 'does'}"


class MessageRoll:
    """Calls the roll by messages of one byte over an mpi4py communicator of its own."""

    _CALL, _HERE = 1, 2

    def __init__(self, comm: Any, new_status: Callable[[], Any]) -> None:
        self._comm, self._lock, self._new_status = comm, threading.Lock(), new_status
        self._others = [r for r in range(comm.Get_size()) if r != comm.Get_rank()]
        self._waits: dict[int, bool] = {}  # of the ranks that were heard of since the last call
        self._callers: set[int] = set()  # likewise, of those that called themselves
        self._sent: list[Any] = []  # requests, and what they send, kept alive

    def answer(self, waits: bool) -> None:
        """See Roll.answer."""
        with self._lock:
            while self._comm.Iprobe():
                self._hear(waits)

    def _hear(self, waits: bool) -> None:
        status, data = self._new_status(), bytearray(1)
        self._comm.Recv(data, status=status)
        source, called = status.Get_source(), status.Get_tag() == self._CALL
        self._waits[source] = called or bool(data[0])
        if called:
            self._callers.add(source)
            self._send(source, self._HERE, waits)

    def _send(self, target: int, tag: int, waits: bool) -> None:
        data = bytearray([waits])
        self._sent.append((self._comm.Isend(data, target, tag), data))

    def call(self, patience: float) -> tuple[list[int], list[int]]:
        """See Roll.call."""
        self.answer(True)
        with self._lock:
            # answers to an earlier call say nothing any more; who has called since waits as we do
            self._waits = dict.fromkeys(self._callers, True)
            self._callers.clear()
            for r in self._others:
                self._send(r, self._CALL, True)
        deadline = time.monotonic() + patience
        while len(self._waits) < len(self._others) and time.monotonic() < deadline:
            self.answer(True)
            time.sleep(1e-2)
        silent = [r for r in self._others if r not in self._waits]
        return silent, [r for r, waits in self._waits.items() if not waits]
