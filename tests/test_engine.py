"""The engine: tasks that wait for messages take turns, in a thread or in wait() itself."""

import sys
import threading
import weakref
from types import SimpleNamespace

import pytest

import decentral.engine
from decentral.engine import Engine, run_now

SOON = 30  # seconds; only a failure takes so long
MADE = []  # the messages of this test


class Message:
    """What a task waits for; it is there as soon as arrive() is called."""

    def __init__(self):
        self._here = threading.Event()
        MADE.append(self)

    def arrive(self):
        self._here.set()

    @property
    def complete(self):
        return self._here.is_set()

    def poll(self):
        return False

    def wait(self):
        assert self._here.wait(SOON)


class Fails:
    complete = False

    def poll(self):
        raise ConnectionError("cable cut")


def arrived():
    message = Message()
    message.arrive()
    return message


def make(threaded=True):
    """Return an engine of rank 3; all that it asks of a communicator are these three."""
    return Engine(SimpleNamespace(rank=3, spins=0, threaded=threaded))


@pytest.fixture(autouse=True)
def _no_thread_waits_for_ever():
    yield
    for message in MADE:
        message.arrive()
    MADE.clear()


@pytest.fixture(params=(True, False), ids=("thread", "no thread"))
def engine(request):
    return make(request.param)


def waits_for(*messages, log=None, name=None, result=None):
    """Return a task that notes each of its segments in the log."""
    for i, message in enumerate(messages):
        if log is not None:
            log.append((name, i))
        yield message
    if log is not None:
        log.append((name, len(messages)))
    return result


def test_run_now_waits_and_returns_the_result():
    log = []
    assert run_now(waits_for(arrived(), arrived(), log=log, name="a", result=7)) == 7
    assert log == [("a", 0), ("a", 1), ("a", 2)]


def test_a_task_s_result(engine):
    tasks = [
        engine.submit(waits_for(arrived(), result="two"), "two segments"),
        engine.submit(waits_for(result="one"), "nothing to wait for"),
    ]
    engine.wait(*tasks)
    assert [task.result for task in tasks] == ["two", "one"]
    assert all(task.done and task.begun for task in tasks)


def test_a_later_task_finishes_while_an_earlier_one_waits(engine):
    log, late = [], Message()
    first = engine.submit(waits_for(late, log=log, name="first"), "first")
    second = engine.submit(waits_for(arrived(), arrived(), log=log, name="second"), "second")
    engine.wait(second)
    assert second.done and not first.done
    late.arrive()
    engine.wait(first)
    assert log == [("first", 0), ("second", 0), ("second", 1), ("second", 2), ("first", 1)]


def test_two_tasks_that_wait_in_turn_are_both_driven(engine):
    """Neither can end before the other has gone on, as two ranks' halves of an exchange."""
    ping, pong = Message(), Message()

    def one():
        yield ping
        pong.arrive()

    def other():
        ping.arrive()
        yield pong

    engine.wait(engine.submit(one(), "one"), engine.submit(other(), "other"))


def test_first_segments_run_in_the_order_of_submission(engine):
    """What all ranks have to call in the same order stands in them; messages come in any order."""
    log, messages = [], [Message() for _ in range(20)]
    tasks = [
        engine.submit(waits_for(message, log=log, name=i), f"task {i}")
        for i, message in enumerate(messages)
    ]
    for message, task in reversed(list(zip(messages, tasks, strict=True))):
        message.arrive()
        engine.wait(task)
    assert [entry for entry in log if entry[1] == 0] == [(i, 0) for i in range(20)]
    assert [entry for entry in log if entry[1] == 1] == [(i, 1) for i in reversed(range(20))]


def test_a_thread_goes_on_without_anybody_waiting():
    engine, ran_in = make(), []
    finished = threading.Event()

    def task():
        yield arrived()
        ran_in.append(threading.current_thread())
        finished.set()

    engine.submit(task(), "a task")
    assert finished.wait(SOON)
    assert ran_in[0] is not threading.main_thread() and ran_in[0].daemon


def test_without_threads_the_caller_does_the_work_when_it_waits():
    engine, log = make(threaded=False), []

    def task():
        log.append(threading.current_thread())
        yield arrived()

    submitted = engine.submit(task(), "a task")
    assert log == [] and not submitted.begun
    engine.wait(submitted)
    assert log == [threading.current_thread()]


