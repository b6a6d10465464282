"""What every Communicator keeps, whatever it runs on: functions that all ranks call together.

What ranks compare goes through all_gather_object, so that all of them judge the same and none is
left waiting for one that stopped.
"""

import os
import shutil
import tempfile
import time

import numpy as np
import torch

from decentral.payload import Payload

# Bodies around nothing, one byte, and what MPI libraries send eagerly or only on request.
BODIES = (0, 1, 33, 200_000)
VECTORS = (0, 1, 5, 1000)


def everyone_agrees(comm, mine, what):
    """Assert on every rank that `mine`, (right, details), is right on all of them."""
    answers = comm.all_gather_object(mine)
    wrong = {r: details for r, (right, details) in enumerate(answers) if not right}
    assert not wrong, f"{what}: wrong on ranks {wrong}"


def ring_neighbors(comm):
    """Return the ranks to the left and right; one on a ring of two, none alone."""
    return sorted({(comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size} - {comm.rank})


def message(source, tag, body):
    """Return the payload that `source` sends: header and every byte tell whose it is."""
    payload = Payload.empty(body)
    payload.write_header(configuration=source, step=tag, bucket=tag, numel=body)
    payload.body[:] = (np.arange(body) * 7 + 31 * source + 101 * tag) % 251
    return payload


def same_message(payload, source, tag, body):
    return payload.buffer.tobytes() == message(source, tag, body).buffer.tobytes()


def start_exchange(comm, peers, tag, body):
    """Return what is sent, what is to be received, and the operation."""
    send = message(comm.rank, tag, body)
    receive = {j: Payload.empty(body) for j in peers}
    return send, receive, comm.exchange(send, receive, tag)


def finish_exchange(comm, started, tag, body):
    """Wait, and assert that every rank has what was sent to it and still has what it sent."""
    send, receive, pending = started
    pending.wait()
    wrong = [j for j, payload in receive.items() if not same_message(payload, j, tag, body)]
    intact = same_message(send, comm.rank, tag, body)
    details = f"{body} bytes, tag {tag}: wrong from {wrong}, own intact: {intact}"
    everyone_agrees(comm, (not wrong and intact, details), "exchange")


def check_ranks_and_hosts(comm):
    mine = (comm.rank, comm.size, comm.hosts, comm.local_rank, comm.local_size)
    everyone = comm.all_gather_object(mine)
    ranks, sizes, hosts, local_ranks, local_sizes = zip(*everyone, strict=True)
    assert ranks == tuple(range(comm.size)), f"ranks {ranks} of {comm.size}"
    assert set(sizes) == {comm.size}, f"sizes differ: {sizes}"
    assert set(hosts) == {comm.hosts}, f"ranks do not agree on the hosts: {hosts}"
    assert len(comm.hosts) == comm.size and set(comm.hosts) == set(range(max(comm.hosts) + 1))
    for host in set(comm.hosts):
        here = [r for r in range(comm.size) if comm.hosts[r] == host]
        assert [local_sizes[r] for r in here] == [len(here)] * len(here), f"local: {everyone}"
        assert sorted(local_ranks[r] for r in here) == list(range(len(here))), f"local: {everyone}"
    assert comm.cores_per_rank >= 1
    assert comm.everyone_else() == tuple(r for r in ranks if r != comm.rank)


def check_exchange_with_ring_neighbors(comm):
    for tag, body in enumerate(BODIES):
        finish_exchange(comm, start_exchange(comm, ring_neighbors(comm), tag, body), tag, body)


def check_exchange_with_everyone_else(comm):
    for tag, body in enumerate(BODIES):
        finish_exchange(comm, start_exchange(comm, comm.everyone_else(), tag, body), tag, body)


def check_exchange_with_no_one(comm):
    """Alone on a ring there is nobody: nothing is sent, and nothing is waited for."""
    before = comm.bytes_sent
    comm.exchange(message(comm.rank, 0, 10), {}, 0).wait()
    sent = comm.bytes_sent - before
    everyone_agrees(comm, (sent == 0, f"{sent} bytes"), "exchange with no one")


def check_a_tag_serves_again(comm):
    """The second message of a tag must not be taken for the first, nor mix with it."""
    for turn in range(3):
        send = message(comm.rank, turn, 100)
        receive = {j: Payload.empty(100) for j in comm.everyone_else()}
        comm.exchange(send, receive, 32767).wait()
        wrong = [j for j, payload in receive.items() if not same_message(payload, j, turn, 100)]
        everyone_agrees(comm, (not wrong, f"turn {turn}: wrong from {wrong}"), "one tag again")


def check_two_tags_complete_in_either_order(comm):
    """Half of the ranks wait for the second exchange first, so messages overtake each other."""
    for body in BODIES:
        started = {tag: start_exchange(comm, comm.everyone_else(), tag, body) for tag in (6, 7)}
        for tag in (6, 7) if comm.rank % 2 else (7, 6):
            started[tag][2].wait()
        for tag in (7, 6):
            _, receive, _ = started[tag]
            wrong = [j for j, payload in receive.items() if not same_message(payload, j, tag, body)]
            everyone_agrees(comm, (not wrong, f"{body} bytes: wrong from {wrong}"), f"tag {tag}")


def check_an_exchange_may_stay_under_way_meanwhile(comm):
    """Gossip leaves one under way during backward, while others reduce, broadcast and gather."""
    started = start_exchange(comm, ring_neighbors(comm), 3, 1000)
    vector = np.full(10, comm.rank, np.float32)
    comm.all_reduce(vector).wait()
    data = np.full(10, comm.rank, np.uint8)
    comm.broadcast(data, comm.size - 1)
    right = vector.tolist() == [sum(range(comm.size))] * 10 and set(data) == {comm.size - 1}
    everyone_agrees(comm, (right, f"{vector}, {data}"), "collectives during an exchange")
    finish_exchange(comm, started, 3, 1000)


def check_bytes_sent_by_exchange(comm):
    for peers in (ring_neighbors(comm), comm.everyone_else()):
        for body in BODIES:
            before = comm.bytes_sent
            started = start_exchange(comm, peers, 1, body)
            started[2].wait()
            sent = comm.bytes_sent - before
            expected = len(peers) * (32 + body)
            details = f"{sent} instead of {expected}"
            everyone_agrees(comm, (sent == expected, details), "bytes sent by an exchange")


def contribution(rank, numel):
    """Return a vector whose sum depends on the order: magnitudes from 1e-4 to 1e4, both signs."""
    rng = np.random.default_rng([rank, numel])
    return (rng.standard_normal(numel) * 10.0 ** rng.integers(-4, 5, numel)).astype(np.float32)


def check_all_reduce(comm):
    for kind in (np.array, torch.tensor):
        for numel in VECTORS:
            vector = kind(contribution(comm.rank, numel))
            comm.all_reduce(vector).wait()
            results = comm.all_gather_object(np.asarray(vector).tobytes())
            assert results == [results[0]] * comm.size, f"{numel} coordinates: ranks differ"
            parts = np.array([contribution(r, numel) for r in range(comm.size)], np.float64)
            bound = 1e-6 * comm.size * np.abs(parts).sum(axis=0)
            error = np.abs(np.frombuffer(results[0], np.float32) - parts.sum(axis=0))
            assert (error <= bound).all(), f"{numel} coordinates: the sum is off by {error.max()}"


def check_bytes_sent_by_all_reduce(comm):
    for numel in VECTORS:
        before = comm.bytes_sent
        comm.all_reduce(contribution(comm.rank, numel)).wait()
        sent, expected = comm.bytes_sent - before, 2 * (comm.size - 1) * 4 * numel // comm.size
        details = f"{sent} instead of {expected}"
        everyone_agrees(comm, (sent == expected, details), "bytes sent by an all-reduce")


def check_all_gather_object(comm):
    for turn in range(3):  # back to back, so that a slow rank meets the next turn's values
        mine = {"rank": comm.rank, "many": [turn] * (1000 * comm.rank), "text": "é" * comm.rank}
        expected = [
            {"rank": r, "many": [turn] * (1000 * r), "text": "é" * r} for r in range(comm.size)
        ]
        assert comm.all_gather_object(mine) == expected
    assert comm.all_gather_object(None) == [None] * comm.size
    assert comm.all_gather_object([]) == [[]] * comm.size
    emptier = comm.all_gather_object(b"" if comm.rank % 2 else b"x")
    assert emptier == [b"" if r % 2 else b"x" for r in range(comm.size)]


def check_all_gather_object_takes_a_copy(comm):
    """What a rank does to its value afterwards is its own affair."""
    mine = [comm.rank]
    everyone = comm.all_gather_object(mine)
    mine.append("changed")
    comm.barrier()  # now all have changed theirs
    right = everyone == [[r] for r in range(comm.size)]
    everyone_agrees(comm, (right, str(everyone)), "all_gather_object, then the value changes")


def check_barrier(comm):
    """No rank leaves before the last has come: what each wrote before it, all see after it."""
    folder = shared_folder(comm)
    time.sleep(0.01 * comm.rank)  # not measured: it only makes ranks come one after another
    leave_mark(folder, comm.rank)
    comm.barrier()
    seen = marks(folder)
    everyone_agrees(comm, (set(ranks_here(comm)) <= seen, f"sees {seen}"), "barrier")
    remove(comm, folder)


def check_first_on_each_host(comm):
    """Everyone acts once, and finds what the first one on the host has finished."""
    folder, found = shared_folder(comm), []
    leader = next(iter(ranks_here(comm)))

    def action():
        found.append(marks(folder))
        if comm.local_rank == 0:
            time.sleep(0.05)  # others would be here by now, if nothing held them back
            leave_mark(folder, leader)

    comm.first_on_each_host(action)
    expected = [set()] if comm.local_rank == 0 else [{leader}]
    everyone_agrees(comm, (found == expected, f"{found} instead of {expected}"), "first on a host")
    remove(comm, folder)


def ranks_here(comm):
    return [r for r in range(comm.size) if comm.hosts[r] == comm.hosts[comm.rank]]


def shared_folder(comm):
    """Return an empty folder of the same name on every host."""
    mine = tempfile.mkdtemp(prefix="decentral-contract-") if comm.rank == 0 else ""
    folder = comm.all_gather_object(mine)[0]
    os.makedirs(folder, exist_ok=True)
    comm.barrier()
    return folder


def leave_mark(folder, rank):
    with open(os.path.join(folder, str(rank)), "w"):
        pass


def marks(folder):
    return {int(name) for name in os.listdir(folder)}


def remove(comm, folder):
    comm.barrier()
    if comm.local_rank == 0:
        shutil.rmtree(folder)


def checks_in(*modules):
    """Return the functions named check_..., of this file and its like."""
    found = {n: f for m in modules for n, f in vars(m).items() if n.startswith("check_")}
    return list(found.values())
