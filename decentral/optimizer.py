"""DistributedOptimizer: the one thing that a training script touches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .algorithms import Algorithm, GossipAlgorithm, GradientAlgorithm
from .averaging import average_of_model
from .buckets import Buckets, Flat
from .communicators import Communicator, as_communicator
from .consistency import Replicas
from .engine import Engine
from .gradients import unhook
from .join import Joining
from .ledger import Ledger
from .local_step import formulas_of
from .memory import keep_freed
from .mixer import Every, Mixer, PeriodicMean, Rounds
from .recovery import Recovering, Survivors
from .reducer import Reducer
from .skipping import Skips, check_choice
from .startup import (
    agree_how_device_buffers_travel,
    broadcast_tensors,
    check_agreement,
    check_kinds,
    check_state,
    fingerprint,
    hyperparameters,
    trained_parameters,
)
from .upkeep import Upkeep, upkeep_of_gossip


class DistributedOptimizer(Recovering):
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
        not_finite: what to do where a gradient of one rank, or a sum over ranks, is NaN or inf:
            "stop" raises; "skip" leaves out the step, on all ranks, which with gossip or
            local_steps ask each other before every update (skipping.py).
        check_every: steps after which ranks compare what they should have equal: parameters, or
            with gossip the estimates that neighbors share; 0 is never.
        timeout: seconds that one wait for other ranks may take, before WaitTimeoutError says whom;
            None leaves it as the communicator has it, 600.

    Raises:
        TypeError: an argument is of another kind, or already a DistributedOptimizer.
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
        bucket_cap_mb: float = 8.0,
        local_steps: int = 1,
        average_every: int = 0,
        consensus_every: int = 100,
        not_finite: str = "stop",
        check_every: int = 0,
        timeout: float | None = None,
    ) -> None:
        check_kinds(optimizer, model, algorithm, timeout)
        self._every = Every(local_steps, average_every, consensus_every, check_every).check()
        self._not_finite = check_choice(not_finite)
        super().__init__(optimizer)
        self._model, self._algorithm = model, algorithm
        self._communicator = as_communicator(comm)
        if timeout is not None:
            self._communicator.watch.timeout = timeout
        self._comm = self._communicator.split(0)  # nobody else's, so that nothing gets mixed up
        self._steps, self._seed, self._inside = 0, seed, 0
        self._ledger, self._survivors = Ledger(self._comm), Survivors(self._comm)
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
            "not_finite": self._not_finite,
            "the optimizer": hyperparameters(self.optimizer),
        }
        check_agreement(comm, fingerprint(options, model, trained))
        self._buckets = Buckets(trained, bucket_cap_mb)
        self._trained = {id(p) for _, p in trained}
        broadcast_tensors(comm, itertools.chain(model.parameters(), model.buffers()))
        agree_how_device_buffers_travel(comm, model.parameters())
        self._begin()

    def _begin(self) -> None:
        """See Recovering._begin."""
        comm, algorithm = self._comm, self._algorithm
        threads = min(comm.cores_per_rank, torch.get_num_threads())
        if not any(p.is_cuda for p in self._buckets.parameters):
            algorithm.adapt()
        if isinstance(algorithm, GossipAlgorithm):
            algorithm.local = formulas_of(self.optimizer)
        comm.first_on_each_host(lambda: algorithm.prepare(threads))
        x = self._buckets.gather(self._buckets.parameters, self._buckets.empty())
        vectors = [bucket.of(x) for bucket in self._buckets]
        algorithm.start(self._seed, vectors, [bucket.numels for bucket in self._buckets])
        self._engine = Engine(comm)
        self._reducer: Reducer | None = None
        self._rounds: Rounds | None = None
        self._upkeep, self._aside = Upkeep(), comm
        for p in self._buckets.parameters:
            unhook(p)  # what another wrapper has hung there, or this one among more ranks
        if comm.size > 1:
            keep_freed(self._buckets.parameters)
            self._connect(x)
        means = self._reducer is not None
        self._skips = Skips(self._not_finite, self._aside, self.optimizer, means)
        self._joining = Joining(
            self._aside,
            average=self._follow_mean,
            step=self._follow_step,
            compare=self._compare,
        )

    def _connect(self, x: Flat) -> None:
        comm, algorithm, every = self._comm, self._algorithm, self._every
        rounds = (self._buckets, x, comm, self._engine, every.local_steps)
        if isinstance(algorithm, GossipAlgorithm):
            self._aside = comm.split(0)  # for what ranks say while a step's messages are under way
            self._rounds = mixer = Mixer(algorithm, *rounds)
            self._upkeep = upkeep_of_gossip(
                every, self._ledger, self._aside, mixer, algorithm, self._buckets, self._seed
            )
        elif isinstance(algorithm, GradientAlgorithm):
            self._replicas = Replicas(comm, self._model.named_parameters())
            self._upkeep = Upkeep((every.checks, self._compare))
            if every.local_steps > 1:
                self._rounds = PeriodicMean(algorithm, *rounds)
                return
            begin = self._begin_averaging
            self._reducer = Reducer(algorithm, self._buckets, comm, self._engine, begin)

    @property
    def communicator(self) -> Communicator:
        """The ranks, for the script: rank, size, local_rank, all_gather_object(), barrier()."""
        return self._communicator

    # ---- what a torch Optimizer has, besides wrapper.py's --------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        if self._reducer is not None:
            self._reducer.forget()
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, and under "decentral" this rank's of the algorithm.

        Tensors, numbers and strings only, so that torch.load(weights_only=True) reads it.
        """
        self._refuse_inside("state_dict()")
        self._settle()
        ours = {
            **self._identity(),
            "steps": self._steps,
            "bytes_sent": self._ledger.bytes_sent,
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
        self._refuse_inside("load_state_dict()")
        self._joining.refuse("load_state_dict()")
        theirs = dict(state_dict)
        ours = theirs.pop("decentral", None)
        self._settle()  # first: what is under way may be a sum, which other ones must not overtake
        check_state(self._comm, ours, self._identity())
        self.optimizer.load_state_dict(theirs)
        self._algorithm.load_state_dict(ours["state"])
        if self._rounds is not None:
            self._rounds.load_state_dict(ours["round"])
        self._steps = ours["steps"]
        self._ledger.resume(ours["bytes_sent"])

    def _settle(self) -> None:
        """Let messages under way arrive, since what follows reads, or changes, what they do."""
        if self._rounds is not None:
            self._rounds.settle()

    # ---- looking at it ----------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the average over ranks of parameters and buffers.

        For evaluation and export; afterwards every rank has its own again. All ranks must enter.

        Raises:
            RuntimeError: inside join(); and inside of this, step(), state_dict() and their like.
        """
        self._joining.refuse("averaged()")
        self._settle()
        average = average_of_model(self._comm, self._model, self._buckets)
        with ExitStack() as stack:
            with self._ledger.counting("averaging"):
                self._ledger.consensus_distance = stack.enter_context(average)
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1

    def stats(self) -> dict[str, Any]:
        """Return figures of this rank; needs no other rank.

        steps; skipped ones apart; parameters (that travel); bytes_sent (all steps), and apart
        bytes_sent_startup and bytes_sent_averaging, comparisons included; bits_per_parameter of the
        last message; consensus_distance, sqrt(mean over ranks ||x_i - mean||^2), as averaged() or
        average_every found it last, or consensus_every estimated it, 0 at the start;
        communication_s, in which messages were made, under way or read, waited_s of it, in which
        this rank's training stood still for them, and hidden, the share that was not waited for;
        and what algorithm and compressor count, or chose (intsgd: clipped, largest_integer; nuqsgd
        and its like: coding; allreduce: exchange, by bucket; gossip: edges_across_hosts).
        """
        figures = self._ledger.stats(self._steps, self._buckets, self._algorithm, self._engine)
        return figures | {"skipped": self._skips.count}
