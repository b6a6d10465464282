"""Who sleeps with a lock gives it up as soon as somebody wants it."""

import os
import threading
from types import SimpleNamespace

import pytest

from decentral.communicators.base import Pauses
from decentral.communicators.bell import Bell, Claim, own_bell
from decentral.communicators.requests import Requests

SOON = 60.0


def test_a_bell_can_be_read_once_it_has_rung_until_it_is_hushed():
    bell = Bell()
    for _ in range(2):
        bell.ring()
        bell.ring()
        assert os.eventfd_read(bell.fd) == 2  # as who sleeps outside of Python does
        bell.hush()
        bell.ring()
        bell.hush()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(bell.fd)


def test_a_bell_that_is_gone_leaves_no_file_open():
    bell = Bell()
    fd = bell.fd
    os.fstat(fd)
    del bell
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_where_no_more_files_may_be_open_a_bell_rings_all_the_same(monkeypatch):
    def full(*_):
        raise OSError("Too many open files")

    monkeypatch.setattr(os, "eventfd", full)
    bell = Bell()
    bell.ring()
    assert bell.fd == -1 and bell.sleep(SOON)
    bell.hush()


def test_each_thread_has_a_bell_of_its_own():
    found = []
    thread = threading.Thread(target=lambda: found.append(own_bell()))
    thread.start()
    thread.join()
    assert own_bell() is own_bell() is not found[0]


def test_a_claim_is_taken_again_by_who_has_it():
    claim = Claim()
    with claim, claim, claim.asleep(Bell()) as undisturbed:
        assert undisturbed


def test_who_wants_it_ends_a_sleep_and_comes_first():
    claim, bell, order, asleep = Claim(), Bell(), [], threading.Event()

    def want():
        assert asleep.wait(SOON)
        with claim:
            order.append("wanted")

    thread = threading.Thread(target=want)
    thread.start()
    with claim.asleep(bell) as undisturbed:
        assert undisturbed
        asleep.set()
        assert bell.sleep(SOON)  # rung by who wants it
        order.append("woken")
        with claim.asleep(bell) as undisturbed:
            assert not undisturbed  # nobody sleeps while another waits
    thread.join(SOON)
    assert order == ["woken", "wanted"]
    with claim.asleep(bell) as undisturbed:
        assert undisturbed


def test_who_works_with_it_is_not_waited_for():
    claim, working, done = Claim(), threading.Event(), threading.Event()

    def work():
        with claim:
            working.set()
            assert done.wait(SOON)

    thread = threading.Thread(target=work)
    thread.start()
    assert working.wait(SOON)
    with claim.asleep(Bell()) as undisturbed:
        assert not undisturbed
    done.set()
    thread.join(SOON)


class Nap:
    """Sleeps until the bell rings, and remembers what it was given."""

    def __init__(self):
        self.calls, self.begun = [], threading.Event()

    def __call__(self, *arguments):
        self.calls.append(arguments)
        self.begun.set()


def request():
    return SimpleNamespace(Testsome=lambda requests, statuses: None, Get_status=lambda: False)


PAUSES = Pauses(0.0, 1e-4, 0.0, 1e-3)


def test_a_rest_is_a_nap_with_all_requests_where_there_is_one():
    requests, bell = Requests(), Bell()
    requests.nap = nap = Nap()
    one, other = request(), request()
    requests.add(one, print, nbytes=5 << 16)
    requests.add(other, print, nbytes=0)
    requests.rest(bell, PAUSES)
    ((handled, fd, seconds, calls),) = nap.calls
    assert handled == [one, other] and fd == bell.fd and seconds[:4] == PAUSES and calls == 7


def test_a_rest_is_for_all_whose_requests_are_waited_for():
    owners, bell = [Requests() for _ in range(3)], Bell()
    for owner, nbytes in zip(owners, (2, 5, 0), strict=True):
        owner.nap = Nap()
        owner.add(request(), print, nbytes << 16)
    owners[0].rest(bell, PAUSES, owners[1:])
    ((handled, _, _, calls),) = owners[0].nap.calls
    assert handled == [r for owner in owners for r in owner._requests] and calls == 7
    owners[1].when(lambda: False, print)
    owners[0].rest(bell, PAUSES, owners[1:])
    assert len(owners[0].nap.calls) == 1  # what the second is to begin needs Python


def test_where_a_nap_would_miss_something_a_rest_is_one_pause():
    requests, bell = Requests(), Bell()
    requests.nap = nap = Nap()
    requests.rest(bell, PAUSES)  # nothing is under way
    requests.add(request(), print)
    requests.rest(SimpleNamespace(fd=-1, ring=print, sleep=print), PAUSES)  # no end to it
    requests.when(lambda: False, print)
    requests.rest(bell, PAUSES)
    assert nap.calls == []
