"""Requests under way, tested together: one call of MPI's for all of them, whoever waits."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from decentral_kernels import naps

from .base import PAUSE_MAX_S, Backoff, Pauses, messages_of
from .bell import Bell, Claim, own_bell
from .watch import Watch

# A call moves a part of what has come over TCP, 64 KB with UCX: 1 Gbit/s in such a time. That of
# one request's status moves as much as a test of all, and takes a third of its time. So a poll
# makes more of them the longer the pause before it was, but no more than what is under way takes,
# and what the two sides need to agree on that. Small messages need none; each call of MPI's costs
# 20 us after a pause, in which others have used the caches, and many ranks may wait on few cores.
_PER_STEP_S, _PER_STEP_NBYTES, _AGREEING = 500e-6, 1 << 16, 2
_MOST_STEPS = round(PAUSE_MAX_S / _PER_STEP_S)
_ANY_NBYTES = _MOST_STEPS * _PER_STEP_NBYTES  # of a request, where it is not known
_NAP_S = 0.25  # then who waits looks whether it does so for too long
Landed = Callable[[Any], object]  # is given the status of the request
Nap = Callable[[list[Any], int, tuple[float, ...], int], object]


@functools.cache
def napping(library: str, handle_of: Callable[[Any], int]) -> Nap | None:
    """Return what sleeps until one of so many requests is complete, MPI going on, if it can.

    `library` has MPI's functions; see decentral_kernels.naps for the other arguments.
    """
    nap = naps.napper(naps.address_in(library, "MPI_Request_get_status"))
    if nap is None:
        return None
    return lambda requests, *how: nap([handle_of(request) for request in requests], *how)


class Requests:
    """The requests of one communicator, which several threads may add and poll.

    What a request leads to, such as adding up and sending on, is done by the thread that finds it
    complete: so nobody has to wait for operations in the order in which another rank does.
    `translate` makes of MPI's exceptions what is raised here. Where MPI `survives` a rank's death,
    it may be a test alone that tells of it.
    """

    def __init__(
        self,
        watch: Watch | None = None,
        translate: Callable[[Exception], Exception] = lambda error: error,
        survives: bool = False,
    ) -> None:
        self.spins, self.whose, self._survives = 0, "this rank", survives
        self._watch, self._translate = Watch() if watch is None else watch, translate
        self._tested_at = time.perf_counter()
        self._requests: list[Any] = []
        self._landed: list[Landed] = []
        self._nbytes: list[int] = []
        self._statuses: list[Any] = []  # mpi4py makes as many as it needs
        self._waiting: list[tuple[Callable[[], bool], Callable[[], object]]] = []
        self.lock = Claim()  # held while landed() runs, which may add
        self.nap: Nap | None = None

    def add(self, request: Any, landed: Landed, nbytes: int = _ANY_NBYTES) -> None:
        """Call landed(status) when the request, of at most so many bytes, is complete."""
        with self.lock:
            if not self._requests:
                self._tested_at = time.perf_counter()
            self._requests.append(request)
            self._landed.append(landed)
            self._nbytes.append(nbytes)

    def when(self, ready: Callable[[], bool], begin: Callable[[], object]) -> None:
        """Call begin(), which may add(), as soon as ready(): now, or in a poll()."""
        with self.lock:
            if ready():
                begin()
            else:
                self._waiting.append((ready, begin))

    def _begin(self) -> bool:
        """Begin what may begin by now; return whether there was any."""
        waiting, self._waiting = self._waiting, []
        for ready, begin in waiting:
            self.when(ready, begin)
        return len(self._waiting) < len(waiting)

    def poll(self) -> bool:
        """Make progress with all requests; return whether any is complete, or begun, now."""
        with self.lock:
            try:
                return self._poll()
            except Exception as error:
                if (translated := self._translate(error)) is error:
                    raise
                raise translated from error

    def _poll(self) -> bool:
        begun = bool(self._waiting) and self._begin()
        found = self._test() if self._requests else None
        if not found:
            return begun
        calls = [(self._landed[i], self._statuses[k]) for k, i in enumerate(found)]
        for i in sorted(found, reverse=True):
            del self._requests[i], self._landed[i], self._nbytes[i]
        self._land(calls)
        return True

    def _test(self) -> list[int] | None:
        """Return which requests are complete; let MPI go on the longer, the longer nobody has."""
        before, self._tested_at = self._tested_at, time.perf_counter()
        steps = int((self._tested_at - before) / _PER_STEP_S)
        try:
            if steps:
                there = self._go_on(min(steps, self._most_calls()))
                if there is False and len(self._requests) == 1 and not self._survives:
                    return None
            return self._requests[0].Testsome(self._requests, self._statuses)
        except Exception as error:
            dead = self._translate(error)
            raise (self._named(error) if dead is error else dead) from error

    def _most_calls(self) -> int:
        """Return how many calls of MPI's are of use, after however long a pause."""
        parts = sum(self._nbytes) // _PER_STEP_NBYTES
        return min(_MOST_STEPS, parts + _AGREEING) if parts else 0

    def _go_on(self, calls: int) -> bool | None:
        """Return whether the first request is complete; None if that is not known."""
        try:
            for _ in range(calls):
                if self._requests[0].Get_status():
                    return True
        except Exception:  # the test says whose message it is
            return None
        return False if calls else None

    def _named(self, error: Exception) -> Exception:
        """Return an error that says whose message could not be received, if MPI knows."""
        for status in self._statuses:
            if code := status.Get_error():
                reason = " ".join(str(type(error)(code)).split())
                return ValueError(
                    f"the message of rank {status.Get_source()} could not be received, expected "
                    f"one that fits its buffer, got: {reason}"
                )
        return error

    def _land(self, calls: Iterable[tuple[Landed, Any]]) -> None:
        failures = []
        for landed, status in calls:
            try:
                landed(status)
            except Exception as error:
                failures.append(error)  # the others are complete all the same
        if failures:
            raise failures[0]

    def wait_for(self, done: Callable[[], bool], missing: Callable[[], str]) -> None:
        """Poll until done(); give the core away while waiting, since MPI's own wait does not.

        Raises:
            WaitTimeoutError: what is `missing` did not come.
            RankLostError: a rank has died.
        """
        backoff, rest = Backoff(self.spins), functools.partial(self.rest, own_bell())
        with self._watch.waiting() as look:
            while not done():
                if self.poll():
                    backoff.reset()
                else:
                    look(lambda: f"{self.whose}, {missing()}")
                    backoff.pause(True, rest)

    def rest(self, bell: Bell, pauses: Pauses, others: Collection[Requests] = ()) -> None:
        """Pause until a request, of others' too, is complete or the bell rings.

        Where there is no nap, or nobody could end it, just once.
        """
        everyone = (self, *others)
        with contextlib.ExitStack() as stack:
            undisturbed = all([stack.enter_context(r.lock.asleep(bell)) for r in everyone])
            requests = [request for r in everyone for request in r._requests]
            nap = self.nap if undisturbed and requests and bell.fd >= 0 else None
            if nap is not None and not any(r._waiting for r in everyone):
                calls = max(r._most_calls() for r in everyone)
                nap(requests, bell.fd, (*pauses, _NAP_S), calls)
                for r in everyone:
                    r._tested_at = time.perf_counter()
                return
        bell.sleep(pauses.next())

    def abandon(self) -> None:
        """Test these requests no more; MPI may still know their buffers, which stay alive."""
        with self.lock:
            self._abandoned = (self._requests, self._landed, self._waiting)
            self._requests, self._landed, self._nbytes, self._waiting = [], [], [], []

    def finish(self, seconds: float) -> bool:
        """Poll until nothing is under way, but no longer than that; return whether it is so."""
        deadline = time.monotonic() + seconds
        while len(self) and time.monotonic() < deadline:
            if not self.poll():
                time.sleep(1e-3)
        return len(self) == 0

    def __len__(self) -> int:
        return len(self._requests) + len(self._waiting)


