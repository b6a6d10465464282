"""After a rank's death: what the survivors have to bring together before they can go on."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from .averaging import average_parameters
from .buckets import Buckets
from .communicators.base import Communicator
from .startup import broadcast_tensors


def broadcast_state(comm: Communicator, state: Any, root: int) -> Any:
    """Return rank `root`'s state_dict(), of tensors, numbers and strings, on every rank."""
    buffer = io.BytesIO()
    if comm.rank == root:
        torch.save(state, buffer)
    sizes = comm.all_gather_object(buffer.tell())
    data = torch.zeros(sizes[root], dtype=torch.uint8)
    if comm.rank == root:
        data.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
    broadcast_tensors(comm, [data], root)
    if comm.rank == root:
        return state
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True, map_location="cpu")


def equalize(
    comm: Communicator, model: nn.Module, optimizer: torch.optim.Optimizer, root: int
) -> None:
    """Give all ranks the replica of rank `root`: parameters, buffers, and the optimizer's state."""
    broadcast_tensors(comm, [*model.parameters(), *model.buffers()], root)
    state = broadcast_state(comm, optimizer.state_dict(), root)
    if comm.rank != root:
        optimizer.load_state_dict(state)


class Survivors:
    """Which of the ranks that a job began with are left, and how far they are.

    `lost` are numbered as at the beginning.
    """

    def __init__(self, comm: Communicator) -> None:
        self._number = comm.rank
        self._began_with = comm.size
        self.lost: tuple[int, ...] = ()

    def agree(self, comm: Communicator, steps: int) -> tuple[int, int]:
        """Return the steps of the rank that has done most, and its number in `comm`."""
        everyone = comm.all_gather_object((steps, self._number))
        living = {number for _, number in everyone}
        self.lost = tuple(r for r in range(self._began_with) if r not in living)
        most = max(done for done, _ in everyone)
        return most, next(r for r, (done, _) in enumerate(everyone) if done == most)

    def bring_together(
        self,
        comm: Communicator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        buckets: Buckets,
        root: int,
        gossip: bool,
    ) -> None:
        """Let all ranks begin from the same parameters.

        Replicas from those of `root`, since some may have done a step that others have not; with
        gossip from their mean, as estimates of each other have to begin equal. An optimizer's state
        is then still each rank's own.
        """
        if gossip:
            with torch.no_grad():
                average_parameters(comm, buckets)
        else:
            equalize(comm, model, optimizer, root)
