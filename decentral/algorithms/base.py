"""What every algorithm is. It knows encode, decode and exchange, and nothing of bits or of MPI."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

import decentral_topologies
from decentral_topologies import Topology

from ..communicators.base import Communicator, Pending
from ..compressors.base import Compressor, lossless
from ..payload import Payload

# By name, as an object, or as a function of the number of ranks, which a script may not know yet.
TopologyLike = str | Topology | Callable[[int], Topology]


class Algorithm(ABC):
    """How ranks agree. An object serves one DistributedOptimizer, which calls join(), then start().

    Vectors are float32[numel], one per bucket; steps count from 1.
    """

    name: ClassVar[str]

    def __init__(self, compressor: Compressor | None = None) -> None:
        self.compressor = lossless() if compressor is None else compressor
        self._comm: Communicator | None = None

    @property
    def comm(self) -> Communicator:
        """The ranks that this algorithm belongs to.

        Raises:
            RuntimeError: it belongs to none yet.
        """
        if self._comm is None:
            raise RuntimeError(f"{self.name}: has no ranks yet; pass it to DistributedOptimizer")
        return self._comm

    def join(self, comm: Communicator) -> None:
        """Belong to these ranks from now on.

        Raises:
            ValueError: the topology is not for so many ranks.
            RuntimeError: already belongs to some.
        """
        if self._comm is not None:
            raise RuntimeError(
                f"{self.name}: already belongs to a DistributedOptimizer; construct another one"
            )
        self._comm = comm

    def start(self, seed: int, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        """Allocate all there is to allocate.

        `vectors` are the parameters, equal on all ranks; `parts` the coordinates of each tensor in
        each of them. The compressor is from now on one of this algorithm's own, since it may have
        state.
        """
        self._seed = seed
        self.compressor = self.compressor.fresh()
        self._allocate(vectors, parts)

    def _allocate(self, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        self._own = [self.compressor.new_payload(len(v), like=v) for v in vectors]
        self._received = [self._buffers(v) for v in vectors]

    def peers(self) -> Iterable[int]:
        """Return the ranks that this one exchanges messages with."""
        return self.comm.everyone_else()

    def _buffers(self, vector: Tensor) -> dict[int, Payload]:
        return {j: self.compressor.new_payload(len(vector), like=vector) for j in self.peers()}

    def message_nbytes(self, bucket: int) -> int:
        """Return the size of the last message of a bucket; before the first its largest size."""
        return self._own[bucket].nbytes

    def stats(self) -> dict[str, Any]:
        """Return what the compressor counts."""
        return self.compressor.stats()

    def _post(self, bucket: int, message: Tensor, step: int) -> tuple[Payload, Pending]:
        """Encode a message, send it to all peers, and start to receive theirs."""
        own = self.compressor.encode(
            message, (self._seed, step, self.comm.rank, bucket), out=self._own[bucket]
        )
        # Neighbors are at most one step apart, so two tags per bucket keep their messages apart.
        tag = 2 * bucket + step % 2
        return own, self.comm.exchange(own, self._received[bucket], tag)

    def _arrived(self, bucket: int, source: int, step: int) -> Payload:
        """Return the message of a peer, which the exchange has completed.

        Raises:
            ValueError: it is of another step or bucket.
        """
        payload = self._received[bucket][source]
        self._check(payload, source, bucket, step)
        return payload

    def _check(self, payload: Payload, source: int, bucket: int, step: int) -> None:
        head = payload.header()
        if (head.step, head.bucket) != (step & 0xFFFFFFFF, bucket):
            raise ValueError(
                f"{self.name}: rank {self.comm.rank} expected bucket {bucket} of step {step} from "
                f"rank {source}, got bucket {head.bucket} of step {head.step}; do all ranks call "
                "step() equally often?"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved besides the parameters: tensors and numbers, by name."""
        return {"compressor": self.compressor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict() returned."""
        self.compressor.load_state_dict(state["compressor"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(compressor={self.compressor!r})"


class GradientAlgorithm(Algorithm):
    """All ranks hold the same parameters and average their gradients."""

    def begin_step(self, step: int, rates: Sequence[Sequence[float]]) -> None:
        """Prepare for the buckets of a step; `rates` are the tensors' learning rates, by bucket."""

    @abstractmethod
    def average(self, bucket: int, g: Tensor, step: int) -> None:
        """Replace the gradient g, float32[numel], by an estimate of the mean over ranks."""


class GossipAlgorithm(Algorithm):
    """Every rank holds parameters of its own and mixes them with its neighbors'.

    What arrives from the neighbors is added into S, weighted by W: updates are linear, so there is
    no replica per neighbor. An algorithm says what S means; one that updates it for ever keeps it
    relative to its own estimate, S_i = sum_j W_ij (xt_j - xt_i), which is small, so that what
    rounding adds to it stays small too. An exchange that was posted in one step is collected in the
    next, just before S is needed.
    """

    def __init__(
        self, topology: TopologyLike = "ring", compressor: Compressor | None = None
    ) -> None:
        super().__init__(compressor)
        self.topology: TopologyLike = topology  # a Topology as soon as the ranks are known

    def join(self, comm: Communicator) -> None:
        """See Algorithm.join."""
        graph = self._graph(comm.size)
        super().join(comm)
        self.topology = graph
        self.W = graph.weights(comm.rank)

    def start(self, seed: int, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        """See Algorithm.start."""
        super().start(seed, vectors, parts)
        self.S = [torch.zeros_like(v) for v in vectors]
        self._under_way: list[tuple[Pending, int, float] | None] = [None] * len(vectors)

    def _graph(self, size: int) -> Topology:
        if isinstance(self.topology, str):
            return decentral_topologies.from_name(self.topology, size)
        graph = self.topology if isinstance(self.topology, Topology) else self.topology(size)
        if graph.size != size:
            raise ValueError(
                f"{self.name}: {graph!r} is for {graph.size} ranks, but there are {size}"
            )
        if graph.directed or graph.time_varying:
            raise ValueError(
                f"{self.name}: needs an undirected topology that stays the same, got {graph!r}; "
                f"use one of {', '.join(decentral_topologies.available())}"
            )
        return graph

    def peers(self) -> Iterable[int]:
        """Return the neighbors."""
        return [j for j in self.W if j != self.comm.rank]

    @abstractmethod
    def update(self, bucket: int, x: Tensor, x_new: Tensor, step: int) -> None:
        """Turn x_new, where the local optimizer took x, into the next iterate, and post a message.

        x is left as it is; both are float32[numel].
        """

    def send(self, bucket: int, message: Tensor, step: int, weight: float) -> Payload:
        """Post a message and return it encoded; the neighbors' go into S with W_ij * `weight`."""
        own, pending = self._post(bucket, message, step)
        self._under_way[bucket] = (pending, step, weight)
        return own

    def collect(self, bucket: int) -> Tensor:
        """Complete the exchange under way, if any, and return S, float32[numel]."""
        S = self.S[bucket]
        if self._under_way[bucket] is not None:
            pending, step, weight = self._under_way[bucket]  # type: ignore[misc]
            pending.wait()
            self._under_way[bucket] = None
            for j in self.peers():
                self.compressor.accumulate(self._arrived(bucket, j, step), S, self.W[j] * weight)
        return S

    def state_dict(self) -> dict[str, Any]:
        """See Algorithm.state_dict."""
        S = [self.collect(b).clone() for b in range(len(self.S))]
        return super().state_dict() | {"S": S}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Algorithm.load_state_dict."""
        super().load_state_dict(state)
        for b, S in enumerate(self.S):
            self.collect(b)
            S.copy_(state["S"][b])

    def __repr__(self) -> str:
        how = f"topology={self.topology!r}, compressor={self.compressor!r}"
        return f"{type(self).__name__}({how})"
