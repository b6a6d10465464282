"""The engine's thread: it ends when idle, and with the script."""

import threading
import weakref

import pytest
from engine_cases import SOON, Fails, Message, arrived, make, waits_for

import decentral.engine


@pytest.fixture(params=(True, False), ids=("thread", "no thread"))
def engine(request):
    return make(request.param)


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


class Rests(Message):
    """One whose kind of rest lasts until the bell rings."""

    resting = threading.Event()

    @classmethod
    def rest(cls, bell, pauses):
        cls.resting.set()
        assert bell.sleep(SOON)


def test_a_task_that_is_new_and_who_begins_to_wait_end_a_rest():
    engine = make()
    Rests.resting.clear()
    first, second = Rests(), arrived()
    engine.submit(waits_for(first), "a task")
    assert Rests.resting.wait(SOON)
    first.arrive()
    engine.wait(engine.submit(waits_for(second), "another"))
    engine.drain()


def test_where_tasks_wait_for_different_things_nobody_rests_for_one_of_them():
    engine, one, other = make(), Rests(), Message()
    task = engine.submit(waits_for(other), "no rest")
    Rests.resting.clear()
    engine.submit(waits_for(one), "a rest")
    other.arrive()
    engine.wait(task)
    one.arrive()
    engine.drain()


def test_a_bell_that_rang_ends_the_next_sleep_once():
    bell = decentral.engine.Bell()
    bell.ring()
    bell.ring()
    assert bell.sleep(60.0)
    assert not bell.sleep(1e-3)
    bell.ring()
    bell.hush()
    bell.hush()
    assert not bell.sleep(1e-3)
    threading.Timer(1e-2, bell.ring).start()
    assert bell.sleep(60.0)
