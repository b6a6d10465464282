"""What every Communicator keeps of parts, means, and operations that are tested, not waited for."""

import time

import numpy as np
import torch
from communicator_contract import everyone_agrees, finish_exchange, ring_neighbors, start_exchange


def drive(*operations):
    """Poll operations in turn until all are complete."""
    while not all(operation.complete for operation in operations):
        for operation in operations:
            operation.poll()
        time.sleep(0)


def check_split_keeps_the_order_of_ranks(comm):
    for colors in ([0] * comm.size, [r % 2 for r in range(comm.size)], list(range(comm.size))):
        part = comm.split(colors[comm.rank])
        mine = [r for r in range(comm.size) if colors[r] == colors[comm.rank]]
        right = (part.size, part.rank) == (len(mine), mine.index(comm.rank))
        seen = part.all_gather_object(comm.rank)
        details = f"{part.rank} of {part.size}, ranks {seen} instead of {mine}"
        everyone_agrees(comm, (right and seen == mine, details), "split")


def check_a_part_s_messages_stay_in_it(comm):
    """The same tag serves in the part and in the whole at once."""
    part = comm.split(comm.rank % 2)
    whole = start_exchange(comm, comm.everyone_else(), 3, 1000)
    inside = start_exchange(part, part.everyone_else(), 3, 33)
    finish_exchange(part, inside, 3, 33)
    finish_exchange(comm, whole, 3, 1000)


def check_a_part_of_a_part(comm):
    half = comm.split(comm.rank % 2)
    alone = half.split(half.rank)
    right = (alone.rank, alone.size) == (0, 1)
    vector = np.full(3, comm.rank, np.float32)
    alone.all_reduce(vector).wait()
    right = right and vector.tolist() == [comm.rank] * 3
    everyone_agrees(comm, (right, f"{alone.rank} of {alone.size}, {vector}"), "a part of a part")


def check_what_a_part_sends_counts_in_the_whole_too(comm):
    part = comm.split(comm.rank % 2)
    half = part.split(0)
    before = comm.bytes_sent, part.bytes_sent, half.bytes_sent
    start_exchange(half, half.everyone_else(), 1, 100)[2].wait()
    start_exchange(comm, comm.everyone_else(), 1, 10)[2].wait()
    after = comm.bytes_sent, part.bytes_sent, half.bytes_sent
    sent = [b - a for a, b in zip(before, after, strict=True)]
    inside, outside = (part.size - 1) * (32 + 100), (comm.size - 1) * (32 + 10)
    expected = [inside + outside, inside, inside]
    everyone_agrees(comm, (sent == expected, f"{sent} instead of {expected}"), "bytes of a part")


def check_ranks_of_a_host_are_local_in_a_part(comm):
    part = comm.split(comm.hosts[comm.rank])
    right = set(part.hosts) == {0} or set(part.hosts) == {comm.hosts[comm.rank]}
    right = right and (part.local_rank, part.local_size) == (part.rank, part.size)
    details = f"hosts {part.hosts}, {part.local_rank} of {part.local_size} here"
    everyone_agrees(comm, (right, details), "a part on one host")


def check_the_mean_is_the_sum_divided(comm):
    for kind in (np.array, torch.tensor):
        for numel in (0, 1, 1000, 100_000):  # the last one is large enough for a ring
            vector = kind(np.arange(numel, dtype=np.float32) + comm.rank)
            pending = comm.all_reduce(vector, mean=True)
            pending.wait()
            expected = np.arange(numel) + (comm.size - 1) / 2
            error = np.abs(np.asarray(vector) - expected).max(initial=0)
            right = error <= 1e-6 * max(1, numel)
            everyone_agrees(comm, (bool(right), f"{numel}: off by {error}"), "mean")
            results = comm.all_gather_object(np.asarray(vector).tobytes())
            assert results == [results[0]] * comm.size, f"{numel} coordinates: ranks differ"


def check_a_large_sum_goes_in_segments(comm):
    """Longer than a ring's segment, and of no round length."""
    base = (np.arange(1_600_001) % 97).astype(np.float32)
    vector = base * (comm.rank + 1)
    comm.all_reduce(vector).wait()
    wrong = np.flatnonzero(vector != base * (comm.size * (comm.size + 1) // 2))
    everyone_agrees(comm, (not len(wrong), f"wrong at {wrong[:3]}"), "a large sum")


def check_operations_may_be_tested_until_they_are_complete(comm):
    """As the engine does, with small and large sums and an exchange at once."""
    small, large = (np.full(n, comm.rank + 1, np.float32) for n in (100, 100_000))
    integers = np.full(200_000, 1, np.int8)
    started = start_exchange(comm, ring_neighbors(comm), 5, 5000)
    sums = [comm.all_reduce(v) for v in (small, large, integers)]
    drive(started[2], *sums)
    total = comm.size * (comm.size + 1) // 2
    right = all((v == total).all() for v in (small, large)) and (integers == comm.size).all()
    details = f"{small}, {large}, {integers}"
    everyone_agrees(comm, (bool(right), details), "tested sums")
    complete = all(operation.complete for operation in (started[2], *sums))
    everyone_agrees(comm, (complete, "a later test says no"), "tested again")
    finish_exchange(comm, started, 5, 5000)


def check_large_sums_complete_in_either_order(comm):
    """Half of the ranks wait for the second one first; each needs the others to go on with both."""
    for dtype in (np.float32, np.int32):
        vectors = [np.full(n, comm.rank, dtype) for n in (90_000, 700_000)]
        pending = [comm.all_reduce(v) for v in vectors]
        for i in (0, 1) if comm.rank % 2 else (1, 0):
            pending[i].wait()
        right = all((v == sum(range(comm.size))).all() for v in vectors)
        everyone_agrees(comm, (bool(right), f"{vectors}"), "sums in either order")
