"""Waits end, and say for whom: the watch, its roll, and what the requests of MPI make of it."""

import queue
import threading

import pytest

from decentral.communicators import LocalDeath, RankLostError, WaitTimeoutError, run_local
from decentral.communicators import watch as module
from decentral.communicators.requests import Operation, Requests
from decentral.communicators.ulfm import Guarded, shrunk
from decentral.communicators.watch import MessageRoll, Watch


class Silence:
    """A roll that answers as it is told."""

    def __init__(self, silent=(), busy=()):
        self.found, self.answers = (list(silent), list(busy)), []

    def call(self, patience):
        return self.found

    def answer(self, waits):
        self.answers.append(waits)


@pytest.mark.parametrize(
    ("silent", "busy", "said"),
    [
        ((3,), (), "; rank 3 does not answer"),
        ((1, 3), (), "; ranks 1, 3 do not answer"),
        ((), (2,), "; rank 2 does not wait for anybody"),
        ((), (), "; all ranks answer, and wait themselves: they are in different calls (step()"),
    ],
)
def test_who_is_waited_for_is_said(silent, busy, said):
    watch = Watch(0.0, Silence(silent, busy))
    with pytest.raises(WaitTimeoutError, match="step 3, messages of rank 1: waited for 0 s") as e:
        with watch.waiting() as look:
            while True:
                look(lambda: "step 3, messages of rank 1")
    assert said in str(e.value) and "raise timeout=" in str(e.value)
    assert ("all ranks answer" in str(e.value)) == (not silent and not busy)
    assert "unequal numbers of batches, loop inside DistributedOptimizer.join()" in str(e.value)
    assert e.value.silent == silent


def test_without_a_roll_nobody_is_said_to_answer():
    assert "waited for 5 s. All ranks have to" in str(Watch(5).complaint("messages of rank 1"))


def test_who_looks_answers_whether_it_waits(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_EVERY_S", -1.0)
    watch = Watch(60, Silence())
    watch.look()
    with watch.waiting() as look:
        look(lambda: "")
    watch.look()
    assert watch.roll.answers == [False, True, False]


class Never:
    """A request that is never complete."""

    @staticmethod
    def Get_status():
        return False

    @staticmethod
    def Testsome(requests, statuses):
        return None


def test_requests_that_never_complete_end_in_a_timeout():
    operation = Operation(Requests(Watch(0.02)), [(Never(), None)], None, missing={4, 2})
    with pytest.raises(WaitTimeoutError, match=r"messages of rank 2, 4: waited for 0\.02 s"):
        operation.wait()


class Mailbox:
    """As much of an mpi4py communicator as a roll needs, between threads."""

    def __init__(self, rank, boxes):
        self.rank, self.boxes = rank, boxes

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return len(self.boxes)

    def Isend(self, data, target, tag):
        self.boxes[target].put((self.rank, tag, bytes(data)))

    def Iprobe(self):
        return not self.boxes[self.rank].empty()

    def Recv(self, data, status):
        status.source, status.tag, data[:] = self.boxes[self.rank].get_nowait()


class Status:
    def Get_source(self):
        return self.source

    def Get_tag(self):
        return self.tag


def test_the_roll_tells_the_silent_from_the_busy_and_the_waiting():
    boxes = [queue.Queue() for _ in range(4)]
    rolls = [MessageRoll(Mailbox(rank, boxes), Status) for rank in range(4)]
    done = threading.Event()

    def alive(rank, waits):
        while not done.wait(0.005):
            rolls[rank].answer(waits)

    threads = [threading.Thread(target=alive, args=pair) for pair in ((1, True), (2, False))]
    for thread in threads:
        thread.start()
    try:
        assert rolls[0].call(patience=0.3) == ([3], [2])
        # who was called knows that the caller is there, though it answers nobody any more
        assert rolls[1].call(patience=0.3) == ([3], [2])
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_second_call_takes_no_answers_of_the_first():
    boxes = [queue.Queue() for _ in range(3)]
    rolls = [MessageRoll(Mailbox(rank, boxes), Status) for rank in range(3)]

    def answering(*others):
        return (threading.Thread(target=lambda r=r: await_call(rolls[r], boxes[r])) for r in others)

    def await_call(roll, box):
        while box.empty():
            done.wait(0.005)
        roll.answer(False)

    done = threading.Event()
    for others, found in (((1, 2), ([], [1, 2])), ((1,), ([2], [1])), ((), ([1, 2], []))):
        threads = list(answering(*others))
        for thread in threads:
            thread.start()
        silent, busy = rolls[0].call(patience=0.3)
        for thread in threads:
            thread.join()
        assert (silent, sorted(busy)) == found


class MPIError(Exception):
    def Get_error_class(self):
        return 75


class Group:
    def __init__(self, ranks):
        self.ranks = ranks

    def Get_size(self):
        return len(self.ranks)

    def Translate_ranks(self, numbers, other):
        return [self.ranks[n] for n in numbers]


class Comm:
    """An mpi4py communicator of four, of which some have died."""

    def __init__(self, dead=(), revoked=False):
        self.dead, self.revoked = dead, revoked

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 4

    def Get_group(self):
        return Group(range(4))

    def Get_failed(self):
        return Group(self.dead)

    def Is_revoked(self):
        return self.revoked

    def Isend(self, *args):
        raise MPIError("MPI_ERR_PROC_FAILED")

    def Barrier(self):
        raise ValueError("no MPI")

    def Shrink(self):
        raise NotImplementedError


def test_what_mpi_raises_is_a_death_where_a_rank_has_died():
    with pytest.raises(RankLostError, match="rank 0 of 4: rank 2, 3 has died") as e:
        Guarded(Comm(dead=(3, 2))).Isend(b"", 1)
    assert e.value.lost == (2, 3) and isinstance(e.value.__cause__, MPIError)
    with pytest.raises(RankLostError, match="another rank has died") as e:
        Guarded(Comm(revoked=True)).Isend(b"", 1)
    assert e.value.lost == ()
    with pytest.raises(MPIError):
        Guarded(Comm()).Isend(b"", 1)
    with pytest.raises(ValueError, match="no MPI"):
        Guarded(Comm(dead=(1,))).Barrier()


def test_an_mpi_that_cannot_shrink_says_which_can():
    with pytest.raises(RuntimeError, match="Open MPI 5 as `mpirun --with-ft ulfm`"):
        shrunk(Comm())


def test_survivors_have_a_communicator_of_their_own():
    there = threading.Barrier(4)

    def rank(comm):
        part = comm.split(comm.rank % 2)
        there.wait()
        if comm.rank == 1:
            raise LocalDeath
        with pytest.raises(RankLostError):
            while True:
                part.barrier()  # though the dead was not in it, it is of no use any more
        left = comm.survivors()
        with pytest.raises(RankLostError, match="rank 1 has died"):
            comm.barrier()
        again = left.split(0)
        assert again.size == left.size == 3
        assert left.traffic is comm.traffic
        return again.all_gather_object(comm.rank)

    assert run_local(4, rank) == [[0, 2, 3], None, [0, 2, 3], [0, 2, 3]]


def test_one_that_fails_among_survivors_ends_them():
    there = threading.Barrier(3)

    def rank(comm):
        there.wait()
        if comm.rank == 0:
            raise LocalDeath
        left = comm.survivors()
        if left.rank == 0:
            raise KeyError("lost")
        left.barrier()

    with pytest.raises(KeyError, match="lost"):
        run_local(3, rank)
