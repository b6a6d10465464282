"""The face of a torch Optimizer, in front of another one."""

from __future__ import annotations

from typing import Any

import torch


class Wrapper(torch.optim.Optimizer):
    """A torch Optimizer whose groups and state are those of the one it wraps, `optimizer`."""

    # GradScaler then calls step() always, with grad_scale and found_inf: with gossip a rank that
    # skips an update still has to answer its neighbors.
    _step_supports_amp_scaling = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        # What unpickling an Optimizer does: hooks and profiling, but no groups of our own.
        self.__setstate__({"defaults": optimizer.defaults})

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
