"""DistributedOptimizer: the one thing that a training script touches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .algorithms import Algorithm, GossipAlgorithm, GradientAlgorithm
from .averaging import average_of_model, used_by_some_rank
from .buckets import make_buckets
from .communicators import Communicator, as_communicator
from .compressors import NotFiniteError
from .startup import (
    broadcast_tensors,
    check_agreement,
    check_state,
    fingerprint,
    hyperparameters,
    learning_rates,
    say_how_device_buffers_travel,
    trained_parameters,
)


class DistributedOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, so that its steps are data-parallel over the ranks of a communicator.

    Construct it on all ranks, after the model is on its device. Parameters and buffers of rank 0
    are broadcast. It is a torch Optimizer that shares param_groups and state with the one it wraps:
    schedulers, closures and hooks take it (and GradScaler, while nothing overflows). With a
    gradient algorithm, gradients are averaged when backward() ends, so clip_grad_norm_ sees the
    averaged ones; with gossip they stay local, and step() mixes the parameters.

    Args:
        optimizer: over parameters of `model`.
        model: whose parameters and buffers are broadcast and averaged.
        algorithm: a decentral Algorithm; it serves this optimizer alone.
        comm: an mpi4py communicator (default COMM_WORLD), or a decentral Communicator.
        seed: of the compressor's draws, equal on all ranks.
        bucket_cap_mb: MiB of float32 that travel as one message, as in PyTorch's DDP.

    Raises:
        MismatchError: the ranks differ in model, algorithm, options or version; on every rank.
        ValueError: a parameter of the optimizer is not in the model, or the topology does not fit.
        RuntimeError: mpirun and MPI library do not belong together.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        algorithm: Algorithm,
        comm: Any = None,
        *,
        seed: int = 0,
        bucket_cap_mb: float = 25.0,
    ) -> None:
        self.optimizer = optimizer
        # What unpickling an Optimizer does: hooks and profiling, but no groups of our own.
        self.__setstate__({"defaults": optimizer.defaults})
        self._model = model
        self._algorithm = algorithm
        self._comm = as_communicator(comm)
        self._steps, self._seed = 0, seed
        self._sync, self._averaged, self._queued = True, False, False
        self._consensus_distance = 0.0
        self._bytes = {"steps": 0, "startup": 0, "averaging": 0}
        with self._counting("startup"):
            self._start(bucket_cap_mb)

    def _start(self, bucket_cap_mb: float) -> None:
        comm, algorithm = self._comm, self._algorithm
        algorithm.join(comm)
        model, trained = self._model, trained_parameters(self.optimizer, self._model)
        options = {
            "the algorithm": algorithm,
            "seed and bucket_cap_mb": (self._seed, bucket_cap_mb),
            "the optimizer": hyperparameters(self.optimizer),
        }
        check_agreement(comm, fingerprint(options, model, trained))
        self._buckets = make_buckets(trained, bucket_cap_mb)
        broadcast_tensors(comm, itertools.chain(model.parameters(), model.buffers()))
        say_how_device_buffers_travel(comm, model.parameters())
        comm.first_on_each_host(lambda: algorithm.compressor.prepare(comm.cores_per_rank))
        vectors = [b.gather(b.parameters, b.empty()) for b in self._buckets]
        algorithm.start(self._seed, vectors, [b.numels for b in self._buckets])
        if isinstance(algorithm, GradientAlgorithm) and comm.size > 1:
            for p in itertools.chain.from_iterable(b.parameters for b in self._buckets):
                p.register_post_accumulate_grad_hook(self._gradient_ready)

    @property
    def communicator(self) -> Communicator:
        """The ranks: rank, size, local_rank, all_gather_object(), barrier()."""
        return self._comm

    # ---- the torch Optimizer's face: groups and state are the wrapped one's -----------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups, so that a scheduler of either acts on both."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: ranks have agreed on the parameters.

        Raises:
            RuntimeError: always; add the group to the optimizer before it is wrapped.
        """
        raise RuntimeError("add the group to the optimizer before DistributedOptimizer wraps it")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self._averaged = self._queued = False
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, and under "decentral" this rank's of the algorithm.

        Tensors, numbers and strings only, so that torch.load(weights_only=True) reads it.
        """
        ours = {
            **self._identity(),
            "steps": self._steps,
            "state": self._algorithm.state_dict(),
        }
        return {**self.optimizer.state_dict(), "decentral": ours}

    def _identity(self) -> dict[str, Any]:
        """Return what the run that loads a state must have in common with the one that saved it."""
        return {
            "algorithm": repr(self._algorithm),
            "rank": self._comm.rank,
            "size": self._comm.size,
            "seed": self._seed,
            "buckets": [b.numel for b in self._buckets],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what state_dict() returned on this rank; load the model's parameters apart.

        All ranks must call it.

        Raises:
            MismatchError: the ranks' are of different steps.
            ValueError: it is a plain optimizer's, or of another algorithm, rank or size.
        """
        theirs = dict(state_dict)
        ours = theirs.pop("decentral", None)
        check_state(self._comm, ours, self._identity())
        self.optimizer.load_state_dict(theirs)
        self._algorithm.load_state_dict(ours["state"])
        self._steps = ours["steps"]

    # ---- one step ---------------------------------------------------------------------------

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward() only accumulates gradients; the next one outside averages the sum."""
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    def _gradient_ready(self, p: Tensor) -> None:
        self._averaged = False
        if self._sync and not self._queued:
            self._queued = True
            # The way DDP and FSDP learn of the end of backward(); torch has no public one.
            torch.autograd.Variable._execution_engine.queue_callback(self._average_gradients)

    def _average_gradients(self) -> None:
        """Average all gradients once; ranks do so equally often, whichever parameters they used."""
        self._queued = False
        algorithm = self._algorithm
        if not isinstance(algorithm, GradientAlgorithm) or self._averaged or self._comm.size == 1:
            return
        pairs: list[tuple[nn.Parameter, Tensor]] = []
        algorithm.begin_step(self._steps + 1, learning_rates(self.optimizer, self._buckets))
        for b, bucket in enumerate(self._buckets):
            g = bucket.gather((p.grad for p in bucket.parameters), bucket.empty())
            with self._exchanging(b):
                algorithm.average(b, g, self._steps + 1)
            pairs += zip(bucket.parameters, bucket.views(g), strict=True)
        with self._counting("steps"):
            used = used_by_some_rank(self._comm, pairs)
        for p, mean in used:
            if p.grad is None:
                p.grad = mean.to(p.dtype, copy=True)
            else:
                p.grad.copy_(mean)
        self._averaged = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Perform one step of the wrapped optimizer, and of the algorithm.

        Raises:
            NotFiniteError: a gradient, or parameter, is NaN or inf; names rank, step and parameter.
        """
        self._queued = False
        if isinstance(self._algorithm, GossipAlgorithm) and self._comm.size > 1:
            result = self._gossip_step(self._algorithm, closure)
        else:
            result = self._local_step(closure)
        self._steps += 1
        self._averaged = False
        return result

    def _local_step(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            self._average_gradients()  # if backward() was inside no_sync(), or not called at all
            return self.optimizer.step()

        def averaging_closure() -> Any:
            self._averaged = False
            with torch.enable_grad():
                loss = closure()
            self._average_gradients()
            return loss

        return self.optimizer.step(averaging_closure)

    def _gossip_step(self, algorithm: GossipAlgorithm, closure: Callable[[], Any] | None) -> Any:
        before = [b.gather(b.parameters, b.empty()) for b in self._buckets]
        # Optimizers turn gradients on for their closure themselves.
        result = self.optimizer.step(closure) if closure else self.optimizer.step()
        for b, (bucket, x) in enumerate(zip(self._buckets, before, strict=True)):
            x_new = bucket.gather(bucket.parameters, bucket.empty())
            with self._exchanging(b):
                algorithm.update(b, x, x_new, self._steps + 1)
            bucket.scatter(x_new)
        return result

    @contextmanager
    def _counting(self, what: str) -> Iterator[None]:
        """Count the bytes sent inside as steps', start-up's or averaging's."""
        before = self._comm.bytes_sent
        yield
        self._bytes[what] += self._comm.bytes_sent - before

    @contextmanager
    def _exchanging(self, b: int) -> Iterator[None]:
        """Count bytes; add rank, step, bucket and parameter to what a compressor complains of."""
        try:
            with self._counting("steps"):
                yield
        except NotFiniteError as error:
            name = self._buckets[b].name_at(error.index)
            raise NotFiniteError(
                f"rank {self._comm.rank}, step {self._steps + 1}, bucket {b}: {error}, which "
                f"belongs to parameter {name!r}: its gradient, or the step taken with it, is not "
                "finite. Lower the learning rate, clip gradients, or look at this rank's batch",
                error.index,
            ) from error

    # ---- looking at it ----------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the average over ranks of parameters and buffers.

        For evaluation and export; afterwards every rank has its own again. All ranks must enter.
        """
        average = average_of_model(self._comm, self._model, self._buckets)
        with ExitStack() as stack:
            with self._counting("averaging"):
                self._consensus_distance = stack.enter_context(average)
            yield

    def stats(self) -> dict[str, Any]:
        """Return figures of this rank; needs no other rank.

        steps; parameters (that travel); bytes_sent (all steps), bytes_sent_startup and
        bytes_sent_averaging apart; bits_per_parameter of the last message; consensus_distance,
        sqrt(mean over ranks ||x_i - mean||^2), as the last averaged() found it, 0 at the start; and
        what the compressor counts (intsgd: clipped, largest_integer).
        """
        numel = sum(b.numel for b in self._buckets)
        message = sum(map(self._algorithm.message_nbytes, range(len(self._buckets))))
        return {
            "steps": self._steps,
            "parameters": numel,
            "bytes_sent": self._bytes["steps"],
            "bytes_sent_startup": self._bytes["startup"],
            "bytes_sent_averaging": self._bytes["averaging"],
            "bits_per_parameter": 8 * message / max(1, numel),
            "consensus_distance": self._consensus_distance,
            **self._algorithm.stats(),
        }