class Operation:
    """Requests that are under way at once, and the buffers that they use; see Pending.

    Args:
        owner: of the requests.
        requests: each with what its completion leads to.
        held: what has to stay alive, since MPI keeps no reference to what it sends.
        then: what is called last; at once where there are no requests.
        missing: the ranks whose messages have not come, as far as it is known.
        later: when a request may be made, what makes it, what its completion leads to, its bytes.
        nbytes: that each of `requests` moves, at most.
    """

    def __init__(
        self,
        owner: Requests,
        requests: Iterable[tuple[Any, Landed | None]],
        held: Any,
        then: Callable[[], None] = lambda: None,
        missing: Collection[int] = (),
        later: Iterable[tuple[Callable[[], bool], Callable[[], Any], Landed | None, int]] = (),
        nbytes: int = _ANY_NBYTES,
    ) -> None:
        self.poll, self.owner, self._wait_for = owner.poll, owner, owner.wait_for
        self._held, self._then = held, then
        self.missing = missing
        begun, deferred = list(requests), list(later)
        self._left = len(begun) + len(deferred)
        for request, landed in begun:
            owner.add(request, functools.partial(self._one_less, landed), nbytes)
        for ready, make, landed, size in deferred:
            owner.when(ready, functools.partial(self._make, owner, make, landed, size))
        if not begun and not deferred:
            then()

    def _make(
        self, owner: Requests, make: Callable[[], Any], landed: Landed | None, nbytes: int
    ) -> None:
        owner.add(make(), functools.partial(self._one_less, landed), nbytes)

    def _one_less(self, landed: Landed | None, status: Any) -> None:
        try:
            if landed is not None:
                landed(status)
            if self._left == 1:
                self._then()
        finally:
            self._left -= 1

    @property
    def complete(self) -> bool:
        """See Pending."""
        return self._left == 0

    def wait(self) -> None:
        """See Pending."""
        self._wait_for(lambda: self.complete, lambda: messages_of(self.missing))


class Deferred:
    """An operation that begins when it may; see Pending."""

    def __init__(
        self, owner: Requests, ready: Callable[[], bool], begin: Callable[[], Any]
    ) -> None:
        self.poll, self.owner, self._wait_for = owner.poll, owner, owner.wait_for
        self._begin = begin
        self._operation: Any = None
        owner.when(ready, self._start)

    def _start(self) -> None:
        self._operation = self._begin()

    @property
    def complete(self) -> bool:
        """See Pending."""
        return self._operation is not None and self._operation.complete

    def wait(self) -> None:
        """See Pending."""
        self._wait_for(lambda: self.complete, lambda: messages_of(()))
