"""How device buffers travel is said once, on rank 0, and only where there are any."""

from types import SimpleNamespace

import pytest
import torch

from decentral import startup

CUDA = SimpleNamespace(is_cuda=True, device="cuda:0")
CPU = SimpleNamespace(is_cuda=False)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    startup._say.cache_clear()
    yield
    startup._say.cache_clear()


class Comm:
    """One of several ranks, whose MPI takes device memory if that is tried."""

    def __init__(self, rank=0, size=2, direct=False):
        self.rank, self.size, self.direct = rank, size, direct
        self.device_direct, self.asked = False, 0

    def ask_for_device_direct(self, arrives):
        self.asked += 1
        self.device_direct = self.direct


@pytest.mark.parametrize(
    ("direct", "words"), [(False, "stages device buffers through pinned"), (True, "to MPI")]
)
def test_said_once(caplog, direct, words):
    for _ in range(2):
        startup.agree_how_device_buffers_travel(Comm(direct=direct), [CPU, CUDA])
    assert len(caplog.messages) == 1 and words in caplog.messages[0]


def test_every_rank_asks_and_one_says_it(caplog):
    comm = Comm(rank=1, direct=True)
    startup.agree_how_device_buffers_travel(comm, [CPU, CUDA])
    assert comm.asked == 1 and comm.device_direct and not caplog.messages


@pytest.mark.parametrize(("size", "tensors"), [(1, [CUDA]), (2, [CPU])])
def test_nothing_is_asked_where_nothing_travels_from_a_gpu(caplog, size, tensors):
    comm = Comm(size=size)
    startup.agree_how_device_buffers_travel(comm, tensors)
    assert not comm.asked and not caplog.messages


def test_ranks_on_other_kinds_of_devices_are_told_apart():
    model = torch.nn.Linear(1, 1)
    named = list(model.named_parameters())
    here = dict(startup.fingerprint({}, model, named))
    elsewhere = torch.nn.Linear(1, 1, device="meta")
    there = dict(startup.fingerprint({}, elsewhere, list(elsewhere.named_parameters())))
    different = {what for what in here if here[what] != there[what]}
    assert different == {"the kind of device of 'weight'", "the kind of device of 'bias'"}