@pytest.mark.parametrize("others", (0, 2))
def test_an_exception_reaches_every_wait_from_then_on(engine, others):
    waiting = [engine.submit(waits_for(Message()), "waits") for _ in range(others)]

    def task():
        yield arrived()
        raise KeyError("lost")

    broken = engine.submit(task(), "step 7, bucket 2")
    with pytest.raises(KeyError, match="lost") as caught:
        engine.wait(broken)
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["decentral: rank 3, step 7, bucket 2"]
    for call in (
        engine.drain,
        engine.wait_for_begin,
        lambda: engine.wait(*waiting),
        lambda: engine.wait(engine.submit(waits_for(arrived()), "afterwards")),
    ):
        with pytest.raises(KeyError) as again:
            call()
        assert again.value is caught.value


def test_of_one_communicator_one_operation_is_polled_in_a_pass(engine):
    """Which makes progress with all of them, in one call of MPI's."""
    polls, messages = [], [Message() for _ in range(5)]

    def poll():
        polls.append(None)
        if len(polls) == 3:
            for message in messages:
                message.arrive()
        return False

    for message in messages:
        message.poll = poll
        engine.submit(waits_for(message), "a task")
    engine.drain()
    assert 3 <= len(polls) <= 4  # a task that came after the others' pass may be polled for once


def test_an_operation_that_fails_is_an_exception_of_its_task(engine):
    engine.submit(waits_for(Fails()), "a task")
    with pytest.raises(ConnectionError, match="cable cut"):
        engine.drain()


def test_a_wait_that_is_under_way_is_woken_by_another_task_s_exception():
    engine, go_on = make(), Message()

    def broken():
        yield go_on
        raise KeyError("lost")

    never = engine.submit(waits_for(Message()), "never complete")
    engine.submit(broken(), "broken")
    caught = []

    def wait():
        try:
            engine.wait(never)
        except KeyError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    go_on.arrive()
    waiter.join(SOON)
    assert len(caught) == 1


def test_wait_for_begin_is_not_for_the_messages(engine):
    log = []
    tasks = [engine.submit(waits_for(Message(), log=log, name=i), f"task {i}") for i in range(3)]
    engine.wait_for_begin()
    assert log == [(0, 0), (1, 0), (2, 0)]
    assert all(task.begun and not task.done for task in tasks)
    make().wait_for_begin()  # and returns where nothing is under way


def test_wait_for_begin_waits():
    engine, may_begin, log = make(), threading.Event(), []

    def task():
        assert may_begin.wait(SOON)
        log.append("begun")
        yield Message()

    engine.submit(task(), "a task")
    waiter = threading.Thread(
        target=lambda: (engine.wait_for_begin(), log.append("returned")), daemon=True
    )
    waiter.start()
    may_begin.set()
    waiter.join(SOON)
    assert log == ["begun", "returned"]


def test_the_thread_ends_when_idle_and_another_takes_over(monkeypatch):
    monkeypatch.setattr(decentral.engine, "_IDLE_S", 1e-3)
    engine, threads = make(), []

    def task():
        threads.append(threading.current_thread())
        yield arrived()

    for _ in range(2):
        engine.wait(engine.submit(task(), "a task"))
        threads[-1].join(SOON)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


def test_no_task_is_lost_where_the_thread_ends_and_starts_all_the_time(monkeypatch):
    monkeypatch.setattr(decentral.engine, "_IDLE_S", 0.0)
    engine = make()
    for i in range(500):
        task = engine.submit(waits_for(arrived(), result=i), f"task {i}")
        engine.wait(task)
        assert task.result == i


def test_what_is_under_way_when_the_script_ends_is_finished(engine):
    messages = [arrived(), Message()]
    task = engine.submit(waits_for(*messages), "the last step")
    messages[1].arrive()
    decentral.engine._end(weakref.ref(engine))
    assert task.done


def test_the_end_of_the_script_waits_only_for_so_long_and_ends_the_thread(engine):
    task = engine.submit(waits_for(Message()), "a step that no other rank does")
    engine.end(timeout=0.01)
    assert not task.done
    assert engine._thread is None or not engine._thread.is_alive()


def test_the_end_is_not_held_up_by_what_has_failed(engine):
    engine.submit(waits_for(Fails()), "a task")
    with pytest.raises(ConnectionError):
        engine.drain()
    engine.end(timeout=SOON)
    assert engine._thread is None or not engine._thread.is_alive()


def test_an_engine_that_is_gone_has_nothing_to_end():
    engine = make()
    reference = weakref.ref(engine)
    del engine
    assert reference() is None
    decentral.engine._end(reference)
