"""DistributedOptimizer: the one thing that a training script touches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .algorithms import Algorithm, GossipAlgorithm, GradientAlgorithm
from .averaging import average_of_model
from .buckets import Buckets
from .communicators import Communicator, as_communicator
from .consensus import Consensus
from .engine import Engine
from .ledger import Ledger
from .mixer import Every, Mixer, PeriodicMean, Rounds
from .reducer import Reducer
from .scaling import unscale
from .startup import (
    agree_how_device_buffers_travel,
    broadcast_tensors,
    check_agreement,
    check_state,
    fingerprint,
    hyperparameters,
    learning_rates,
    trained_parameters,
)


class DistributedOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, so that its steps are data-parallel over the ranks of a communicator.

    Construct it on all ranks, after the model is on its device. Parameters and buffers of rank 0
    are broadcast. It is a torch Optimizer that shares param_groups and state with the one it wraps:
    schedulers, closures, hooks and GradScaler take it. With a gradient algorithm, gradients are
    averaged during backward(), in the background, and complete when it ends, so clip_grad_norm_
    sees the averaged ones. With gossip they stay local, and step() mixes the parameters, while
    messages travel during the next forward and backward pass. Float32 gradients, or with gossip
    parameters, become views of flat buffers.

    Args:
        optimizer: over parameters of `model`.
        model: whose parameters and buffers are broadcast and averaged.
        algorithm: a decentral Algorithm; it serves this optimizer alone.
        comm: an mpi4py communicator (default COMM_WORLD), or a decentral Communicator.
        seed: of the compressor's draws, equal on all ranks.
        bucket_cap_mb: MiB of float32 that travel as one message; less than DDP's 25, since encoding
            one overlaps with sending another.
        local_steps: steps that ranks do alone between two exchanges. With gossip, parameters are
            mixed after each so many; with a gradient algorithm, gradients stay local, and what the
            parameters moved by is averaged: periodic averaging, or local SGD.
        average_every, consensus_every: with gossip, steps after which all parameters are averaged,
            or the distance between ranks is estimated from a sample; 0 is never.

    Raises:
        MismatchError: the ranks differ in model, algorithm, options or version; on every rank.
        ValueError: a parameter of the optimizer is not in the model, or the topology does not fit.
        RuntimeError: mpirun and MPI library do not belong together.
    """

    # GradScaler then calls step() always, with grad_scale and found_inf: with gossip a rank that
    # skips an update still has to answer its neighbors.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        algorithm: Algorithm,
        comm: Any = None,
        *,
        seed: int = 0,
        bucket_cap_mb: float = 8.0,
        local_steps: int = 1,
        average_every: int = 0,
        consensus_every: int = 100,
    ) -> None:
        self._every = Every(local_steps, average_every, consensus_every).check()
        self.optimizer = optimizer
        # What unpickling an Optimizer does: hooks and profiling, but no groups of our own.
        self.__setstate__({"defaults": optimizer.defaults})
        self._model, self._algorithm = model, algorithm
        self._communicator = as_communicator(comm)
        self._comm = self._communicator.split(0)  # nobody else's, so that nothing gets mixed up
        self._steps, self._seed = 0, seed
        self._ledger = Ledger(self._comm)
        with self._ledger.counting("startup"):
            self._start(bucket_cap_mb)

    def _start(self, bucket_cap_mb: float) -> None:
        comm, algorithm = self._comm, self._algorithm
        algorithm.join(comm)
        model, trained = self._model, trained_parameters(self.optimizer, self._model)
        options = {
            "the algorithm": algorithm,
            "seed and bucket_cap_mb": (self._seed, bucket_cap_mb),
            "steps between exchanges": self._every,
            "the optimizer": hyperparameters(self.optimizer),
        }
        check_agreement(comm, fingerprint(options, model, trained))
        self._buckets = Buckets(trained, bucket_cap_mb)
        broadcast_tensors(comm, itertools.chain(model.parameters(), model.buffers()))
        agree_how_device_buffers_travel(comm, model.parameters())
        threads = min(comm.cores_per_rank, torch.get_num_threads())
        comm.first_on_each_host(lambda: algorithm.prepare(threads))
        x = self._buckets.gather(self._buckets.parameters, self._buckets.empty())
        vectors = [bucket.of(x) for bucket in self._buckets]
        algorithm.start(self._seed, vectors, [bucket.numels for bucket in self._buckets])
        self._engine = Engine(comm)
        self._reducer: Reducer | None = None
        self._rounds: Rounds | None = None
        if comm.size == 1:
            return
        rounds = (self._buckets, x, comm, self._engine, self._every.local_steps)
        if isinstance(algorithm, GossipAlgorithm):
            self._rounds = Mixer(algorithm, *rounds)
            self._consensus = Consensus(comm.split(0), self._buckets, self._seed)
        elif isinstance(algorithm, GradientAlgorithm) and self._every.local_steps > 1:
            self._rounds = PeriodicMean(algorithm, *rounds)
        elif isinstance(algorithm, GradientAlgorithm):
            self._reducer = Reducer(
                algorithm, self._buckets, comm, self._engine, self._begin_averaging
            )

    def _begin_averaging(self) -> int:
        step = self._steps + 1
        rates = learning_rates(self.optimizer, self._buckets)
        self._algorithm.begin_step(step, rates)  # type: ignore[attr-defined]
        return step

    @property
    def communicator(self) -> Communicator:
        """The ranks, for the script: rank, size, local_rank, all_gather_object(), barrier()."""
        return self._communicator

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
        if self._reducer is not None:
            self._reducer.forget()
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, and under "decentral" this rank's of the algorithm.

        Tensors, numbers and strings only, so that torch.load(weights_only=True) reads it.
        """
        self._settle()
        ours = {
            **self._identity(),
            "steps": self._steps,
            "state": self._algorithm.state_dict(),
            "round": self._rounds.state_dict(self._steps) if self._rounds is not None else {},
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
            "local_steps": self._every.local_steps,
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
        self._settle()
        self.optimizer.load_state_dict(theirs)
        self._algorithm.load_state_dict(ours["state"])
        if self._rounds is not None:
            self._rounds.load_state_dict(ours["round"])
        self._steps = ours["steps"]

    # ---- one step ---------------------------------------------------------------------------

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward() only accumulates gradients; the next one outside averages the sum."""
        reducer = self._reducer
        if reducer is None:
            yield
            return
        before, reducer.sync = reducer.sync, False
        try:
            yield
        finally:
            reducer.sync = before

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Perform one step of the wrapped optimizer, and of the algorithm.

        Under GradScaler, a rank (with gossip), or all (otherwise), may skip the optimizer's part.

        Raises:
            NotFiniteError: a gradient, or parameter, is NaN or inf; names rank, step and parameter.
        """
        overflow = unscale(self, self.optimizer)
        if self._rounds is not None:
            local = None if overflow else self._local_step(closure)
            result = self._rounds.step(self._steps + 1, local)
        else:
            if overflow is not None and self._reducer is not None and not self._reducer.averaged:
                raise RuntimeError(
                    "GradScaler looks for overflows before step(), expected gradients that are "
                    "averaged by then; call the last backward() of a step outside no_sync()"
                )
            if overflow:
                return None
            if self._reducer is None:
                result = self._local_step(closure)()
            else:
                result = self._reducer.step(self.optimizer, closure)
        self._steps += 1
        if isinstance(self._rounds, Mixer):
            self._look_around(self._rounds)
        return result

    def _look_around(self, mixer: Mixer) -> None:
        """Estimate how far ranks are apart, and average their parameters, when it is time."""
        if self._every.looks(self._steps):
            with self._ledger.counting("averaging", self._consensus.comm):
                self._ledger.consensus_distance = self._consensus.measure(mixer.parameters())
        if self._every.averages(self._steps):
            mixer.settle()
            with self._ledger.counting("averaging"):
                self._ledger.consensus_distance = mixer.average()

    def _local_step(self, closure: Callable[[], Any] | None) -> Callable[[], Any]:
        return lambda: self.optimizer.step(closure) if closure else self.optimizer.step()

    def _settle(self) -> None:
        """Let messages under way arrive, since what follows reads, or changes, what they do."""
        if self._rounds is not None:
            self._rounds.settle()

    # ---- looking at it ----------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the average over ranks of parameters and buffers.

        For evaluation and export; afterwards every rank has its own again. All ranks must enter.
        """
        self._settle()
        average = average_of_model(self._comm, self._model, self._buckets)
        with ExitStack() as stack:
            with self._ledger.counting("averaging"):
                self._ledger.consensus_distance = stack.enter_context(average)
            yield

    def stats(self) -> dict[str, Any]:
        """Return figures of this rank; needs no other rank.

        steps; parameters (that travel); bytes_sent (all steps), bytes_sent_startup and
        bytes_sent_averaging apart; bits_per_parameter of the last message; consensus_distance,
        sqrt(mean over ranks ||x_i - mean||^2), as averaged() or average_every found it last, or
        consensus_every estimated it, 0 at the start; communication_s, in which messages were made,
        under way or read, waited_s of it, in which this rank's training stood still for them, and
        hidden, the share that was not waited for; and what algorithm and compressor count (intsgd:
        clipped, largest_integer; gossip: edges_across_hosts).
        """
        return self._ledger.stats(self._steps, self._buckets, self._algorithm, self._engine)
