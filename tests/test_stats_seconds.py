"""stats(): how long exchanges took, and what share of it the training did not wait for."""

from types import SimpleNamespace

import optimizer_cases as cases
import pytest
from optimizer_cases import distributed, mlp, on_ranks

import decentral.engine
from decentral.communicators.watch import Watch
from decentral.engine import Engine

SECONDS = ("communication_s", "waited_s", "hidden")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        time = SimpleNamespace(perf_counter=lambda: self.now, sleep=lambda seconds: None)
        monkeypatch.setattr(decentral.engine, "time", time)

    def message(self, polls):
        """Return an operation that is complete at the poll of this number; each takes a second."""
        return Message(self, polls)


class Message:
    def __init__(self, clock, polls):
        self.clock, self.left = clock, polls

    @property
    def complete(self):
        return self.left <= 0

    def poll(self):
        self.clock.now += 1
        self.left -= 1
        return self.complete


def sequence(*messages):
    yield from messages


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def engine(clock):
    return Engine(SimpleNamespace(rank=0, spins=0, threaded=False, watch=Watch()))


def seconds(engine):
    return engine.communication_s, engine.waited_s


def test_from_submission_until_it_is_done_and_what_wait_took(clock, engine):
    task = engine.submit(sequence(clock.message(3), clock.message(1)), "a task")
    clock.now += 10  # the training computes
    engine.wait(task)
    assert seconds(engine) == (10 + 4, 4)
    clock.now += 100  # nothing is under way
    engine.wait(task)
    assert seconds(engine) == (14, 4)


def test_tasks_at_the_same_time_count_once(clock, engine):
    first = engine.submit(sequence(clock.message(1)), "first")
    clock.now += 10
    second = engine.submit(sequence(clock.message(1)), "second")
    clock.now += 10
    engine.wait(first, second)
    assert seconds(engine) == (20 + 2, 2)
    engine.wait(engine.submit(sequence(clock.message(5)), "third"))
    assert seconds(engine) == (22 + 5, 2 + 5)


def test_what_is_under_way_counts_until_now(clock, engine):
    """Gossip's first messages of a step may be submitted before the last ones of another came."""
    for step in range(3):
        engine.submit(sequence(clock.message(1)), f"step {step}")
        clock.now += 10
        assert seconds(engine) == (10 * (step + 1), 0)
    engine.drain()
    assert seconds(engine)[0] == 33 and engine.waited_s == 3


def test_an_exception_ends_the_waiting_that_is_counted(clock, engine):
    def task():
        yield clock.message(2)
        raise KeyError

    engine.submit(task(), "a task")
    with pytest.raises(KeyError):
        engine.drain()
    assert engine.waited_s == 2


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_seconds_count_from_0_and_a_rank_alone_has_none(name):
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name, "nuqsgd"))
        before = opt.stats()
        cases.train(opt, model, steps=5)
        return [[stats[key] for key in SECONDS] for stats in (before, opt.stats())]

    for before, (communication, waited, _) in on_ranks(2, rank):
        assert before == [0, 0, 0] and communication > 0 and waited >= 0
    assert on_ranks(1, rank) == [[[0, 0, 0]] * 2]


@pytest.mark.parametrize(
    "communication, waited, hidden", [(0.0, 0.0, 0.0), (2.0, 0.5, 0.75), (2.0, 2.0, 0.0)]
)
def test_hidden_is_the_share_that_was_not_waited_for(communication, waited, hidden):
    def rank(comm):
        opt = distributed(mlp(), comm)
        opt._engine._communicated_s, opt._engine.waited_s = communication, waited
        return opt.stats()["hidden"]

    assert on_ranks(2, rank) == [hidden] * 2


def test_a_share_is_not_negative():
    """A waiting rank is told a little after the last message came."""

    def rank(comm):
        opt = distributed(mlp(), comm)
        opt._engine._communicated_s, opt._engine.waited_s = 2.0, 2.1
        return opt.stats()["hidden"]

    assert on_ranks(2, rank) == [0.0] * 2
