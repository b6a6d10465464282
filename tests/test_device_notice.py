"""How device buffers travel is said once, on rank 0, and only where there are any."""

from types import SimpleNamespace

import pytest

from decentral import startup

CUDA, CPU = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    startup._say.cache_clear()
    yield
    startup._say.cache_clear()


def comm(rank=0, size=2, device_direct=False):
    return SimpleNamespace(rank=rank, size=size, device_direct=device_direct)


@pytest.mark.parametrize(
    ("direct", "words"), [(False, "stages device buffers through pinned"), (True, "to MPI")]
)
def test_said_once(caplog, direct, words):
    for _ in range(2):
        startup.say_how_device_buffers_travel(comm(device_direct=direct), [CPU, CUDA])
    assert len(caplog.messages) == 1 and words in caplog.messages[0]


@pytest.mark.parametrize(
    ("where", "tensors"), [(comm(rank=1), [CUDA]), (comm(size=1), [CUDA]), (comm(), [CPU])]
)
def test_not_said(caplog, where, tensors):
    startup.say_how_device_buffers_travel(where, tensors)
    assert not caplog.messages
