"""Simulation: training with n virtual workers, of which one thread is all."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn

from ..algorithms import Algorithm, GossipAlgorithm, GradientAlgorithm
from ..averaging import unused_by_all
from ..communicators.base import Pending
from ..compressors import NotFiniteError
from ..reducer import located
from .communicator import SimulatedCommunicator, World, take_turns
from .stacked import Stacked
from .workers import Looped, Loss, OptimizerOf, Workers

Vectors = list[list[Tensor]]  # by worker, by bucket: views of a matrix


class Simulation:
    """`size` workers that train one model, with an algorithm object each.

    Args:
        model: what all workers start from; it is not changed.
        size: the number of workers.
        algorithm: makes a worker's algorithm; called once for each.
        optimizer: makes an optimizer of the parameters it is given, in the model's order: of
            stacked ones, [size, ...], or without `vectorize` of each worker's.
        loss: (output of the model, target) -> scalar.
        seed, bucket_cap_mb, local_steps: as DistributedOptimizer's.
        vectorize: whether gradients of all workers are computed at once (torch.func.vmap); else one
            after the other, which takes any model, and does what real ranks do bit for bit.

    Raises:
        ValueError: an option is out of range, or the optimizer or topology does not fit.
        TypeError: `algorithm` is no function.
        NotImplementedError: the algorithm's exchange is not simulated; says what to use instead.
    """

    def __init__(
        self,
        model: nn.Module,
        size: int,
        algorithm: Callable[[], Algorithm],
        optimizer: OptimizerOf,
        loss: Loss,
        *,
        seed: int = 0,
        bucket_cap_mb: float = 8.0,
        local_steps: int = 1,
        vectorize: bool = True,
    ) -> None:
        if size < 1 or local_steps < 1:
            raise ValueError(
                f"simulation: expected size and local_steps of at least 1, got {size} and "
                f"{local_steps}"
            )
        if not callable(algorithm):
            raise TypeError(
                f"simulation: expected a function that makes an algorithm, got {algorithm!r}; "
                "every worker has one of its own, so pass lambda: from_name(...)"
            )
        self.size, self._local_steps = size, local_steps
        self._steps = 0
        self.algorithms = [algorithm() for _ in range(size)]
        self._gossips = isinstance(self.algorithms[0], GossipAlgorithm)
        self.workers: Workers
        if vectorize:
            self.workers = Stacked(model, size, bucket_cap_mb, optimizer, loss)
        else:
            adopt = size > 1 and (self._gossips or local_steps > 1)
            self.workers = Looped(model, size, bucket_cap_mb, optimizer, loss, adopt)
        self._start(seed)

    def _start(self, seed: int) -> None:
        world, workers = World(self.size), self.workers
        self._comms = [SimulatedCommunicator(world, rank) for rank in range(self.size)]
        self._new = self._vectors(workers.x)
        self._beginning = [part.clone() for part in workers.x]  # of a round: parameters
        self._old = self._vectors(self._beginning)
        parts = [bucket.numels for bucket in workers.buckets]
        for algorithm, comm, vectors in zip(self.algorithms, self._comms, self._old, strict=True):
            algorithm.join(comm)
            algorithm.prepare(torch.get_num_threads())
            algorithm.start(seed, vectors, parts)

    def _vectors(self, matrices: list[Tensor]) -> Vectors:
        """Return every bucket of every worker, float32[numel]."""
        rows = ([part[rank] for part in matrices] for rank in range(self.size))
        return [[bucket.of(row) for bucket in self.workers.buckets] for row in rows]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One for all workers, or without `vectorize` one for each: a schedule belongs on all."""
        return self.workers.optimizers

    # ---- one step -----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, x: Any, y: Any) -> Tensor:
        """Let every worker take a step on its own batch, and return their losses, float32[size].

        x and y are [size, batch, ...]: x[r] is what worker r's model gets.

        Raises:
            NotFiniteError: a gradient, or parameter, is NaN or inf; names rank, step and parameter.
            ValueError: x or y is not of `size` batches.
        """
        if len(x) != self.size or len(y) != self.size:
            raise ValueError(
                f"simulation: expected a batch for each of {self.size} workers, x and y [size, "
                f"batch, ...], got {len(x)} and {len(y)}; split the batch"
            )
        losses = self.workers.backward(x, y)
        if self.size == 1:
            self.workers.step()
        elif self._gossips or self._local_steps > 1:
            self._step_of_a_round()
        else:
            self._step_with_means()
        self._steps += 1
        return losses

    # ---- gossip, or local steps: what mixer.py does, for all ranks ----------------------------

    def _step_of_a_round(self) -> None:
        if self._steps % self._local_steps == 0 and not self._gossips:
            for old, new in zip(self._beginning, self.workers.x, strict=True):
                old.copy_(new)
        self.workers.step()
        t, rest = divmod(self._steps + 1, self._local_steps)
        if rest == 0 and self._gossips:
            self._gossip(t)
        elif rest == 0:
            self._subtract()
            self._average(self._new, [[1.0] * len(b.indices) for b in self.workers.buckets], t)
            self._subtract()

    def _gossip(self, t: int) -> None:
        for b in range(len(self.workers.buckets)):
            self._mix(b, t)
        gossip: list[GossipAlgorithm] = self.algorithms  # type: ignore[assignment]
        for algorithm, old, new in zip(gossip, self._old, self._new, strict=True):
            if algorithm.synchronous:
                for b, vectors in enumerate(zip(old, new, strict=True)):
                    algorithm.finish(b, *vectors, t)

    def _subtract(self) -> None:
        """Turn parameters into what they moved by, or back."""
        for old, new in zip(self._beginning, self.workers.x, strict=True):
            new.neg_().add_(old)

    def _mix(self, b: int, t: int) -> None:
        tasks = []
        for rank, algorithm in enumerate(self.algorithms):
            assert isinstance(algorithm, GossipAlgorithm)
            try:
                algorithm.update(b, self._old[rank][b], self._new[rank][b], t)
            except NotFiniteError as error:
                raise located(error, rank, t, b, self.workers.buckets) from error
            tasks.append(algorithm.publish(b, t))
        take_turns(tasks)

    # ---- means of gradients: what reducer.py does, for all ranks ------------------------------

    def _step_with_means(self) -> None:
        workers, gradients = self.workers, self.workers.gradients()
        self._average(self._vectors(gradients), workers.rates(), self._steps + 1)
        unused = take_turns([self._unused(rank, gradients) for rank in range(self.size)])
        workers.use(gradients, unused[0])
        workers.step()

    def _average(self, vectors: Vectors, rates: list[list[float]], t: int) -> None:
        algorithms: list[GradientAlgorithm] = self.algorithms  # type: ignore[assignment]
        for algorithm in algorithms:
            algorithm.begin_step(t, rates)
        for b in range(len(self.workers.buckets)):
            means = zip(algorithms, vectors, strict=True)
            self._complain(take_turns([a.average(b, v[b], t) for a, v in means]), t, b)

    def _unused(self, rank: int, means: list[Tensor]) -> Generator[Pending, None, set[int]]:
        views = self.workers.buckets.views([part[rank] for part in means])
        return unused_by_all(self._comms[rank], zip(self.workers.used(rank), views, strict=True))

    def _complain(self, errors: list[NotFiniteError | None], t: int, b: int) -> None:
        """Raise what made a mean NaN, in the words of the rank that knows."""
        found = [(rank, error) for rank, error in enumerate(errors) if error is not None]
        if found:
            rank, error = min(found, key=lambda pair: pair[1].index < 0)
            raise located(error, rank, t, b, self.workers.buckets) from error

    # ---- looking at it ------------------------------------------------------------------------

    def worker(self, rank: int) -> nn.Module:
        """Return a copy of the model with the parameters and buffers of a worker."""
        return self.workers.model(rank)

    def average(self) -> nn.Module:
        """Return a copy of the model with the average of all: DistributedOptimizer.averaged()."""
        return self.workers.model()

    @property
    def bytes_sent(self) -> list[int]:
        """What each worker has sent, as DistributedOptimizer.stats()["bytes_sent"]."""
        return [comm.bytes_sent for comm in self._comms]

    def consensus_distance(self) -> float:
        """Return sqrt(mean over workers ||x_i - mean||^2) of the parameters."""
        square = sum(float(part.var(0, unbiased=False).sum()) for part in self.workers.x)
        return math.sqrt(square)

    def stats(self) -> dict[str, Any]:
        """Return figures of all workers.

        steps; parameters (of one worker); bytes_sent, by all workers in all steps; and of worker 0
        bits_per_parameter of the last message, and what algorithm and compressor count.
        """
        numel = sum(bucket.numel for bucket in self.workers.buckets)
        message = sum(map(self.algorithms[0].message_nbytes, range(len(self.workers.buckets))))
        return {
            "workers": self.size,
            "steps": self._steps,
            "parameters": numel,
            "bytes_sent": sum(self.bytes_sent),
            "bits_per_parameter": 8 * message / numel,
            "consensus_distance": self.consensus_distance(),
            **self.algorithms[0].stats(),
        }
