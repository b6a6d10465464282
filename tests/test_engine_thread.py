"""The engine's thread: it ends when idle, and with the script."""

import threading
import time
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


class Owner:
    """Rests until the bell rings, and remembers who did so together."""

    def __init__(self):
        self.begun, self.together = threading.Event(), set()

    def rest(self, bell, pauses, others):
        self.together = {self, *others}
        self.begun.set()
        assert bell.sleep(SOON)


class Owned(Message):
    def __init__(self, owner):
        super().__init__()
        self.owner = owner


def test_a_new_task_and_who_begins_to_wait_end_a_rest():
    engine, owner = make(), Owner()
    message = Owned(owner)
    engine.submit(waits_for(message), "a task")
    assert owner.begun.wait(SOON)
    message.arrive()
    engine.wait(engine.submit(waits_for(arrived()), "another"))
    engine.drain()


def test_owners_of_what_tasks_wait_for_rest_together():
    engine, one, other = make(), Owner(), Owner()
    messages = [Owned(one), Owned(one), Owned(other)]
    for message in messages:
        engine.submit(waits_for(message), "a task")
    engine._bell.ring()
    while max(len(one.together), len(other.together)) < 2:
        time.sleep(1e-3)
    for message in messages:
        message.arrive()
    engine.drain()


def test_nobody_rests_where_a_task_waits_for_what_has_no_owner():
    engine, owner, plain = make(), Owner(), Message()
    task = engine.submit(waits_for(plain), "no rest")
    message = Owned(owner)
    engine.submit(waits_for(message), "a rest")
    plain.arrive()
    engine.wait(task)
    message.arrive()
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
