"""Turns, mailboxes and collectives of ranks in one thread."""

import numpy as np
import pytest
import torch

from decentral.communicators.base import all_reduce_nbytes
from decentral.payload import Payload
from decentral.simulate.communicator import SimulatedCommunicator, World, take_turns


def ranks(size):
    world = World(size)
    return [SimulatedCommunicator(world, rank) for rank in range(size)]


def message(text):
    return Payload(np.frombuffer(text.encode(), np.uint8).copy())


def text(payload):
    return bytes(payload.buffer).decode()


def empty(capacity=8):
    return Payload(np.zeros(capacity, np.uint8))


def test_a_message_goes_around_a_ring_in_turns():
    def task(comm):
        left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        said = str(comm.rank)
        for _ in range(2):
            inbox = empty()
            yield comm.exchange({right: message(said)}, {left: inbox}, tag=0)
            said += text(inbox)
        return said

    comms = ranks(4)
    assert take_turns([task(c) for c in comms]) == ["0332", "1003", "2110", "3221"]
    assert [c.bytes_sent for c in comms] == [1 + 2] * 4


def test_targets_may_be_others_than_sources():
    def task(comm):
        inbox = {0: empty()} if comm.rank == 2 else {}
        yield comm.exchange({2: message("ab")} if comm.rank == 0 else {}, inbox, tag=1)
        return [text(p) for p in inbox.values()]

    comms = ranks(3)
    assert take_turns([task(c) for c in comms]) == [[], [], ["ab"]]
    assert [c.bytes_sent for c in comms] == [2, 0, 0]


def test_one_payload_goes_to_all_and_may_be_overwritten_then():
    def task(comm):
        own, inbox = message(str(comm.rank)), {j: empty() for j in comm.everyone_else()}
        arrival = comm.exchange(own, inbox, tag=0)
        own.buffer[:] = 0
        yield arrival
        return "".join(map(text, inbox.values()))

    comms = ranks(3)
    assert take_turns([task(c) for c in comms]) == ["12", "02", "01"]
    assert [c.bytes_sent for c in comms] == [2] * 3


def test_messages_of_a_tag_do_not_overtake_each_other():
    def task(comm):
        other, first, second = 1 - comm.rank, empty(), empty()
        if comm.rank == 0:
            comm.exchange(message("a"), {other: empty()}, tag=0)
        pending = comm.exchange(message("b"), {other: first}, tag=0)
        yield pending
        if comm.rank == 1:
            yield comm.exchange({}, {other: second}, tag=0)
        return text(first)

    assert take_turns([task(c) for c in ranks(2)]) == ["b", "a"]


@pytest.mark.parametrize("mean", (False, True))
def test_all_reduce_adds_in_the_order_of_ranks(mean):
    values = [np.array([1e8, 1], np.float32), np.array([-1e8, 2], np.float32)]
    values.append(np.array([0.5, 3], np.float32))

    def task(comm):
        vector = torch.from_numpy(values[comm.rank].copy())
        yield comm.all_reduce(vector, mean=mean)
        return vector.tolist()

    comms = ranks(3)
    total = [0.5, 6.0] if not mean else (np.array([0.5, 6], np.float32) / np.float32(3)).tolist()
    assert take_turns([task(c) for c in comms]) == [total] * 3
    assert [c.bytes_sent for c in comms] == [all_reduce_nbytes(8, 3)] * 3


def test_collectives_pair_up_by_their_order():
    def task(comm):
        largest = comm.maximum(comm.rank / 3)
        vector = np.full(2, comm.rank, np.int8)
        added = comm.all_reduce(vector)
        yield largest
        yield added
        return largest.value, vector.tolist()

    comms = ranks(3)
    assert take_turns([task(c) for c in comms]) == [(float(np.float32(2 / 3)), [3, 3])] * 3


def test_a_message_that_does_not_fit_is_refused():
    def task(comm):
        yield comm.exchange(message("long"), {1 - comm.rank: empty(3)}, tag=0)

    with pytest.raises(ValueError, match="4 bytes do not fit its 3"):
        take_turns([task(c) for c in ranks(2)])


def test_ranks_that_wait_for_ever_are_named():
    def task(comm):
        yield comm.exchange({}, {j: empty() for j in ((1,) if comm.rank == 0 else ())}, tag=0)

    with pytest.raises(RuntimeError, match=r"rank 0 of 2 wait for messages that no rank sends"):
        take_turns([task(c) for c in ranks(2)])


def test_what_would_wait_is_refused_with_the_remedy():
    comm = ranks(2)[0]
    match = "waits for other ranks.*expected tasks that yield.*run_local"
    for call in (
        lambda: comm.split(0),
        lambda: comm.all_reduce_max(1.0),
        lambda: comm.broadcast(np.zeros(1, np.uint8)),
        lambda: comm.all_gather_object(1),
        lambda: comm.barrier(),
        lambda: comm.exchange(message("a"), {1: empty()}, 0).wait(),
        lambda: comm.all_reduce(np.zeros(1, np.float32)).wait(),
        lambda: comm.maximum(1.0).wait(),
    ):
        with pytest.raises(NotImplementedError, match=match):
            call()
