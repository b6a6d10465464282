"""Requests are polled together, and nobody's mistake loses what has arrived for others."""

import threading
from types import SimpleNamespace

import pytest

from decentral.communicators import requests as module
from decentral.communicators.requests import Deferred, Operation, Requests


class Request:
    """One that is complete when the test says so."""

    def __init__(self):
        self.here = False

    def Get_status(self):
        return self.here

    @staticmethod
    def Testsome(requests, statuses):
        found = [i for i, request in enumerate(requests) if request.here]
        statuses[:] = [f"status of {requests[i]!r}" for i in found]
        return found


def test_each_lands_once_with_its_status_and_then_the_operation_is_complete():
    requests, log = Requests(), []
    three = [Request() for _ in range(3)]
    pairs = [(r, lambda status, r=r: log.append((r, status))) for r in three[:2]]
    operation = Operation(requests, [*pairs, (three[2], None)], None, lambda: log.append("then"))
    assert not operation.poll() and not operation.complete and len(requests) == 3
    three[1].here = three[2].here = True
    assert operation.poll() and not operation.complete
    assert not operation.poll()
    three[0].here = True
    assert operation.poll() and operation.complete and len(requests) == 0
    in_order = (three[1], three[0])
    assert log == [*((r, f"status of {r!r}") for r in in_order), "then"]


def test_polling_one_operation_completes_another():
    requests, first, second = Requests(), Request(), Request()
    one, other = (Operation(requests, [(r, None)], None) for r in (first, second))
    second.here = True
    assert one.poll() and other.complete and not one.complete


def test_an_operation_without_requests_is_complete():
    operation = Operation(Requests(), [], None)
    assert operation.complete and not operation.poll()
    operation.wait()


def test_one_that_fails_does_not_lose_the_others():
    requests, log = Requests(), []

    def fail(status):
        raise ValueError("too long")

    three = [Request() for _ in range(3)]
    operation = Operation(requests, [(three[0], fail), (three[1], log.append)], None)
    other = Operation(requests, [(three[2], log.append)], None)
    for request in three:
        request.here = True
    with pytest.raises(ValueError, match="too long"):
        other.wait()
    assert len(log) == 2 and other.complete and operation.complete


@pytest.mark.parametrize(
    ("codes", "said"), [((0, 15), "message of rank 1 .* got: error 15"), ((0, 0), "in status")]
)
@pytest.mark.parametrize("pause", (0, 10), ids=("soon", "after a pause"))
def test_what_cannot_be_received_names_its_sender_where_mpi_does(codes, said, pause):
    class MPIError(RuntimeError):
        def __str__(self):
            return f"error\n{self.args[0]}" if self.args[0] else "in status"

    class Refused(Request):
        def Get_status(self):
            raise MPIError(15)

        @staticmethod
        def Testsome(requests, statuses):
            for source, code in enumerate(codes):
                status = SimpleNamespace(
                    Get_source=lambda source=source: source, Get_error=lambda code=code: code
                )
                statuses.append(status)
            raise MPIError(0)

    requests = Requests()
    requests.add(Refused(), print)
    requests._tested_at -= pause
    with pytest.raises((ValueError, MPIError), match=said):
        requests.poll()


def test_what_a_request_leads_to_may_be_more_requests():
    requests, first, second = Requests(), Request(), Request()
    first.here = second.here = True
    done = []
    requests.add(first, lambda _: requests.add(second, done.append))
    requests.wait_for(lambda: bool(done), lambda: "more")
    assert len(requests) == 0


def test_where_nobody_has_polled_for_long_mpi_goes_on_for_longer_but_not_for_ever(monkeypatch):
    """An MPI moves so many bytes per call, and no more; so small messages need few."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    requests, tests = Requests(), []

    class Counted(Request):
        def Get_status(self):
            tests.append(clock.now)
            return super().Get_status()

        @staticmethod
        def Testsome(requests, statuses):
            tests.append(clock.now)
            return Request.Testsome(requests, statuses)

    clock.now = 1000.0  # before there was anything to test for
    request, landed = Counted(), []
    requests.add(Counted(), landed.append, nbytes=0)

    def tests_after(pause):
        clock.now += pause
        assert not requests.poll()
        count = len(tests)
        tests.clear()
        return count

    assert [tests_after(pause) for pause in (0.0, 0.0007, 3600.0)] == [1, 1, 1]
    requests.add(Counted(), landed.append, nbytes=10 << 16)
    assert [tests_after(pause) for pause in (0.0022, 3600.0)] == [5, 13]
    requests.add(request, landed.append)  # who knows how many
    assert [tests_after(pause) for pause in (0.0022, 3600.0, 1e-5)] == [5, 61, 1]
    requests.abandon()
    requests.add(request, landed.append)
    clock.now, request.here = clock.now + 3600.0, True
    assert requests.poll() and len(landed) == 1
    assert len(tests) == 2  # it goes on no further when the first is there


@pytest.mark.parametrize("survives", (False, True))
def test_the_status_of_the_only_request_will_do_where_no_death_is_told_of(survives):
    """MPI's calls are a third of what a poll costs a rank that waits."""
    tests = []

    class Counted(Request):
        @staticmethod
        def Testsome(requests, statuses):
            tests.append(len(requests))
            return Request.Testsome(requests, statuses)

    requests, only, landed = Requests(survives=survives), Counted(), []

    def poll_after_a_pause():
        tests.clear()
        requests._tested_at -= 1.0
        return requests.poll(), list(tests)

    requests.add(only, landed.append)
    assert poll_after_a_pause() == (False, [1] if survives else [])
    only.here = True
    assert poll_after_a_pause() == (True, [1]) and len(landed) == 1
    for _ in range(2):
        requests.add(Counted(), landed.append)
    assert poll_after_a_pause() == (False, [2])


def test_two_threads_may_wait():
    requests, here = Requests(), [Request() for _ in range(200)]
    operations = [Operation(requests, [(r, None)], None) for r in here]
    waiters = [threading.Thread(target=o.wait, daemon=True) for o in operations[::20]]
    for waiter in waiters:
        waiter.start()
    for request in here:
        request.here = True
    for waiter in waiters:
        waiter.join(30)
        assert not waiter.is_alive()
    operations[-1].wait()
    assert all(o.complete for o in operations)


class Buffer:
    """One that may be touched when the test says so."""

    ready = False


def test_what_is_not_ready_is_begun_by_a_poll_that_finds_it_so():
    requests, request, buffers, made = Requests(), Request(), [Buffer(), Buffer()], []
    buffers[1].ready = True

    def make(i):
        made.append(i)
        return request

    later = [(lambda b=b: b.ready, lambda i=i: make(i), None, 0) for i, b in enumerate(buffers)]
    operation = Operation(requests, [], None, lambda: made.append("then"), later=later)
    assert made == [1] and len(requests) == 2
    assert not operation.poll() and not operation.complete
    buffers[0].ready = True
    assert operation.poll() and made == [1, 0]
    request.here = True
    assert operation.poll() and operation.complete and made == [1, 0, "then"]
    assert len(requests) == 0


def test_a_deferred_operation_is_complete_when_what_it_became_is():
    requests, request, buffer = Requests(), Request(), Buffer()
    deferred = Deferred(
        requests, lambda: buffer.ready, lambda: Operation(requests, [(request, None)], None)
    )
    request.here = True
    assert not deferred.poll() and not deferred.complete
    buffer.ready = True
    deferred.wait()
    assert deferred.complete
