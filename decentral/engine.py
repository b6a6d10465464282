"""What exchanges in the background: a thread that drives tasks, each a generator.

A task yields what it waits for and is resumed when that is complete, so that one thread encodes a
bucket while another bucket is on the wire. Tasks start in the order of submission, which all ranks
have in common: collective operations belong before a task's first yield of what is not complete.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any

from .communicators.base import Backoff, Communicator, Pending, Rest, messages_of, sleeping
from .communicators.bell import Bell

Steps = Generator[Pending, None, Any]
_IDLE_S = 5.0  # a thread without work ends, and the next task starts another
_EXIT_WAIT_S = 10.0
_LOOK_S = 0.5  # how often a thread that waits looks whether it does so for too long


def run_now(steps: Steps) -> Any:
    """Run a task here, and return what it returns."""
    try:
        while True:
            next(steps).wait()
    except StopIteration as stop:
        return stop.value


class Task:
    """A generator under way; `result` is what it returned, once `done`."""

    def __init__(self, steps: Steps, what: str) -> None:
        self.what, self.begun, self.done = what, False, False
        self.result: Any = None
        self.pending: Pending | None = None  # what it waits for
        self._steps = steps

    def advance(self) -> bool:
        """Go on as far as possible; return whether that was any further."""
        moved = False
        try:
            while self.pending is None or self.pending.complete:
                self.pending = next(self._steps)
                self.begun = moved = True
        except StopIteration as stop:
            self.pending, self.result = None, stop.value
            self.begun = self.done = moved = True
        return moved


class Engine:
    """Drives tasks in a thread of its own, or in wait() where MPI takes calls of one thread only.

    An exception in a task ends the thread's work: every wait() from then on raises it, with a note
    of the task. `waited_s` counts the seconds that wait() took.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._tasks: list[Task] = []
        self._changed = threading.Condition()
        self._bell = Bell()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._reached: list[Callable[[], bool]] = []  # what those who wait, wait for
        self._ended = False
        self._since = self._communicated_s = self.waited_s = 0.0
        atexit.register(_end, weakref.ref(self))

    @property
    def communication_s(self) -> float:
        """The seconds with a task under way, until now."""
        with self._changed:
            since = time.perf_counter() - self._since if self._tasks else 0.0
            return self._communicated_s + since

    def submit(self, steps: Steps, what: str) -> Task:
        """Start a task; `what` is said of it when it fails."""
        task = Task(steps, what)
        with self._changed:
            if not self._tasks:
                self._since = time.perf_counter()
            self._tasks.append(task)
            if self._comm.threaded and self._thread is None and self._failure is None:
                self._thread = threading.Thread(
                    target=self._run, name="decentral-exchange", daemon=True
                )
                self._thread.start()
        self._bell.ring()
        return task

    def wait(self, *tasks: Task) -> None:
        """Return when the tasks are done.

        Raises:
            Exception: what this or an earlier task raised.
            WaitTimeoutError: another rank did not do its part.
        """
        self._wait_until(lambda: all(task.done for task in tasks))

    def wait_for_begin(self) -> None:
        """Return when every task has handed over its first message, which needs no other rank.

        Or will not: what failed is for wait() to raise.
        """
        tasks = list(self._tasks)
        self._wait_until(lambda: all(task.begun for task in tasks), quietly=True)

    def _wait_until(self, reached: Callable[[], bool], quietly: bool = False) -> None:
        if not (reached() and self._failure is None):
            start = time.perf_counter()
            with self._changed:
                self._reached.append(reached)
            self._bell.ring()
            try:
                self._drive(reached) if not self._comm.threaded else self._watch(reached)
            finally:
                with self._changed:
                    self._reached.remove(reached)
                self.waited_s += time.perf_counter() - start
        if self._failure is not None and not quietly:
            raise self._failure

    def _watch(self, reached: Callable[[], bool]) -> None:
        with self._comm.watch.waiting() as look:
            while not self._reaches(reached):
                look(self._missing)

    def _reaches(self, reached: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: self._failure is not None or reached(), timeout=_LOOK_S
            )

    def _missing(self) -> str:
        """Return in words what the first task waits for."""
        task = next(iter(self._tasks), None)
        what = task.what if task is not None else "a step"
        missing = getattr(task.pending, "missing", ()) if task is not None else ()
        return f"rank {self._comm.rank}, {what}, {messages_of(missing)}"

    def drain(self) -> None:
        """Return when all tasks are done."""
        self.wait(*self._tasks)

    def end(self, timeout: float) -> None:
        """Wait for the tasks under way, but not for ever, and do nothing from then on."""
        deadline = time.monotonic() + timeout
        while self._tasks and self._failure is None and time.monotonic() < deadline:
            if not self._comm.threaded:
                self._pass()
            time.sleep(1e-3)
        self._ended = True
        self._bell.ring()
        if (thread := self._thread) is not None:
            thread.join()

    def abandon(self) -> None:
        """Forget the tasks under way, whose messages will not come, and do nothing from now on."""
        self._failure = self._failure or RuntimeError("abandoned")
        self.end(0.0)
        self._tasks.clear()

    def _drive(self, reached: Callable[[], bool]) -> None:
        backoff = Backoff(self._comm.spins)
        with self._comm.watch.waiting() as look:
            while self._failure is None and not reached():
                if self._pass():
                    backoff.reset()
                else:
                    look(self._missing)
                    backoff.pause(True, self._rest())

    def _run(self) -> None:
        backoff = Backoff(self._comm.spins)  # which are worth a core only while the caller waits
        while self._failure is None and not self._ended:
            self._bell.hush()
            if self._pass():
                backoff.reset()
                continue
            if self._tasks:
                self._look()
                backoff.pause(bool(self._reached), self._rest())
                continue
            self._bell.sleep(_IDLE_S)
            with self._changed:
                if not self._tasks:
                    self._thread = None
                    return

    def _rest(self) -> Rest:
        """Return how to pause: as the owners of what tasks wait for can, if all have one."""
        owners: set[Any] = {getattr(t.pending, "owner", None) for t in list(self._tasks)}
        if not owners or None in owners:
            return sleeping(self._bell.sleep)
        first = owners.pop()
        return lambda pauses: first.rest(self._bell, pauses, owners)

    def _look(self) -> None:
        """Answer who calls the roll; MPI may tell of a rank's death in return."""
        try:
            self._comm.watch.look()
        except BaseException as error:
            self._fail(self._tasks[0].what if self._tasks else "a step", error)

    def _pass(self) -> bool:
        """Let every task go on, in order; return whether anything moved."""
        moved = False
        polled = set()
        for task in list(self._tasks):
            try:
                if (pending := task.pending) is not None:
                    if (poll := pending.poll) not in polled:
                        polled.add(poll)  # of one communicator, once for all its tasks
                        moved |= poll()
                    if not pending.complete:
                        continue
                if not task.advance():
                    continue
            except BaseException as error:
                self._fail(task.what, error)
                return True
            moved = True
            self._tell(task)
        return moved

    def _fail(self, what: str, error: BaseException) -> None:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"decentral: rank {self._comm.rank}, {what}")
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _tell(self, task: Task) -> None:
        with self._changed:
            if task.done:
                self._tasks.remove(task)
                if not self._tasks:
                    self._communicated_s += time.perf_counter() - self._since
            if any(reached() for reached in self._reached):  # who wakes up for less takes the GIL
                self._changed.notify_all()


def _end(engine: weakref.ref[Engine]) -> None:
    """At exit, before the communicator's turn: let what is under way arrive, and end the thread."""
    alive = engine()
    if alive is not None:
        alive.end(_EXIT_WAIT_S)
