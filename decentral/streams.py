"""Where tasks work on a GPU: on streams of their own, beside the training thread's.

A task begins with what the training thread has put into its stream by then, and that thread's
stream goes on, after join(), with what tasks have done. On the CPU all of it is nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from .communicators.base import Pending

Steps = Generator[Pending, None, Any]


class Turn:
    """That the GPU has come as far as a task needs, and the task before it has begun; see Pending.

    A thread that encoded at once would stand still until the GPU has come so far in backward(),
    and with it all messages under way. Tasks begin in order, since all ranks have that in common.
    """

    def __init__(self, event: Any, before: Turn | None) -> None:
        self._event, self._before, self.taken = event, before, False

    @property
    def complete(self) -> bool:
        """See Pending."""
        return (self._before is None or self._before.taken) and bool(self._event.query())

    def poll(self) -> bool:
        """Return False: it goes on by itself."""
        return False

    def wait(self) -> None:
        """See Pending; the tasks before it have to be driven by somebody else."""
        self._event.synchronize()

    def take(self) -> None:
        """Say that the task has begun."""
        self.taken, self._before = True, None


class Side:
    """The streams of one engine's tasks, one per GPU."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}
        self._last: Turn | None = None

    def task(self, steps: Steps, vector: Tensor, turns: bool = False) -> Steps:
        """Return a task that works on `vector` as `steps` does, on the GPU's own stream for it.

        With `turns` it waits, without standing in the way, until the vector is complete.
        """
        if not vector.is_cuda:
            return steps
        device = vector.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
        turn = Turn(ready, self._last) if turns else None
        self._last = turn
        return _beside(steps, self._streams[device], ready, turn)

    def join(self) -> None:
        """Let the current stream go on after what tasks have put into theirs."""
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)


def _beside(steps: Steps, stream: Any, ready: Any, turn: Turn | None) -> Steps:
    if turn is not None:
        yield turn
        turn.take()
    stream.wait_event(ready)
    while True:
        with torch.cuda.stream(stream):
            try:
                pending = next(steps)
            except StopIteration as stop:
                return stop.value
        yield pending
