"""What every algorithm is. It knows encode, decode and exchange, and nothing of bits or of MPI."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..communicators.base import Communicator, Pending
from ..compressors.base import Compressor, lossless
from ..compressors.checks import NotFiniteError
from ..payload import Payload
from ..registry import described
from .rounds import Place, Round

# What runs in the background yields the operations that it waits for, and returns a result.
Averaging = Generator[Pending, None, "NotFiniteError | None"]
Publishing = Generator[Pending, None, None]


class Algorithm(ABC):
    """How ranks agree. An object serves one DistributedOptimizer, which calls join(), then start().

    Vectors are float32[numel], one per bucket; steps count from 1.
    """

    name: ClassVar[str]

    def __init__(self, compressor: Compressor | None = None) -> None:
        self.compressor = lossless() if compressor is None else compressor
        if not isinstance(self.compressor, Compressor):
            raise TypeError(
                f"{self.name}: compressor: expected one such as "
                f"decentral.compressors.from_name('nuqsgd'), got {described(compressor)}"
            )
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

    def rejoin(self, comm: Communicator) -> None:
        """Belong to these ranks instead, which are left of those that it belonged to.

        start() has to follow: residuals, estimates and norms begin anew.
        """
        self._comm = None
        self.join(comm)

    def start(self, seed: int, vectors: Sequence[Tensor], parts: Sequence[Sequence[int]]) -> None:
        """Allocate all there is to allocate.

        `vectors` are the parameters, equal on all ranks; `parts` the coordinates of each tensor in
        each of them. The compressor is from now on one of this algorithm's own, since it may have
        state.
        """
        self._seed = seed
        self.compressor = self.compressor.fresh()
        self._allocate(vectors, parts)

    def adapt(self) -> None:
        """Let the compressor choose what depends on the links, for vectors of the host.

        All ranks have to call it, with equal compressors; before prepare() and start().
        """
        self.compressor = self.compressor.for_links(self.comm.link_speed)

    def prepare(self, threads: int) -> None:
        """Compile, or load from disk, what runs on the CPU, where it may use so many threads."""
        self.compressor.prepare(threads)

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

    @abstractmethod
    def rounds(self, numels: Sequence[int], place: Place) -> list[list[Round]]:
        """Return what a rank sends in a step that is not the first, by bucket; needs no ranks.

        `numels` are the buckets' coordinates. For decentral.simulate.predict().

        Raises:
            ValueError: so many ranks are not possible.
        """

    def stats(self) -> dict[str, Any]:
        """Return what the compressor counts."""
        return self.compressor.stats()

    def _encode(self, bucket: int, message: Tensor, step: int) -> Payload:
        key = (self._seed, step, self.comm.rank, bucket)
        return self.compressor.encode(message, key, out=self._own[bucket])

    def _arrived(self, bucket: int, source: int, step: int) -> Payload:
        """Return the message of a peer, which the exchange has completed.

        Raises:
            ValueError: it is of another step or bucket, or a refusal, which only a mean can take.
        """
        payload = self._received[bucket][source]
        check_message(payload, self._who, source, bucket, step)
        if payload.is_refusal:
            error = ValueError("it is the header alone of a vector that is not finite")
            raise _unreadable(self._who, source, bucket, step, error)
        return payload

    @property
    def _who(self) -> str:
        return f"{self.name}: rank {self.comm.rank}"

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved besides the parameters: tensors and numbers, by name."""
        return {"compressor": self.compressor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict() returned."""
        self.compressor.load_state_dict(state["compressor"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(compressor={self.compressor!r})"


def check_message(payload: Payload, who: str, source: int, bucket: int, step: int) -> None:
    """Raise ValueError, which names the sender, if it is no message of this step and bucket."""
    try:
        head = payload.header()
    except ValueError as error:
        raise _unreadable(who, source, bucket, step, error) from error
    if (head.step, head.bucket) != (step & 0xFFFFFFFF, bucket):
        raise ValueError(
            f"{who} expected bucket {bucket} of step {step} from rank {source}, got bucket "
            f"{head.bucket} of step {head.step}; do all ranks call step() equally often?"
        )


@contextmanager
def naming_senders(
    compressor: Compressor,
    messages: Mapping[int, Payload],
    vector: Any,
    who: str,
    bucket: int,
    step: int,
) -> Iterator[None]:
    """Inside, where other ranks' messages are decoded into a vector, an error names the sender.

    A compressor knows no ranks: where it refuses one of several, each is tried on its own.

    Raises:
        ValueError: one of them cannot be decoded.
    """
    try:
        yield
    except ValueError:
        trial = torch.empty_like(torch.as_tensor(vector))
        for source, payload in messages.items():
            try:
                compressor.decode(payload, trial)
            except ValueError as error:
                raise _unreadable(who, source, bucket, step, error) from error
        raise


def _unreadable(who: str, source: int, bucket: int, step: int, error: ValueError) -> ValueError:
    return ValueError(
        f"{who} cannot read the message of rank {source} for bucket {bucket} of step {step}: "
        f"{error}"
    )


class GradientAlgorithm(Algorithm):
    """All ranks hold the same parameters and average their gradients."""

    def begin_step(self, step: int, rates: Sequence[Sequence[float]], again: int = 0) -> None:
        """Prepare for the buckets of a step; `rates` are the tensors' learning rates, by bucket.

        `again` counts how often gradients were averaged in this step before: what is added to a
        mean has to be rounded by other draws than the mean was, or rounding is biased.
        """

    def retract(self, step: int) -> None:
        """Forget what the messages of a step, the last one, have changed: they are not used."""
        self.compressor.retract(step)

    @abstractmethod
    def average(self, bucket: int, g: Tensor, step: int) -> Averaging:
        """Replace the gradient g, float32[numel], by an estimate of the mean over ranks.

        What it returns is None, or why the mean is not finite on any rank: this one's mistake, with
        the coordinate, or (index -1) another's.
        """
