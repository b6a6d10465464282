"""The engine: tasks that wait for messages take turns, in a thread or in wait() itself."""

import sys
import threading

import pytest
from engine_cases import MADE, SOON, Fails, Message, arrived, make, waits_for

from decentral.engine import run_now


@pytest.fixture(autouse=True)
def _no_thread_waits_for_ever():
    yield
    for message in MADE:
        message.arrive()
    MADE.clear()


@pytest.fixture(params=(True, False), ids=("thread", "no thread"))
def engine(request):
    return make(request.param)


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
        lambda: engine.wait(*waiting),
        lambda: engine.wait(engine.submit(waits_for(arrived()), "afterwards")),
    ):
        with pytest.raises(KeyError) as again:
            call()
        assert again.value is caught.value
    engine.wait_for_begin()  # which is asked before figures are read, says nothing


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
