"""MPI: the only file that knows mpi4py, which it imports where it is used."""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..payload import Payload, Wire
from .base import Communicator, Traffic, all_reduce_nbytes, for_each
from .chain import Chain, chain_segments
from .collectives import Collectives, Direct, Own, duplicate, survives
from .launch import check_launcher, end_job_on_exception
from .probe import cuda_aware
from .requests import Deferred, Operation, Requests, napping
from .ring import TAGS, RingSum, num_segments
from .ulfm import Guarded, leave, shrunk
from .watch import MessageRoll, Watch

if TYPE_CHECKING:
    from mpi4py import MPI

_SPINS = 20  # tests in a row before a rank gives its core away, when it has one to itself
_EXIT_WAIT_S = 1.0  # an engine has waited longer before
# From this many bytes on our ring adds, which is faster than either MPI's all-reduce, above all for
# int8 (benchmarks/all_reduce.py); below it latency counts.
_RING_FROM = 1 << 16


def start_mpi() -> Any:
    """Return the module mpi4py.MPI, with MPI initialized and the launcher checked.

    Raises:
        RuntimeError: there is no MPI library, or the launcher is of another MPI than it.
    """
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:  # else the script has initialized it, for better or worse
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # which of the two depends on what is missing
        raise RuntimeError(
            f"mpi4py cannot load an MPI library ({error}); load your cluster's MPI module, or "
            "install one from PyPI: pip install decentral[mpich]"
        ) from error
    library = MPI.Get_library_version()
    if not MPI.Is_initialized():
        check_launcher(library, None)
        MPI.Init_thread()
    check_launcher(library, MPI.COMM_WORLD.Get_size())
    return MPI


