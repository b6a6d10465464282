"""A nap ends with a request, the bell or after long enough, and asks as often as it says."""

import ctypes
import os
import time

import pytest

from decentral_kernels import naps

PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p)
HANDLES = [11, (1 << 64) - (1 << 40), 13]  # as mpi4py has them: MPICH's are integers of 32 bits
BRISK = (1e-4, 0.0, 1e-3)  # the least pause, its part of the wait, the most


class MPI:
    """Asked about handles; calls `when` with each, which returns (an error's code, whether)."""

    def __init__(self, when):
        self.asked = []

        def get_status(handle, flag, status):
            self.asked.append(handle)
            code, complete = when(len(self.asked))
            ctypes.cast(flag, ctypes.POINTER(ctypes.c_int))[0] = int(complete)
            ctypes.memset(status, 0xFF, 64)  # of an MPI whose statuses are large
            return code

        self._function = PROTOTYPE(get_status)
        self.nap = naps.napper(ctypes.cast(self._function, ctypes.c_void_p).value)


def never(_):
    return 0, False


@pytest.fixture
def bell():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_it_ends_when_a_request_is_complete_and_asks_about_all_in_turn():
    mpi = MPI(lambda count: (0, count == 8))
    assert mpi.nap(HANDLES, -1, (time.perf_counter(), *BRISK, 60.0), 0) == naps.COMPLETE
    assert mpi.asked == [*HANDLES, *HANDLES, *HANDLES[:2]]


def test_it_ends_when_mpi_reports_an_error_which_a_test_will_tell():
    mpi = MPI(lambda count: (15 if count == 2 else 0, False))
    assert mpi.nap(HANDLES[:1], -1, (time.perf_counter(), *BRISK, 60.0), 0) == naps.COMPLETE
    assert len(mpi.asked) == 2


def test_a_bell_that_rang_ends_it_at_once_and_only_once(bell):
    mpi = MPI(never)
    os.eventfd_write(bell, 3)
    arguments = (HANDLES, bell, (time.perf_counter(), 0.5, 0.0, 0.9, 0.2), 0)
    assert mpi.nap(*arguments) == naps.RUNG and mpi.asked == []
    assert mpi.nap(*arguments) == naps.LATE and mpi.asked == [*HANDLES]


def test_it_ends_after_long_enough_without_ever_asking_too_early():
    mpi, start = MPI(never), time.perf_counter()
    assert mpi.nap(HANDLES, -1, (start, *BRISK, 0.05), 0) == naps.LATE
    assert time.perf_counter() - start >= 0.05
    assert 0 < len(mpi.asked) <= 3 * 0.05 / BRISK[0] + 3


def test_pauses_are_a_part_of_the_whole_wait_and_not_above_the_most():
    """It has taken 100 s already: a pause of .03 s, not one of 12.5 s."""
    mpi, start = MPI(lambda count: (0, True)), time.perf_counter()
    assert mpi.nap(HANDLES, -1, (start - 100.0, 1e-4, 1 / 8, 0.03, 60.0), 0) == naps.COMPLETE
    assert 0.03 <= time.perf_counter() - start < 12.5


@pytest.mark.parametrize(("calls", "expected"), [(0, 3), (20, 20), (1000, 40)])
def test_after_a_long_pause_mpi_goes_on_for_longer(calls, expected):
    """20 ms are 40 times what a call moves over 1 Gbit/s."""
    mpi = MPI(never)
    assert mpi.nap(HANDLES, -1, (time.perf_counter(), 0.02, 0.0, 0.02, 0.01), calls) == naps.LATE
    assert len(mpi.asked) == expected


@pytest.mark.parametrize("platform", ("darwin", "win32"))
def test_another_system_has_none(monkeypatch, platform):
    monkeypatch.setattr(naps.sys, "platform", platform)
    assert naps.napper(1) is None


def test_without_the_function_of_mpi_there_is_none():
    assert naps.address_in(None, "MPI_No_such_function") is None
    assert naps.napper(None) is None
