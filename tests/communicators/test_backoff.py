"""How long who waits for messages pauses between two looks, by a clock that is ours."""

import pytest

from decentral.communicators import base
from decentral.communicators.base import PAUSE_MAX_S, Backoff


class Clock:
    """Time that passes in pauses only."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(base, "time", made)
    return made


def wait(backoff, clock, seconds, hurry):
    """Pause until so much time has passed, and return how often that was."""
    before, end = len(clock.pauses), clock.now + seconds
    while clock.now < end:
        backoff.pause(hurry, base.sleeping(clock.sleep))
    backoff.reset()
    return len(clock.pauses) - before


def test_spins_come_first_and_anew_when_something_moved(clock):
    backoff = Backoff(spins=3)
    for _ in range(2):
        for _ in range(3):
            backoff.pause()
        assert clock.pauses == []
        backoff.reset()
    for _ in range(4):
        backoff.pause()
    assert len(clock.pauses) == 1


def test_a_pause_is_a_part_of_what_a_wait_has_taken_and_not_above_the_most(clock):
    backoff = Backoff()
    wait(backoff, clock, 10.0, hurry=True)
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[0] < 1e-3 and clock.pauses[-1] == PAUSE_MAX_S
    backoff.pause()
    assert clock.pauses[-1] < 1e-3  # something has moved


def test_without_hurry_it_looks_a_few_times_in_what_a_wait_usually_takes(clock):
    backoff = Backoff()
    counts = [wait(backoff, clock, 50e-3, hurry=False) for _ in range(20)]
    assert counts[0] > 15  # nothing is known
    assert all(7 <= count <= 9 for count in counts[10:])
    for _ in range(20):  # a faster network
        counts.append(wait(backoff, clock, 8e-3, hurry=False))
    assert counts[-1] in (4, 5) and clock.pauses[-1] == pytest.approx(2e-3)


def test_in_a_hurry_what_waits_usually_take_does_not_count(clock):
    backoff = Backoff()
    for _ in range(20):
        wait(backoff, clock, 50e-3, hurry=False)
    known = wait(backoff, clock, 50e-3, hurry=True)
    assert known == pytest.approx(wait(Backoff(), clock, 50e-3, hurry=True), abs=1)


def test_time_without_anything_to_wait_for_does_not_count(clock):
    backoff = Backoff()
    for _ in range(20):
        wait(backoff, clock, 32e-3, hurry=False)
        clock.now += 100.0  # no messages are under way
        backoff.reset()
    backoff.pause(False, base.sleeping(clock.sleep))
    assert clock.pauses[-1] == pytest.approx(4e-3, rel=0.1)
