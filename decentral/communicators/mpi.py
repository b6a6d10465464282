"""MPI: the only file that knows mpi4py, which it imports where it is used."""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..payload import Payload, Wire
from .base import Backoff, Communicator, Traffic, all_reduce_nbytes, for_each
from .launch import check_launcher, end_job_on_exception
from .probe import cuda_aware
from .ring import TAGS, RingSum, num_segments

if TYPE_CHECKING:
    from mpi4py import MPI

_SPINS = 20  # tests in a row before a rank gives its core away, when it has one to itself
_EXIT_WAIT_S = 1.0  # an engine has waited longer before
# From this many bytes on our ring adds, which is faster than either MPI's all-reduce, above all for
# int8 (benchmarks/all_reduce.py); below it latency counts.
_RING_FROM = 1 << 16
_CHUNK = 1 << 28  # counts of older MPI libraries are 32-bit


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


class _Operation:
    """Requests under way, and the buffers that they use."""

    moves = 0

    def __init__(
        self,
        owner: MPICommunicator,
        requests: list[MPI.Request],
        landed: Callable[[list[MPI.Status]], None],
        held: Any,
    ) -> None:
        from mpi4py import MPI

        self._owner, self._requests, self._landed = owner, requests, landed
        self._statuses = [MPI.Status() for _ in requests]
        self._held = held  # MPI keeps no reference to what it sends
        self._test = MPI.Request.Testall
        owner._under_way.add(self)

    def test(self) -> bool:
        """Make progress; return whether everything is sent and received."""
        if self not in self._owner._under_way:
            return True
        if not self._test(self._requests, self._statuses):
            return False
        self._owner._under_way.discard(self)
        self._landed(self._statuses)
        return True

    def wait(self) -> None:
        """Return when everything is sent and received."""
        self._owner._wait_for(self.test)


