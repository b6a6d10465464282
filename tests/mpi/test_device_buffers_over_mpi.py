"""What is peculiar to device memory, over real MPI: who asks, and messages that are not ready."""

import numpy as np
import pytest

from decentral.communicators import as_communicator, mpi, probe
from decentral.payload import Payload, Wire

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def comm():
    return as_communicator()


def never():
    raise AssertionError("tried, though the library does not say that it is CUDA-aware")


def test_the_wheels_of_pypi_are_not_cuda_aware(comm, monkeypatch):
    monkeypatch.delenv("DECENTRAL_CUDA_AWARE", raising=False)
    assert probe._loaded("libmpi") is not None
    comm.ask_for_device_direct(never)
    assert not comm.device_direct


def test_one_rank_of_a_host_tries_and_all_get_its_answer(comm, monkeypatch):
    asked = []

    def cuda_aware(arrives):
        asked.append(arrives())
        return asked[-1]

    monkeypatch.setattr(mpi, "cuda_aware", cuda_aware)
    part = comm.split(0)
    for answer in (True, False):
        part.ask_for_device_direct(lambda answer=answer: answer)
        assert part.device_direct is answer
        assert part.split(0).device_direct is answer
    assert asked == ([True, False] if comm.local_rank == 0 else [])


@pytest.fixture
def slow(monkeypatch):
    """Let every buffer be ready only when it is asked for the fourth time."""
    asked = {}

    def ready(wire):
        count, _ = asked.get(id(wire), (0, None))
        asked[id(wire)] = count + 1, wire
        return count >= 3

    monkeypatch.setattr(Wire, "ready", property(ready))
    return asked


def message(rank, step):
    payload = Payload.empty(1 << 16)
    payload.write_header(7, step, 0, 1)
    payload.body[:] = rank
    return payload


def test_messages_go_when_they_are_ready(comm, slow):
    others = comm.everyone_else()
    for step in range(3):
        received = {j: Payload.empty(1 << 16) for j in others}
        pending = comm.exchange(message(comm.rank, step), received, tag=step % 2)
        assert not pending.complete
        pending.wait()
        for j, payload in received.items():
            assert payload.header().step == step and (payload.body == j).all()
    assert len(slow) == 3 * comm.size


@pytest.mark.parametrize("numel", [5, 1 << 17])
def test_sums_begin_when_the_vector_is_ready(comm, slow, numel):
    vectors = [np.full(numel, comm.rank + k, np.float32) for k in range(2)]
    pending = [comm.all_reduce(v) for v in vectors]
    for p in reversed(pending):
        p.wait()
    for k, v in enumerate(vectors):
        assert (v == sum(range(comm.size)) + k * comm.size).all()
