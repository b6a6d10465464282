"""Checkpoints of real ranks: processes that share a file system, and nothing else."""

import os
import re
import tempfile

import pytest
import torch
from checkpoint_cases import same, state_of

import decentral
from decentral.communicators import as_communicator

pytestmark = pytest.mark.mpi


@pytest.fixture
def directory():
    """Return a directory of rank 0's, the same on all ranks."""
    comm = as_communicator()
    with tempfile.TemporaryDirectory() as mine:
        yield comm.all_gather_object(mine)[0]
        comm.barrier()


def error_of(function):
    try:
        function()
    except (OSError, TypeError) as error:
        return error
    return None


def test_every_rank_gets_its_own_state_of_the_newest_step(directory):
    comm = as_communicator()
    checkpoints = decentral.Checkpoints(directory, comm, keep=2)
    assert checkpoints.load() is None
    for step in (1, 2, 3, 3):
        checkpoints.save(step, state_of(comm.rank, step))
    found = checkpoints.load()
    assert (found.step, found.size) == (3, comm.size)
    assert same(found.state, state_of(comm.rank, 3))
    assert same(found.of(comm.size - 1), state_of(comm.size - 1, 3))
    assert sorted(os.listdir(directory)) == ["step-00000002", "step-00000003.1"]


def test_another_rank_s_damaged_file_is_seen_by_all(directory):
    comm = as_communicator()
    checkpoints = decentral.Checkpoints(directory, comm)
    for step in (1, 2):
        checkpoints.save(step, state_of(comm.rank, step))
    if comm.rank == comm.size - 1:
        os.truncate(f"{directory}/step-00000002/rank-{comm.rank:05d}.safetensors", 100)
    comm.barrier()
    assert checkpoints.load().step == 1


@pytest.mark.mpi(min_size=2)
def test_an_error_of_one_rank_is_one_on_all(directory):
    comm = as_communicator()
    checkpoints = decentral.Checkpoints(directory, comm)
    state = object() if comm.rank == 1 else torch.ones(3)
    error = error_of(lambda: checkpoints.save(1, state))
    assert isinstance(error, TypeError) and "rank 1: state: expected" in str(error)
    assert checkpoints.load() is None


@pytest.mark.mpi(min_size=2)
def test_a_directory_that_ranks_do_not_share_is_an_error_on_all(directory):
    comm = as_communicator()
    checkpoints = decentral.Checkpoints(f"{directory}/{comm.rank}", comm)
    error = error_of(lambda: checkpoints.save(1, 0))
    assert isinstance(error, OSError)
    assert re.search("rank 1: expected to see .*, as rank 0 does", str(error))
