"""What every Communicator keeps of broadcasts, and of how fast its links are."""

import numpy as np
from communicator_contract import everyone_agrees

from decentral.communicators.speed import measure


def check_broadcast_from_each_root(comm):
    for root in range(comm.size):
        for length in (0, 1, 1000):
            data = np.full(length, 10 + comm.rank, np.uint8)
            before = comm.bytes_sent
            comm.broadcast(data, root)
            sent = comm.bytes_sent - before
            expected = length if comm.rank == root and comm.size > 1 else 0
            right = sent == expected and (data == 10 + root).all()
            details = f"root {root}: {data[:3]}, {sent} bytes instead of {expected}"
            everyone_agrees(comm, (bool(right), details), "broadcast")


def check_a_large_broadcast_from_each_root(comm):
    """In segments, of which the last may be a byte; back to back."""
    lengths = (1 << 16, (1 << 18) + 1, 3 << 20)
    for root in range(comm.size):
        expected = [np.random.default_rng([root, n]).integers(0, 256, n, np.uint8) for n in lengths]
        found = [e.copy() if comm.rank == root else np.zeros_like(e) for e in expected]
        for data in found:
            comm.broadcast(data, root)
        wrong = [e.size for e, f in zip(expected, found, strict=True) if not np.array_equal(e, f)]
        everyone_agrees(comm, (not wrong, f"root {root}, lengths {wrong}"), "large broadcast")


def check_broadcast_leaves_its_root_free_to_write(comm):
    """A root that overwrites its buffer at once must not reach the others with it."""
    data = np.full(1000, comm.rank, np.uint8)
    comm.broadcast(data, 0)
    if comm.rank == 0:
        data[:] = 99
    right = comm.rank == 0 or not data.any()
    everyone_agrees(comm, (right, str(data[:3])), "broadcast, then the root writes")


def check_the_speed_of_links(comm):
    """Between pretended hosts it is finite and equal on all ranks; within one there are none."""
    mine = comm.hosts
    try:
        comm.hosts = (0,) * comm.size
        within = measure(comm)
        comm.hosts = tuple(r % 2 for r in range(comm.size))
        between = measure(comm)
    finally:
        comm.hosts = mine
    everyone_agrees(comm, (within == np.inf, within), "speed within a host")
    speeds = set(comm.all_gather_object(between))
    right = len(speeds) == 1 and 1e6 < between and (between < np.inf) == (comm.size > 1)
    everyone_agrees(comm, (right, speeds), "speed between hosts")
    real = comm.link_speed()
    one_host = len(set(mine)) == 1
    everyone_agrees(comm, (real == np.inf or not one_host, real), "speed of what there is")
