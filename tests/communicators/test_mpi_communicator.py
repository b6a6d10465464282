"""The contract of a communicator over real MPI, at whatever size mpirun was given."""

import broadcast_contract
import communicator_contract
import parts_contract
import pytest
import sums_contract

from decentral.communicators import as_communicator

CHECKS = communicator_contract.checks_in(
    communicator_contract, broadcast_contract, sums_contract, parts_contract
)


@pytest.fixture(scope="module", params=["as usual", "to survive a death"])
def comm(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as usual":  # what Open MPI sets for mpirun --with-ft ulfm
            patch.setenv("OMPI_MCA_mpi_ft_enable", "1")
        yield as_communicator()


@pytest.mark.mpi
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(comm, check):
    check(comm)


@pytest.mark.mpi
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_of_a_rank_alone(comm, check):
    """As the survivor of two is."""
    check(comm.split(comm.rank))


@pytest.mark.mpi
def test_works_on_a_duplicate_of_a_part_of_the_world(comm):
    """A message of the user's with our tag must not be mistaken for ours."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    part = world.Split(world.rank % 2, world.rank)
    ours = as_communicator(part)
    assert (ours.rank, ours.size) == (part.rank, part.size)
    users = part.isend("the user's", (part.rank + 1) % part.size, tag=0)
    communicator_contract.check_exchange_with_everyone_else(ours)
    assert part.recv(source=(part.rank - 1) % part.size, tag=0) == "the user's"
    users.wait()
    part.Free()


@pytest.mark.mpi
def test_a_large_broadcast_crosses_every_link_of_a_chain_once(comm):
    import numpy as np

    before, data = comm.bytes_sent, np.zeros(1 << 20, np.uint8)
    comm.broadcast(data, comm.size // 2)
    sent = comm.bytes_sent - before
    last = (comm.size // 2 - 1) % comm.size
    assert sent == (data.nbytes if comm.rank != last else 0)


@pytest.mark.mpi
def test_who_waits_naps_once_that_is_compiled_but_not_where_deaths_are_told_of(comm):
    import time

    comm.first_on_each_host(lambda: None)
    naps, requests = [], comm._requests
    nap = requests.nap
    if comm.survives:
        assert nap is None
        return
    assert comm.split(0)._requests.nap is nap is not None
    requests.nap = lambda *arguments: naps.append(nap(*arguments))
    comm.barrier()
    naps.clear()
    if comm.rank == 0:
        time.sleep(0.5)
    comm.barrier()
    requests.nap = nap
    assert comm.rank == 0 or naps


WAITS = {
    "a barrier": lambda comm: comm.barrier(),
    "a split": lambda comm: comm.split(0),
    "the start": lambda comm: as_communicator(),
}


@pytest.mark.mpi
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waiting_gives_the_core_away(comm, wait):
    """A rank that waits half a second for another must not have computed all the while."""
    import time

    comm.barrier()
    if comm.rank == 0:
        time.sleep(0.5)
    start = time.process_time()
    wait(comm)
    busy = time.process_time() - start
    # Testing between pauses of up to 1 ms is cheap; spinning would take all of the half second.
    assert busy < 0.25
