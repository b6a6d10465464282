"""n ranks in one process keep the contract of every communicator, and end together."""

import threading
import time

import broadcast_contract
import communicator_contract
import numpy as np
import parts_contract
import pytest
import sums_contract
import torch

from decentral.communicators import Communicator, LocalCommunicator, as_communicator, run_local
from decentral.payload import Payload

SIZES = (1, 2, 3, 4, 8)
CHECKS = communicator_contract.checks_in(
    communicator_contract, broadcast_contract, sums_contract, parts_contract
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, size):
    run_local(size, check)


def test_the_contract_is_not_empty():
    assert len(CHECKS) > 10 and len(set(CHECKS)) == len(CHECKS)


@pytest.mark.parametrize("size", SIZES)
def test_results_come_by_rank(size):
    assert run_local(size, lambda comm: (comm.rank, comm.size)) == [(r, size) for r in range(size)]


def test_it_is_a_communicator():
    def rank(comm):
        assert isinstance(comm, LocalCommunicator) and isinstance(comm, Communicator)
        assert as_communicator(comm) is comm
        assert comm.bytes_sent == 0 and comm.hosts == (0, 0)

    run_local(2, rank)


@pytest.mark.parametrize("hosts", ((0, 0, 0), (1, 0, 1)))
def test_a_part_of_all_ranks_is_one_s_own(hosts):
    """Messages of a tag do not meet the same tag's of the one that it was made of."""

    def rank(comm):
        own = comm.split(0)
        assert own is not comm and isinstance(own, LocalCommunicator)
        assert (own.rank, own.size, own.hosts) == (comm.rank, comm.size, comm.hosts)
        assert (own.local_rank, own.local_size) == (comm.local_rank, comm.local_size)
        start, finish = communicator_contract.start_exchange, communicator_contract.finish_exchange
        peers = comm.everyone_else()
        theirs, ours = start(comm, peers, 7, 1000), start(own, peers, 7, 33)
        finish(own, ours, 7, 33)
        finish(comm, theirs, 7, 1000)

    run_local(len(hosts), rank, hosts=hosts)


def test_all_reduce_is_the_sum_in_order_of_rank():
    """Reproducible: the same bits in every run, which MPI does not promise."""

    def rank(comm):
        vector = np.array([1e8, 1.0, -1e8], np.float32)[comm.rank : comm.rank + 1].copy()
        comm.all_reduce(vector).wait()
        return float(vector[0])

    assert run_local(3, rank) == [0.0] * 3  # (1e8 + 1) - 1e8 in float32


class TroubleError(Exception):
    """An error that only the test raises."""


def wait_in_barrier(comm):
    comm.barrier()


def wait_for_a_message(comm):
    comm.exchange(Payload.empty(1), {1: Payload.empty(1)}, 0).wait()


def wait_for_a_sum(comm):
    comm.all_reduce(np.zeros(3, np.float32)).wait()


def wait_for_an_object(comm):
    comm.all_gather_object(1)


@pytest.mark.timeout(30)  # the ranks' own time-out below is longer: they must not sit it out
@pytest.mark.parametrize(
    "wait", (wait_in_barrier, wait_for_a_message, wait_for_a_sum, wait_for_an_object)
)
def test_a_rank_that_raises_ends_all_and_is_heard(wait):
    """The others stop with errors of their own, which say nothing new and must not win."""

    def rank(comm):
        if comm.rank == 1:
            raise TroubleError("rank 1 has had it")
        wait(comm)

    with pytest.raises(TroubleError, match="rank 1 has had it"):
        run_local(4, rank, timeout=300)


@pytest.mark.timeout(30)
def test_a_rank_that_raises_after_the_others_returned():
    def rank(comm):
        comm.barrier()
        if comm.rank == 2:
            raise TroubleError("late")

    with pytest.raises(TroubleError, match="late"):
        run_local(3, rank, timeout=300)


def test_a_rank_that_never_sends_is_named():
    def rank(comm):
        if comm.rank == 0:
            wait_for_a_message(comm)

    expected = "rank 0: waits for rank 1, a rank sent nothing in 0.2 s"
    with pytest.raises(threading.BrokenBarrierError, match=expected):
        run_local(2, rank, timeout=0.2)


def test_a_rank_that_never_comes_to_a_barrier_ends_the_others():
    def rank(comm):
        if comm.rank != 1:
            comm.barrier()

    with pytest.raises(threading.BrokenBarrierError):
        run_local(3, rank, timeout=0.2)


def test_a_failed_run_leaves_nothing_to_the_next():
    def failing(comm):
        comm.exchange(Payload.empty(4), {r: Payload.empty(4) for r in comm.everyone_else()}, 0)
        raise TroubleError

    with pytest.raises(TroubleError):
        run_local(2, failing)
    run_local(2, CHECKS[0])
    assert run_local(2, lambda comm: comm.all_gather_object(comm.rank)) == [[0, 1]] * 2


def test_whoever_compiles_is_waited_for_longer_than_the_time_out():
    def rank(comm):
        comm.first_on_each_host(lambda: time.sleep(0.6 if comm.rank == 0 else 0))
        return comm.watch.timeout

    assert run_local(2, rank, timeout=0.2) == [0.2, 0.2]


def test_backward_runs_in_the_rank_s_own_thread():
    """On a GPU it would run in one that all ranks share, and their hooks wait for each other."""
    assert not any(run_local(2, lambda comm: torch.autograd.is_multithreading_enabled()))
    assert torch.autograd.is_multithreading_enabled()
