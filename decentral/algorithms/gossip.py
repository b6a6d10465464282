"""What every gossip algorithm is: parameters of one's own, mixed with what the neighbors send."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

import decentral_topologies
from decentral_kernels.elementwise import Applied, Elementwise, in_turn
from decentral_topologies import Topology, crossing, place

from ..communicators.base import Pending
from ..compressors.base import Compressor
from ..payload import Payload, as_array, keep_array
from ..registry import described
from .base import Algorithm, Publishing, naming_senders
from .noise import warn_of_noise
from .rounds import Place, Round, message_nbytes

# By name, as an object, or as a function of the number of ranks, which a script may not know yet.
TopologyLike = str | Topology | Callable[[int], Topology]


class GossipAlgorithm(Algorithm):
    """Every rank holds parameters of its own and mixes them with its neighbors'.

    A topology that follows from the number of ranks is laid so that few edges cross hosts.

    What arrives from the neighbors is added into S, weighted by W: updates are linear, so there is
    no replica per neighbor. An algorithm says what S means; one that updates it for ever keeps it
    relative to its own estimate, S_i = sum_j W_ij (xt_j - xt_i), which is small, so that what
    rounding adds to it stays small too. A step is update(), which finds S complete, and publish(),
    which runs in the background during the next forward and backward pass; or, where the next
    gradient needs what the neighbors send (`synchronous`), until finish(), at the end of the step.

    Messages of step t, from 1, travel along the topology's step t - 1. `directed` and
    `time_varying` say which topologies an algorithm takes, `averages` whether W's rows have to add
    up to 1 as its columns do; `vectors` names what it keeps, a vector per bucket, `keeps_x` whether
    that of update()'s x, too, is to be there the next time, and `shares_x` whether it is what the
    neighbors know, unrounded where parameters are not float32; `trains_to_noise` is the largest
    ||C(z) - z||^2 / ||z||^2 of a compressor with which it trained; `formulas` are to be compiled.
    Where update() applies one of them by _encode_in_parts(), `x_new_at` says which of its vectors
    is x_new, and `rest`, what is left of the local optimizer's step on the bucket, comes before it;
    that is one of the formulas `local`.
    """

    directed: ClassVar[bool] = False
    time_varying: ClassVar[bool] = False
    averages: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False
    keeps_x: ClassVar[bool] = True
    shares_x: ClassVar[bool] = False
    x_new_at: ClassVar[int | None] = None
    trains_to_noise: ClassVar[float] = math.inf
    vectors: ClassVar[tuple[str, ...]] = ("S",)
    formulas: ClassVar[tuple[Elementwise, ...]] = ()
    local: Collection[Elementwise] = ()
    rest: Applied | None = None
    S: list[Tensor]

    def __init__(
        self, topology: TopologyLike = "ring", compressor: Compressor | None = None
    ) -> None:
        super().__init__(compressor)
        if not (isinstance(topology, (str, Topology)) or callable(topology)):
            raise TypeError(
                f"{self.name}: topology: expected a name, a decentral_topologies.Topology or a "
                f"function of the number of ranks, got {described(topology)}"
            )
        self.topology: TopologyLike = topology  # a Topology as soon as the ranks are known
        self._wanted = topology
        self._planned: Topology | None = None  # the last one of rounds()

    @classmethod
    def accepts(cls, graph: Topology) -> bool:
        """Return whether the algorithm is right on a topology."""
        if graph.directed > cls.directed or graph.time_varying > cls.time_varying:
            return False
        return not (cls.averages and graph.directed) or graph.is_doubly_stochastic()

    def join(self, comm: Any) -> None:
        """See Algorithm.join."""
        graph = self._graph(comm.size)
        if graph.from_size:  # and not a wiring that tells which rank is where
            graph = place(graph, comm.hosts)
        super().join(comm)
        self.topology = graph
        self._edges_across_hosts = crossing(graph, comm.hosts)
        steps = range(graph.period)
        self._rows = [graph.weights(comm.rank, k) for k in steps]
        self._targets = [graph.targets(comm.rank, k) for k in steps]

    def rejoin(self, comm: Any) -> None:
        """See Algorithm.rejoin; a ring, where the topology does not exist for so many ranks."""
        self.topology = self._wanted
        try:
            super().rejoin(comm)
        except ValueError as error:
            if comm.rank == 0:
                logging.getLogger("decentral").warning(f"decentral: goes on over a ring: {error}")
            self.topology = self._wanted = "ring"
            super().rejoin(comm)

    def prepare(self, threads: int) -> None:
        """See Algorithm.prepare."""
        super().prepare(threads)
        for formula in self.formulas:
            formula.compile()
            if self.x_new_at is not None:
                for first in self.local:
                    in_turn(first, formula, self.x_new_at).compile()

    def W(self, step: int) -> dict[int, float]:
        """Return W_ij by j, this rank's too: what messages of a step are weighted with."""
        return self._rows[(step - 1) % len(self._rows)]

    def start(self, seed: int, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        """See Algorithm.start."""
        super().start(seed, vectors, parts)
        warn_of_noise(self, vectors)
        self.reset(vectors)

    @abstractmethod
    def reset(self, vectors: Sequence[Tensor]) -> None:
        """Begin from these parameters, a vector per bucket, which all ranks have in common."""

    def estimates(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return this rank's estimate, a vector per bucket, which S is relative to.

        Nothing where S is made anew in every step, so that there is none to be wrong. `x` is what
        update() has left there.
        """
        return ()

    def _graph(self, size: int) -> Topology:
        if isinstance(self.topology, str):
            graph = decentral_topologies.from_name(self.topology, size)
        elif isinstance(self.topology, Topology):
            graph = self.topology
        else:
            graph = self.topology(size)
        if graph.size != size:
            raise ValueError(
                f"{self.name}: {graph!r} is for {graph.size} ranks, but there are {size}"
            )
        if not self.accepts(graph):
            raise ValueError(
                f"{self.name}: needs {self._needs()}, got {graph!r}; "
                f"use one of {', '.join(self._valid(size))}"
            )
        return graph

    @classmethod
    def _needs(cls) -> str:
        what = "a" if cls.directed else "an undirected"
        what += " topology" if cls.time_varying else " topology that stays the same"
        return what + (", with rows and columns of W that add up to 1" if cls.averages else "")

    @classmethod
    def _valid(cls, size: int) -> list[str]:
        """Return the names of topologies that it takes and that exist for so many ranks."""
        names = decentral_topologies.available(size)
        named = {name: decentral_topologies.from_name(name, size) for name in names}
        return [name for name, graph in named.items() if cls.accepts(graph)]

    def peers(self) -> Iterable[int]:
        """Return the ranks that messages come from, in any step."""
        return sorted({j for row in self._rows for j in row} - {self.comm.rank})

    def rounds(self, numels: Sequence[int], place: Place) -> list[list[Round]]:
        """See Algorithm.rounds; a message to every target of a step."""
        if self._planned is None or self._planned.size != place.size:
            self._planned = self._graph(place.size)
        targets = self._planned.targets(place.rank)
        return [self._round(self._travels(numel), targets) for numel in numels]

    def _travels(self, numel: int) -> int:
        """Return how many coordinates a message of a bucket of so many has."""
        return numel

    def _round(self, numel: int, targets: tuple[int, ...]) -> list[Round]:
        nbytes = len(targets) * message_nbytes(self.compressor, numel)
        decoded = 4 * numel * (len(targets) + 1)  # its own, too
        return [Round(targets, nbytes, encoded=4 * numel, decoded=decoded)] if targets else []

    @abstractmethod
    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """Turn x_new, the parameters after the local optimizer, into the next iterate, in place.

        x is the algorithm's own: the parameters at first, and then what it has left there, with
        `keeps_x` the iterate, here or in finish(). What the script has done to the parameters since
        is therefore a part of the local update. Both are float32[numel].

        Raises:
            NotFiniteError: the iterate holds NaN or inf, or the message cannot be encoded.
        """

    @abstractmethod
    def publish(self, bucket: int, step: int) -> Publishing:
        """Send what the neighbors need to know of the iterate, and add what theirs is to S."""

    def finish(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """Turn x_new into what the next gradient is taken at, in place; publish() is complete.

        Called where the algorithm is `synchronous`.
        """
        raise NotImplementedError

    def _encode_in_parts(
        self, bucket: int, z: Tensor, step: int, made: Applied, *how: Any
    ) -> Payload:
        """Encode this rank's message; `how` is what Compressor.encode_in_parts() takes last."""
        if self.rest is not None and self.x_new_at is not None:
            made, self.rest = made.after(self.rest, self.x_new_at), None
        key = (self._seed, step, self.comm.rank, bucket)
        return self.compressor.encode_in_parts(z, key, self._own[bucket], made, *how)

    def _post(self, bucket: int, step: int) -> Pending:
        """Send the encoded message to this step's targets, and start to receive its sources'."""
        # Neighbors are at most one step apart, so two tags per bucket keep their messages apart;
        # along arcs of one direction a rank may be further ahead, and MPI keeps their order.
        tag = 2 * bucket + step % 2
        targets = self._targets[(step - 1) % len(self._targets)]
        sources = {j: self._received[bucket][j] for j in self.W(step) if j != self.comm.rank}
        return self.comm.exchange(dict.fromkeys(targets, self._own[bucket]), sources, tag)

    def _gossip(
        self, bucket: int, step: int, weight: float = 1.0, own: Payload | None = None
    ) -> Publishing:
        """Exchange the encoded messages, and add sum_j W_ij C_j * `weight` of the neighbors to S.

        With `own`, this rank's message, relative to it: sum_j W_ij (C_j - own).
        """
        yield self._post(bucket, step)
        row = dict(self.W(step))
        W_ii = row.pop(self.comm.rank)
        messages = [] if own is None else [(own, (W_ii - 1) * weight)]
        arrived = {j: self._arrived(bucket, j, step) for j in row}
        messages += [(arrived[j], W_ij * weight) for j, W_ij in row.items()]
        S = self.S[bucket]
        with naming_senders(self.compressor, arrived, S, self._who, bucket, step):
            self.compressor.accumulate_all(messages, S)

    def stats(self) -> dict[str, Any]:
        """Return what the compressor counts, and how many edges cross hosts, of all ranks'."""
        return super().stats() | {"edges_across_hosts": self._edges_across_hosts}

    def state_dict(self) -> dict[str, Any]:
        """See Algorithm.state_dict."""
        kept = {name: [v.clone() for v in getattr(self, name)] for name in self.vectors}
        return super().state_dict() | kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Algorithm.load_state_dict."""
        super().load_state_dict(state)
        for name in self.vectors:
            for vector, saved in zip(getattr(self, name), state[name], strict=True):
                vector.copy_(saved)

    def __repr__(self) -> str:
        how = f"topology={self.topology!r}, compressor={self.compressor!r}"
        return f"{type(self).__name__}({how})"


def zeros(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return a vector of zeros for each, in the same place."""
    return [keep_array(torch.zeros_like(v)) for v in vectors]


def copies(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return a copy of each."""
    return [keep_array(v.clone()) for v in vectors]


def applied(formula: Elementwise, *arguments: Tensor | float) -> Applied:
    """Return a formula with what it is applied to: vectors, and then numbers."""
    return formula.on(*[as_array(a) if isinstance(a, Tensor) else a for a in arguments])
