"""Tasks on a GPU: after what the training thread has queued, in turn, on a stream of their own.

Streams and events are fakes here, which write down what they are asked for.
"""

import threading
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from engine_cases import arrived, make

import decentral
from decentral.communicators import run_local
from decentral.payload import Wire
from decentral.streams import Side

GPU = torch.device("cuda", 0)
VECTOR = SimpleNamespace(is_cuda=True, device=GPU)


class Stream:
    def __init__(self, name, log):
        self.name, self._log = name, log

    def wait_event(self, event):
        self._log.append(f"{self.name} waits for {event.name}")

    def wait_stream(self, other):
        self._log.append(f"{self.name} waits for {other.name}")


class Event:
    """An event, complete when a test says so."""

    def __init__(self, name, log):
        self.name, self._log, self.done, self.queries = name, log, False, 0

    def record(self, stream):
        self.done = False
        self._log.append(f"{stream.name} records {self.name}")

    def query(self):
        self.queries += 1
        return self.done

    def synchronize(self):
        self._log.append(f"host waits for {self.name}")
        self.done = True


class FakeCuda:
    """What torch.cuda is asked for; `events` are in the order in which they were made."""

    def __init__(self, monkeypatch):
        self.log, self.events, self.switched, self.made = [], [], [], 0
        self.current = Stream("training", self.log)
        monkeypatch.setattr(torch.cuda, "Stream", self._stream)
        monkeypatch.setattr(torch.cuda, "Event", self._event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._switch)

    def _stream(self, device):
        self.made += 1
        return Stream(f"side {self.made}", self.log)

    def _event(self):
        self.events.append(Event(f"event {len(self.events)}", self.log))
        return self.events[-1]

    def _switch(self, stream):
        fake = self

        class Switched:
            def __enter__(self):
                self.before, fake.current = fake.current, stream
                fake.switched.append(stream.name)

            def __exit__(self, *_):
                fake.current = self.before

        return Switched()


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def working(cuda, name="task"):
    cuda.log.append(f"{name} on {cuda.current.name}")
    yield arrived()
    cuda.log.append(f"{name} on {cuda.current.name}")
    return name


def test_on_the_cpu_a_task_is_left_alone():
    steps, side = working(None), Side()
    assert side.task(steps, torch.ones(1), turns=True) is steps
    side.join()


def test_a_task_works_beside_and_after_the_training_stream(cuda):
    side, engine = Side(), make(threaded=False)
    task = engine.submit(side.task(working(cuda), VECTOR), "a task")
    engine.wait(task)
    assert task.result == "task"
    side.join()
    assert cuda.log == [
        "training records event 0",
        "side 1 waits for event 0",
        "task on side 1",
        "task on side 1",
        "training waits for side 1",
    ]
    assert cuda.current.name == "training"


def test_tasks_of_a_gpu_share_a_stream(cuda):
    side, engine = Side(), make(threaded=False)
    engine.wait(*[engine.submit(side.task(working(cuda), VECTOR), "a task") for _ in range(2)])
    assert cuda.made == 1


def test_a_task_takes_its_turn_when_the_gpu_has_come_so_far(cuda):
    side, engine = Side(), make(threaded=False)
    tasks = [
        engine.submit(side.task(working(cuda, name), VECTOR, turns=True), name) for name in "ab"
    ]
    cuda.events[1].done = True  # which no stream would say before the first
    engine._pass()
    assert not any("task" in entry or " on " in entry for entry in cuda.log)
    cuda.events[0].done = True
    engine.wait(*tasks)
    assert [entry for entry in cuda.log if " on " in entry] == ["a on side 1"] * 2 + [
        "b on side 1"
    ] * 2


def test_an_error_in_a_task_is_raised_by_those_who_wait(cuda):
    def fails():
        raise ConnectionError("gone")
        yield

    engine = make(threaded=False)
    with pytest.raises(ConnectionError, match="gone"):
        engine.wait(engine.submit(Side().task(fails(), VECTOR), "a task"))
    assert cuda.current.name == "training"


@pytest.fixture
def wire(cuda, monkeypatch):
    """A Wire over memory that passes for a GPU's, with a copy that passes for pinned."""
    monkeypatch.setattr("decentral.payload.as_array", lambda array: array)
    monkeypatch.setattr(Wire, "_mirror", _mirror)
    return Wire(torch.arange(5, dtype=torch.uint8))


def _mirror(self):
    if self._pinned is None:
        self._pinned = torch.zeros_like(self.array)
    return self._pinned


def test_a_staged_buffer_is_ready_when_its_copy_is_complete(cuda, wire):
    buffer = wire.outgoing(False, nbytes=3)
    assert buffer.tolist() == [0, 1, 2]
    assert cuda.log == ["training records event 0"] and not wire.ready
    cuda.events[0].done = True
    assert wire.ready
    wire.wait()
    assert cuda.log[-1] == "host waits for event 0"


def test_device_memory_itself_is_ready_when_the_stream_has_come_so_far(cuda, wire):
    assert wire.outgoing(True).data_ptr() == wire.array.data_ptr()
    assert not wire.ready
    assert wire.incoming(True).data_ptr() == wire.array.data_ptr()
    assert cuda.log == ["training records event 0"] * 2 and not wire.ready


def test_what_landed_is_brought_over_on_the_stream_that_posted_it(cuda, wire):
    cuda.current = Stream("side", cuda.log)
    buffer = wire.incoming(False)
    assert wire.ready  # nothing has ever left the pinned memory
    buffer[:] = 7
    cuda.current = Stream("polling", cuda.log)
    wire.landed(False, nbytes=2)
    assert cuda.switched == ["side"]
    assert wire.array.tolist() == [7, 7, 2, 3, 4]
    assert cuda.log == ["side records event 0"]
    wire.incoming(False)
    assert not wire.ready  # MPI must not write before what landed has left


@pytest.mark.parametrize(
    ("name", "options"),
    [("allreduce", {}), ("allreduce", {"local_steps": 2}), ("choco-sgd", {}), ("ecd-psgd", {})],
)
def test_training_goes_on_after_its_tasks(monkeypatch, name, options):
    logs = defaultdict(list)  # by training thread

    def task(self, steps, vector, turns=False):
        logs[threading.get_ident()].append("task")
        return steps

    monkeypatch.setattr(Side, "task", task)
    monkeypatch.setattr(Side, "join", lambda self: logs[threading.get_ident()].append("join"))

    def rank(comm):
        model = torch.nn.Linear(50, 50)
        sgd = torch.optim.SGD(model.parameters(), 0.1)
        how = decentral.algorithms.from_name(name)
        opt = decentral.DistributedOptimizer(sgd, model, how, comm, bucket_cap_mb=0.005, **options)
        for _ in range(2):
            model(torch.ones(1, 50)).sum().backward()
            opt.step()
        log = list(logs[threading.get_ident()])
        opt.state_dict()
        return len(opt._buckets), log, logs[threading.get_ident()][-1]

    steps = 2 // options.get("local_steps", 1)
    for buckets, log, last in run_local(2, rank):
        assert buckets > 1 and log.count("task") == steps * buckets
        assert last == "join"  # before state is read
        if name != "ecd-psgd":  # whose messages travel during the next step
            assert log[-1] == "join"
        else:
            assert log[-2:] == ["join", "task"]