class MPICommunicator(Communicator):
    """The ranks of an mpi4py communicator (default COMM_WORLD), on a duplicate of it.

    From its construction on, an exception that nobody catches on one rank ends the job on all.
    Where MPI tells of a rank's death, operations raise RankLostError.

    Raises:
        RuntimeError: the launcher started several processes, but this MPI sees one: mpirun and the
            library that mpi4py loaded are of different MPIs.
    """

    def __init__(self, comm: MPI.Intracomm | None = None, watch: Watch | None = None) -> None:
        MPI = start_mpi()
        self.watch = Watch() if watch is None else watch
        self._family: list[MPICommunicator] = []  # they all end with the death of a rank
        with self._bounded("the start of all ranks"):
            own = duplicate(MPI.COMM_WORLD if comm is None else comm)
            self.watch.roll = MessageRoll(Guarded(own.Dup()), MPI.Status)
            self._begin(own, Traffic())
        if self.size > 1:
            end_job_on_exception(self.rank, self.size, self._comm.Abort)

    def _begin(self, comm: MPI.Intracomm, traffic: Traffic) -> None:
        from mpi4py import MPI

        self._comm: Any = Guarded(comm)
        self._sums: Any = Guarded(self._comm.Dup())  # rings have tags of their own
        self._family.append(self)
        self._ring_tag = 0
        self.traffic = traffic
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self.survives = survives()
        self._requests = Requests(self.watch, self._comm.translated, self.survives)
        self._requests.whose = f"rank {self.rank}"
        self._small = self._collectives()
        self._place()
        if self.size > 1:
            atexit.register(self._finish)

    def _bounded(self, what: str) -> AbstractContextManager[None]:
        """End the job if what is inside, which waits within MPI, takes too long."""
        return self.watch.bounded(lambda: self._too_late(what))

    def _too_late(self, what: str) -> None:
        from mpi4py import MPI

        sys.stderr.write(
            f"decentral: rank {MPI.COMM_WORLD.Get_rank()}: {what}: waited for "
            f"{self.watch.timeout:g} s; is a rank stopped, or elsewhere?\n"
        )
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)

    def split(self, color: int) -> MPICommunicator:
        """See Communicator.split."""
        self.barrier()  # in it ranks sleep; in Split() they spin until the last has come
        with self._bounded("to split a communicator"):
            part = self._comm.Split(color, self.rank)
            return self._new(part, self._family, Traffic(self.traffic))

    def _new(
        self, comm: MPI.Intracomm, family: list[MPICommunicator], traffic: Traffic
    ) -> MPICommunicator:
        part = MPICommunicator.__new__(MPICommunicator)
        part.watch, part._family = self.watch, family
        part._begin(comm, traffic)
        part.device_direct, part._requests.nap = self.device_direct, self._requests.nap
        return part

    def survivors(self) -> MPICommunicator:
        """See Communicator.survivors; needs MPI's fault tolerance.

        Everybody learns of a death by calling the roll, whoever it waits for. Nothing is revoked:
        messages on their way between the living would fail, and end their senders in Open MPI 5.0
        ("Send error after request freed", open-mpi/ompi#13494).
        """
        from mpi4py import MPI

        for part in self._family:
            part._requests.abandon()
        with self._bounded("what the survivors agree on"):
            living = shrunk(self._comm.raw)
            atexit.register(leave)  # the new ones, which are registered later, end before that
            self.watch.roll = MessageRoll(Guarded(Guarded(living).Dup()), MPI.Status)
            return self._new(living, [], self.traffic)

    def ask_for_device_direct(self, arrives: Callable[[], bool]) -> None:
        """See Communicator.ask_for_device_direct; one rank of every host tries."""
        mine = cuda_aware(arrives) if self.local_rank == 0 else True
        self.device_direct = all(self.all_gather_object(mine))

    def first_on_each_host(self, action: Callable[[], None]) -> None:
        """See Communicator.first_on_each_host; what is compiled here is compiled so, too."""
        super().first_on_each_host(action)
        super().first_on_each_host(self._learn_to_nap)

    def _learn_to_nap(self) -> None:
        """From now on let waits sleep in a compiled call, where MPI need not tell of a death."""
        from mpi4py import MPI

        for part in self._family:
            part._requests.nap = None if self.survives else napping(MPI.__file__, MPI._handleof)

    def _collectives(self) -> Collectives:
        from mpi4py import MPI

        if self.survives:
            return Direct(Guarded(self._comm.Dup()), self._requests)
        operators = {"sum": MPI.SUM, "max": MPI.MAX}
        return Own(self._comm, self._requests, operators, MPI.IN_PLACE)

    def _place(self) -> None:
        """Learn which ranks share a host, and how many cores they have together."""
        from mpi4py import MPI

        host = Guarded(self._comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank))
        self.local_rank, self.local_size = host.Get_rank(), host.Get_size()
        leader = host.bcast(self.rank)
        host.Free()
        mine = (leader, sorted(os.sched_getaffinity(0)))
        everyone = self.all_gather_object(mine)
        leaders = sorted({who for who, _ in everyone})
        self.hosts = tuple(leaders.index(who) for who, _ in everyone)
        cores = {core for who, affinity in everyone if who == leader for core in affinity}
        self.cores_per_rank = max(1, len(cores) // self.local_size)
        self.spins = self._requests.spins = 0 if self.local_size > len(cores) else _SPINS
        self._ring = self.around()

    def _count(self, buffer: Any, copies: int = 1) -> Any:
        """Count a buffer that is handed to MPI for sending, and return it."""
        self.traffic.add(buffer.nbytes * copies)
        return buffer

    def exchange(
        self, send: Payload | Mapping[int, Payload], receive: Mapping[int, Payload], tag: int
    ) -> Operation:
        """See Communicator.exchange."""
        direct = self.device_direct
        incoming = {source: p.wire.incoming(direct) for source, p in receive.items()}
        missing = set(receive)
        sent = for_each(send, receive)
        distinct = {id(p): p for p in sent.values()}
        outgoing = {k: p.wire.outgoing(direct, p.nbytes) for k, p in distinct.items()}

        def receiving(source: int, payload: Payload) -> Any:
            make = functools.partial(self._comm.Irecv, incoming[source], source, tag)

            def landed(status: Any) -> None:
                missing.discard(source)
                payload.landed(direct, status.Get_count())

            return lambda: payload.wire.ready, make, landed, payload.capacity

        def sending(target: int, payload: Payload) -> Any:
            buffer = self._count(outgoing[id(payload)])
            make = functools.partial(self._comm.Isend, buffer, target, tag)
            return lambda: payload.wire.ready, make, None, buffer.nbytes

        later = [receiving(*pair) for pair in receive.items()]
        later += [sending(*pair) for pair in sent.items()]
        held = (sent, receive, incoming, outgoing)
        return Operation(self._requests, (), held, missing=missing, later=later)

    def all_reduce(self, vector: Any, mean: bool = False) -> Operation | Deferred | RingSum:
        """See Communicator.all_reduce.

        Device memory is staged, whatever MPI can: none adds it up in a non-blocking operation.
        """
        wire = Wire(vector)
        buffer = wire.outgoing(False)
        self.traffic.add(all_reduce_nbytes(buffer.nbytes, self.size))
        landed = functools.partial(wire.landed, False)
        if buffer.nbytes >= _RING_FROM and self.size > 1:
            tag = self._next_tag(num_segments(buffer.nbytes, self.size))
            arguments = (self._sums, buffer, self._requests, self._ring, tag, mean, landed)
            if wire.ready:
                return RingSum(*arguments)
            return Deferred(self._requests, lambda: wire.ready, lambda: RingSum(*arguments))
        wire.wait()  # ranks have to begin MPI's own in the same order

        def then() -> None:
            if mean:
                buffer[:] = buffer / self.size
            landed()

        return self._small.reduce(buffer, "sum", then)

    def all_reduce_max(self, value: float) -> float:
        """See Communicator.all_reduce_max."""
        result = np.array([value], np.float32)
        self.traffic.add(all_reduce_nbytes(result.nbytes, self.size))
        self._small.reduce(result, "max").wait()
        return float(result[0])

    def broadcast(self, data: npt.NDArray[np.uint8], root: int = 0) -> None:
        """See Communicator.broadcast."""
        if data.nbytes >= _RING_FROM and self.size > 1:
            tag = self._next_tag(chain_segments(data.nbytes))
            chain = Chain(self._sums, data, self._requests, self._ring, root, tag)
            self.traffic.add(chain.sends_nbytes)
            chain.wait()
            return
        if self.rank == root:
            self._count(data, copies=min(1, self.size - 1))
        self._small.broadcast(data, root).wait()

    def _next_tag(self, count: int) -> int:
        """Return the first of so many tags of segments."""
        tag, self._ring_tag = self._ring_tag, (self._ring_tag + count) % TAGS
        return tag

    def all_gather_object(self, value: Any) -> list[Any]:
        """See Communicator.all_gather_object."""
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = self._gather(np.array([data.size]), [1] * self.size)
        parts = self._gather(self._count(data, self.size - 1), [int(n[0]) for n in sizes])
        return [pickle.loads(part.tobytes()) for part in parts]

    def barrier(self) -> None:
        """See Communicator.barrier."""
        self._small.barrier().wait()

    def _gather(self, mine: Any, sizes: list[int]) -> list[Any]:
        """Return every rank's vector, by rank."""
        found: list[Any] = []
        self._small.gather(mine, sizes, found.extend).wait()
        return found

    def _finish(self) -> None:
        """Complete what is under way before MPI finalizes, which may hang on it otherwise."""
        if not self._requests.finish(_EXIT_WAIT_S):
            sys.stderr.write(
                f"decentral: rank {self.rank}: messages to or from other ranks were still under "
                "way when the script had ended; is one far behind, or did it do fewer steps?\n"
            )
