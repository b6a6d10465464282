"""What every Communicator keeps of integers, maxima, and messages of varying length."""

import numpy as np
import pytest
from communicator_contract import everyone_agrees, ring_neighbors, same_message

from decentral.payload import HEADER_NBYTES, Payload

NUMELS = (0, 1, 2, 7, 1000, 70_001)  # fewer than ranks, and more than a socket takes at once


def integers(rank, numel, dtype, size):
    """Return the extremes that `size` ranks may send, and what lies between, by rank."""
    limit = np.iinfo(dtype)
    low, high = -(-int(limit.min) // size), int(limit.max) // size
    rng = np.random.default_rng([rank, numel])
    values = rng.integers(low, high, numel, endpoint=True, dtype=np.int64)
    values[: numel // 3] = high
    values[numel // 3 : numel // 2] = low
    return values.astype(dtype)


def check_integers_add_exactly(comm):
    for dtype in (np.int8, np.int32):
        for numel in NUMELS:
            vector = integers(comm.rank, numel, dtype, comm.size)
            before = comm.bytes_sent
            comm.all_reduce(vector).wait()
            sent = comm.bytes_sent - before
            parts = [integers(r, numel, dtype, comm.size) for r in range(comm.size)]
            expected = np.sum(parts, axis=0, dtype=np.int64)
            right = (vector == expected).all() and vector.dtype == dtype
            nbytes = 2 * (comm.size - 1) * vector.nbytes // comm.size
            details = f"{numel} {dtype.__name__}: {sent} bytes instead of {nbytes}"
            everyone_agrees(comm, (bool(right) and sent == nbytes, details), "sum of integers")


def check_a_sum_may_stay_under_way_meanwhile(comm):
    """Two sums and an exchange at once do not mix, whatever the order of the waits."""
    peers = ring_neighbors(comm)
    one, other = (np.full(n, comm.rank + 1, np.int8) for n in (1000, 10))
    first, second = comm.all_reduce(one), comm.all_reduce(other)
    send = variable_message(comm.rank, 500, 500)
    receive = {j: Payload.empty(500) for j in peers}
    exchange = comm.exchange(send, receive, 4)
    for pending in (first, exchange, second):
        pending.wait()
        pending.wait()  # a second wait changes nothing
    total = comm.size * (comm.size + 1) // 2
    right = set(one.tolist()) == set(other.tolist()) == {total}
    everyone_agrees(comm, (right, f"{one[:3]}, {other[:3]}"), "sums under way")


def check_all_reduce_max(comm):
    for values in ([float(r) for r in range(comm.size)], [-1.5] * comm.size, [2.0**-140, 3e38]):
        mine = values[comm.rank % len(values)]
        got = comm.all_reduce_max(mine)
        everyone = comm.all_gather_object(mine)
        expected = max(np.float32(everyone).tolist())
        everyone_agrees(comm, (got == expected, f"{got}, expected {expected}"), "maximum")


def variable_message(source, body, capacity):
    """Return a payload with room for `capacity` bytes whose message takes `body` of them."""
    payload = Payload.empty(capacity)
    payload.resize(HEADER_NBYTES + body)
    payload.write_header(configuration=source, step=1, bucket=1, numel=body)
    payload.body[:] = (np.arange(body) * 7 + 31 * source + 101) % 251
    return payload


def check_messages_of_varying_length(comm):
    """Longer and shorter ones after each other, into the same buffers; only what counts travels."""
    capacity = 3000
    receive = {j: Payload.empty(capacity) for j in comm.everyone_else()}
    for turn, factor in enumerate((1, 100, 0, 300, 7)):
        bodies = [min(capacity, factor * (r + 1)) for r in range(comm.size)]
        before = comm.bytes_sent
        send = variable_message(comm.rank, bodies[comm.rank], capacity)
        comm.exchange(send, receive, turn % 2).wait()
        sent = comm.bytes_sent - before
        wrong = [
            j
            for j, p in receive.items()
            if p.nbytes != HEADER_NBYTES + bodies[j] or not same_message(p, j, 1, bodies[j])
        ]
        right = not wrong and sent == (comm.size - 1) * send.nbytes
        everyone_agrees(comm, (right, f"turn {turn}: wrong from {wrong}, {sent}"), "lengths")


def check_each_rank_gets_its_own(comm):
    """A message for each target, as a reduce-scatter has them, of a length of its own."""
    receive = {j: Payload.empty(3000) for j in comm.everyone_else()}
    for turn in range(3):
        send = {
            j: variable_message(comm.rank, 100 * j + 10 * comm.rank + turn, 3000) for j in receive
        }
        before = comm.bytes_sent
        comm.exchange(send, receive, 5).wait()
        sent = comm.bytes_sent - before
        body = {j: 100 * comm.rank + 10 * j + turn for j in receive}
        wrong = [j for j, p in receive.items() if not same_message(p, j, 1, body[j])]
        right = not wrong and sent == sum(p.nbytes for p in send.values())
        everyone_agrees(comm, (right, f"turn {turn}: wrong from {wrong}, {sent}"), "each its own")


def check_resize_refuses_what_does_not_fit(comm):
    payload = Payload.empty(10)
    for nbytes in (-1, 43):
        with pytest.raises(ValueError, match=f"{nbytes} bytes do not fit its 42"):
            payload.resize(nbytes)
    assert payload.nbytes == payload.capacity == 42
