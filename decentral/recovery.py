"""Going on with other ranks than before: without those that have died, or on another number."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from .algorithms import GossipAlgorithm
from .averaging import average_parameters
from .communicators import Communicator, RankLostError
from .join import take_over
from .startup import broadcast_tensors, check_agreement
from .stepping import Stepping


class Survivors:
    """Which of the ranks that a job began with are left: `lost` are numbered as then."""

    def __init__(self, comm: Communicator) -> None:
        self._number, self._began_with = comm.rank, comm.size
        self.lost: tuple[int, ...] = ()

    def agree(self, comm: Communicator, steps: int) -> tuple[int, int]:
        """Return the steps of the rank that has done most, and its number in `comm`."""
        everyone = comm.all_gather_object((steps, self._number))
        living = {number for _, number in everyone}
        self.lost = tuple(r for r in range(self._began_with) if r not in living)
        most = max(done for done, _ in everyone)
        return most, next(r for r, (done, _) in enumerate(everyone) if done == most)


class Recovering(Stepping):
    """What DistributedOptimizer does when the ranks are others than before."""

    _communicator: Communicator
    _survivors: Survivors

    @abstractmethod
    def _begin(self) -> None:
        """Begin from the parameters, which the ranks of self._comm have in common."""

    def recover(self) -> tuple[int, ...]:
        """Go on without ranks that have died, after RankLostError; every survivor has to call it.

        Needs an MPI that survives: Open MPI by `mpirun --with-ft ulfm`. The step in which a rank
        died is lost, stats()["steps"] equal on all ranks then, and so are the parameters: those of
        the rank that has done most steps or, with gossip, the mean. Residuals, estimates and
        running norms begin anew. `communicator` is of the survivors: shard the data anew.

        Returns:
            The ranks lost since the beginning, by their numbers then.

        Raises:
            RuntimeError: this MPI cannot go on without a rank; or inside join(), which other ranks
                may have left.
        """
        self._joining.refuse("recover()")
        while True:
            try:
                self._go_on()
                return self._survivors.lost
            except RankLostError:
                continue  # another one died meanwhile

    def _go_on(self) -> None:
        self._engine.abandon()
        self._communicator = self._communicator.survivors()
        traffic, self._comm = self._comm.traffic, self._communicator.split(0)
        self._ledger.comm, self._comm.traffic = self._comm, traffic
        with self._ledger.counting("recovery"):
            self._bring_together()
            self._begin_anew()

    @torch.no_grad()
    def _bring_together(self) -> None:
        """Let all ranks begin from the same parameters.

        Replicas from those of a rank that has done most, since some may have done a step that
        others have not; with gossip from their mean, as estimates of each other have to begin
        equal: the optimizer's state is then still each rank's own.
        """
        comm, (steps, root) = self._comm, self._survivors.agree(self._comm, self._steps)
        counts = (steps, self._skips.count)
        if isinstance(self._algorithm, GossipAlgorithm):
            average_parameters(comm, self._buckets)
        else:
            counts = take_over(comm, self._model, self.optimizer, root, counts)
        self._steps, self._skips.count = counts

    def _begin_anew(self) -> None:
        skipped = self._skips.count
        self._algorithm.rejoin(self._comm)
        self._begin()
        self._skips.count = skipped
        if self._rounds is not None:
            self._rounds.restart()

    def adopt(self, state_dict: dict[str, Any]) -> None:
        """Take over what state_dict() returned in a run of another number of ranks; all must call.

        The wrapped optimizer's state, and the number of steps. Load the model before: its
        parameters are rank 0's on all ranks then, and residuals, estimates and running norms begin
        anew.

        Raises:
            MismatchError: the ranks' are of different steps.
        """
        self._refuse_inside("adopt()")
        self._joining.refuse("adopt()")
        theirs = dict(state_dict)
        ours = theirs.pop("decentral")
        steps = ours["steps"]
        if self._rounds is not None:
            self._rounds.settle()
        check_agreement(self._comm, [("the step to resume from", steps)])
        with self._ledger.counting("startup"):
            broadcast_tensors(self._comm, self._model.parameters())
            self.optimizer.load_state_dict(theirs)
            self._engine.end(0.0)
            self._steps = steps
            self._begin_anew()
        self._ledger.resume(ours["bytes_sent"])