class MPICommunicator(Communicator):
    """The ranks of an mpi4py communicator (default COMM_WORLD), on a duplicate of it.

    From its construction on, an exception that nobody catches on one rank ends the job on all.

    Raises:
        RuntimeError: the launcher started several processes, but this MPI sees one: mpirun and the
            library that mpi4py loaded are of different MPIs.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        MPI = start_mpi()
        self._begin((MPI.COMM_WORLD if comm is None else comm).Dup(), Traffic())
        if self.size > 1:
            end_job_on_exception(self.rank, self.size, self._comm.Abort)

    def _begin(self, comm: MPI.Intracomm, traffic: Traffic) -> None:
        from mpi4py import MPI

        self._comm: Any = comm
        self._sums: Any = comm.Dup()  # rings have tags of their own
        self._rings: list[RingSum] = []
        self._ring_tag = 0
        self.traffic = traffic
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._under_way: set[_Operation] = set()
        self._place()
        self.device_direct = cuda_aware()
        if self.size > 1:
            atexit.register(self._finish)

    def split(self, color: int) -> MPICommunicator:
        """See Communicator.split."""
        part = MPICommunicator.__new__(MPICommunicator)
        part._begin(self._comm.Split(color, self.rank), Traffic(self.traffic))
        return part

    def _place(self) -> None:
        """Learn which ranks share a host, and how many cores they have together."""
        from mpi4py import MPI

        host = self._comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        self.local_rank, self.local_size = host.Get_rank(), host.Get_size()
        leader = host.bcast(self.rank)
        host.Free()
        mine = (leader, sorted(os.sched_getaffinity(0)))
        everyone = self.all_gather_object(mine)
        leaders = sorted({who for who, _ in everyone})
        self.hosts = tuple(leaders.index(who) for who, _ in everyone)
        cores = {core for who, affinity in everyone if who == leader for core in affinity}
        self.cores_per_rank = max(1, len(cores) // self.local_size)
        self.spins = 0 if self.local_size > len(cores) else _SPINS
        self._around = sorted(range(self.size), key=lambda r: (self.hosts[r], r))

    def _wait_for(self, done: Callable[[], bool]) -> None:
        """Test until done; give the core away while waiting, since MPI's own wait does not."""
        backoff = Backoff(self.spins)
        while not done():
            backoff.pause()

    def _wait_for_ring(self, done: Callable[[], bool]) -> None:
        """Wait for one ring and drive all, since another rank may wait for another one first."""
        backoff = Backoff(self.spins)
        while not done():
            moves = sum(ring.moves for ring in self._rings)
            self._rings = [ring for ring in self._rings if not ring.test()]
            if moves != sum(ring.moves for ring in self._rings):
                backoff.reset()
            else:
                backoff.pause()

    def _count(self, buffer: Any, copies: int = 1) -> Any:
        """Count a buffer that is handed to MPI for sending, and return it."""
        self.traffic.add(buffer.nbytes * copies)
        return buffer

    def exchange(
        self, send: Payload | Mapping[int, Payload], receive: Mapping[int, Payload], tag: int
    ) -> _Operation:
        """See Communicator.exchange."""
        from mpi4py import MPI

        direct = self.device_direct
        incoming = {source: p.wire.incoming(direct) for source, p in receive.items()}
        requests = [self._comm.Irecv(buffer, source, tag) for source, buffer in incoming.items()]
        sent = for_each(send, receive)
        distinct = {id(p): p for p in sent.values()}
        outgoing = {k: p.wire.outgoing(direct, p.nbytes) for k, p in distinct.items()}
        requests += [
            self._comm.Isend(self._count(outgoing[id(p)]), target, tag)
            for target, p in sent.items()
        ]

        def landed(statuses: list[MPI.Status]) -> None:
            for payload, status in zip(receive.values(), statuses):  # noqa: B905 (then the sends)
                payload.landed(direct, status.Get_count(MPI.BYTE))

        return _Operation(self, requests, landed, (sent, receive, incoming, outgoing))

    def all_reduce(self, vector: Any, mean: bool = False) -> _Operation | RingSum:
        """See Communicator.all_reduce."""
        from mpi4py import MPI

        wire = Wire(vector)
        buffer = wire.outgoing(self.device_direct)
        self.traffic.add(all_reduce_nbytes(buffer.nbytes, self.size))
        on_host = isinstance(buffer, np.ndarray)
        landed = functools.partial(wire.landed, self.device_direct)
        if on_host and buffer.nbytes >= _RING_FROM and self.size > 1:
            tag = self._ring_tag
            self._ring_tag = (tag + num_segments(buffer.nbytes, self.size)) % TAGS
            ring = RingSum(self._sums, buffer, self._wait_for_ring, self._around, tag, mean, landed)
            self._rings = [r for r in self._rings if not r.complete] + [ring]
            return ring
        requests = [
            self._comm.Iallreduce(MPI.IN_PLACE, buffer[at : at + _CHUNK], MPI.SUM)
            for at in range(0, len(buffer), _CHUNK)
        ]

        def complete(_: Any) -> None:
            if mean:
                buffer[:] = buffer / self.size
            landed()

        return _Operation(self, requests, complete, (wire, buffer))

    def all_reduce_max(self, value: float) -> float:
        """See Communicator.all_reduce_max."""
        from mpi4py import MPI

        result = np.array([value], np.float32)
        self.traffic.add(all_reduce_nbytes(result.nbytes, self.size))
        request = self._comm.Iallreduce(MPI.IN_PLACE, result, MPI.MAX)
        self._wait_for(request.Test)
        return float(result[0])

    def broadcast(self, data: npt.NDArray[np.uint8], root: int = 0) -> None:
        """See Communicator.broadcast."""
        for at in range(0, len(data), _CHUNK):
            part = data[at : at + _CHUNK]
            if self.rank == root:
                self._count(part, copies=min(1, self.size - 1))
            request = self._comm.Ibcast(part, root)
            self._wait_for(request.Test)

    def all_gather_object(self, value: Any) -> list[Any]:
        """See Communicator.all_gather_object."""
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        counts = np.zeros(self.size, np.int64)
        request = self._comm.Iallgather(np.array([data.size]), counts)
        self._wait_for(request.Test)
        everything = np.empty(counts.sum(), np.uint8)
        self._count(data, copies=self.size - 1)
        request = self._comm.Iallgatherv(data, [everything, counts.tolist()])
        self._wait_for(request.Test)
        ends = np.cumsum(counts)
        return [
            pickle.loads(everything[e - c : e].tobytes()) for c, e in zip(counts, ends, strict=True)
        ]

    def barrier(self) -> None:
        """See Communicator.barrier."""
        self._wait_for(self._comm.Ibarrier().Test)

    def _finish(self) -> None:
        """Complete what is under way before MPI finalizes, which may hang on it otherwise."""
        deadline = time.monotonic() + _EXIT_WAIT_S
        for operation in list(self._under_way):
            while not operation.test() and time.monotonic() < deadline:
                time.sleep(1e-3)
        if time.monotonic() > deadline:
            sys.stderr.write(
                f"decentral: rank {self.rank}: messages to or from other ranks were still under "
                "way long after the script ended; did they all do as many steps?\n"
            )
