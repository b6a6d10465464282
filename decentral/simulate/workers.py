"""The local half of a step for all workers: gradients and optimizers.

Their parameters are the rows of one matrix per device, float32[size, numel], in the order of the
buckets. Stacked (stacked.py) computes all rows at once; Looped is one model and optimizer per
worker, the very operations of a real rank.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..averaging import running_statistics
from ..buckets import Buckets, copy_into

Loss = Callable[[Any, Any], Tensor]  # (output of the model, target) -> scalar
OptimizerOf = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_ALIGN = 16  # float32s, 64 bytes, as torch aligns tensors


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that need gradients, by name.

    Raises:
        ValueError: there are none, or one is not float32.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("expected parameters that require gradients, got none")
    for name, p in named:
        if p.dtype != torch.float32:
            raise ValueError(
                f"simulation: expected float32 parameters, got {p.dtype} of {name!r}; call "
                "model.float()"
            )
    return named


def checked(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Return the optimizer, unless it needs a closure or trains other parameters than these."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "simulation: expected an optimizer that steps once per gradient, got LBFGS, which "
            "needs a closure; use another one"
        )
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if taken != {id(p) for p in parameters}:
        raise ValueError(
            f"simulation: expected an optimizer of the {len(parameters)} parameters it was given, "
            f"got one of {len(taken)}; freeze the others with requires_grad_(False)"
        )
    return optimizer


def matrix_of(size: int, row: Tensor) -> Tensor:
    """Return `size` copies of a row, each as aligned as a tensor of its own.

    The bits that a matrix product gives may depend on that.
    """
    padded = -(-len(row) // _ALIGN) * _ALIGN
    matrix = row.new_zeros(size, padded)[:, : len(row)]
    return matrix.copy_(row)


class Workers(ABC):
    """`size` workers that start with the parameters and buffers of `model`.

    `x` are their parameters, `buckets` the order of a row, `optimizers` one for each worker, or one
    for all.
    """

    buckets: Buckets
    x: list[Tensor]
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, model: nn.Module, size: int, cap_mb: float) -> None:
        self._model, self.size = copy.deepcopy(model), size
        named = trained(self._model)
        self._names = [name for name, _ in reversed(named)]
        self.buckets = Buckets(named, cap_mb)
        row = self.buckets.gather(self.buckets.parameters, self.buckets.empty())
        self.x = [matrix_of(size, part) for part in row]

    @abstractmethod
    def backward(self, x: Any, y: Any) -> Tensor:
        """Find every worker's gradient on its own batch, and return the losses [size]."""

    @abstractmethod
    def step(self) -> None:
        """Let every worker's optimizer change its parameters."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """Return the gradients as `x` holds parameters."""

    @abstractmethod
    def used(self, rank: int) -> list[bool]:
        """Return whether each of the buckets' parameters has a gradient."""

    @abstractmethod
    def use(self, means: list[Tensor], unused: set[int]) -> None:
        """Take what gradients() returned, now averaged, for gradients; none for the `unused`."""

    def rates(self) -> list[list[float]]:
        """Return the learning rate of every tensor, or part of one, by bucket."""
        groups = self.optimizers[0].param_groups
        rates = {id(p): float(g.get("lr", 1.0)) for g in groups for p in g["params"]}
        of_parameter = [rates[id(p)] for p in self._optimized]
        return [[of_parameter[i] for i in bucket.indices] for bucket in self.buckets]

    @property
    @abstractmethod
    def _optimized(self) -> Sequence[Tensor]:
        """The parameters of the first optimizer, in the buckets' order."""

    @abstractmethod
    def _stacks_of_buffers(self) -> dict[str, Tensor]:
        """Return all workers' buffers by name, [size, ...]."""

    def model(self, rank: int | None = None) -> nn.Module:
        """Return a copy of a worker's model, or of the average of all.

        Of buffers that are no floating-point numbers, worker 0's, as DistributedOptimizer has it.
        """
        result = copy.deepcopy(self._model)
        flat = [part.mean(0) if rank is None else part[rank] for part in self.x]
        views = dict(zip(self._names, self.buckets.views(flat), strict=True))
        buffers = dict(result.named_buffers())
        with torch.no_grad():
            for name, p in result.named_parameters():
                if name in views:
                    p.copy_(views[name])
            stacks = self._stacks_of_buffers()
            for name, stack in stacks.items():
                mean = rank is None and stack.is_floating_point()
                buffers[name].copy_(stack.mean(0) if mean else stack[rank or 0])
            for mean_name, name in running_statistics(stacks) if rank is None else ():
                buffers[name].add_(stacks[mean_name].var(0, unbiased=False))
        return result


class Looped(Workers):
    """One after the other, each with a model and an optimizer of its own.

    With `adopt` parameters live in `x`, as Mixer has it.
    """

    def __init__(
        self,
        model: nn.Module,
        size: int,
        cap_mb: float,
        optimizer: OptimizerOf,
        loss: Loss,
        adopt: bool,
    ) -> None:
        super().__init__(model, size, cap_mb)
        self._loss = loss
        self._models = [copy.deepcopy(model) for _ in range(size)]
        self._buckets = [Buckets(trained(m), cap_mb) for m in self._models]
        self._rows = [[part[r] for part in self.x] for r in range(size)]
        for buckets, row in zip(self._buckets, self._rows, strict=True):
            if adopt:
                buckets.adopt(row)
        self.optimizers = [
            checked(optimizer(buckets.parameters[::-1]), buckets.parameters)
            for buckets in self._buckets
        ]
        self._g: list[Tensor] = []  # only if they are averaged

    def backward(self, x: Any, y: Any) -> Tensor:
        """See Workers.backward; x[r] and y[r] are worker r's."""
        losses = []
        for r, (model, optimizer) in enumerate(zip(self._models, self.optimizers, strict=True)):
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = self._loss(model(x[r]), y[r])
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses)

    def step(self) -> None:
        """See Workers.step."""
        for buckets, row, optimizer in zip(self._buckets, self._rows, self.optimizers, strict=True):
            optimizer.step()
            buckets.gather(buckets.parameters, row)

    def gradients(self) -> list[Tensor]:
        """See Workers.gradients."""
        if not self._g:
            self._g = [matrix_of(self.size, torch.zeros_like(part[0])) for part in self.x]
        for r, buckets in enumerate(self._buckets):
            buckets.gather([p.grad for p in buckets.parameters], [part[r] for part in self._g])
        return self._g

    def used(self, rank: int) -> list[bool]:
        """See Workers.used."""
        return [p.grad is not None for p in self._buckets[rank].parameters]

    def use(self, means: list[Tensor], unused: set[int]) -> None:
        """See Workers.use."""
        for r, buckets in enumerate(self._buckets):
            views = buckets.views([part[r] for part in means])
            for i, (p, view) in enumerate(zip(buckets.parameters, views, strict=True)):
                if p.grad is not None:
                    copy_into(p.grad, view)
                elif i not in unused:
                    p.grad = view

    @property
    def _optimized(self) -> Sequence[Tensor]:
        return self._buckets[0].parameters

    def _stacks_of_buffers(self) -> dict[str, Tensor]:
        buffers = [dict(m.named_buffers()) for m in self._models]
        return {name: torch.stack([b[name] for b in buffers]) for name in buffers[0]}
