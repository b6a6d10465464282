"""SIGTERM and Ctrl-C, such as a scheduler's preemption: all ranks stop after the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import numpy as np

from .communicators.base import Communicator, Pending


class StopRequest:
    """Whether a rank was told to stop, which all ranks learn at the same step.

        with decentral.StopRequest(comm) as stop:
            while step < steps and not stop.everyone():
                ...

    A signal is noted; a second one of its kind does what it did before. The ranks add up their
    notes in the background, 8 bytes a step, so that nobody waits but for those a step behind.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm.split(0)  # its collective operations are in an order of their own
        self._noted = np.zeros(len(self.SIGNALS), np.int32)
        self._sum = self._noted.copy()
        self._pending: Pending | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._before):
            self._restore(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted[self.SIGNALS.index(signal.Signals(number))] = 1
        self._restore(number)

    def _restore(self, number: int) -> None:
        before = self._before.pop(number, None)
        if before is not None:
            signal.signal(number, before)

    def everyone(self) -> int:
        """Return the signal that a rank had got when all called this last, or 0; all must call."""
        before, self._pending = self._pending, None
        if before is not None:
            before.wait()
        told = [number for number, count in zip(self.SIGNALS, self._sum, strict=True) if count]
        if not told:
            self._sum = self._noted.copy()
            self._pending = self._comm.all_reduce(self._sum)
        return int(told[0]) if told else 0
