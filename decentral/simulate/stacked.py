"""All workers' gradients at once, by torch.func, and one optimizer for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from .workers import Loss, OptimizerOf, Workers, checked, matrix_of

# Parameters that make gradients at once: with their activations a few 100 MB, and enough work.
_CHUNK_NUMEL = 1 << 22
# What updates a coordinate by what it knows of that coordinate alone, and so a stack of tensors as
# it would each of them. Adafactor, Muon and LBFGS use norms or matrices of a whole tensor.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.ASGD,
    torch.optim.Rprop,
)


class Stacked(Workers):
    """All workers at once, with torch.func and one optimizer of stacked parameters.

    Raises:
        ValueError: the optimizer is not known to be elementwise.
    """

    def __init__(
        self, model: nn.Module, size: int, cap_mb: float, optimizer: OptimizerOf, loss: Loss
    ) -> None:
        super().__init__(model, size, cap_mb)
        self._g = [matrix_of(size, torch.zeros_like(part[0])) for part in self.x]
        self._views, self._g_views = self._stack(self.x), self._stack(self._g)
        self._parameters = [nn.Parameter(view) for view in self._views]
        self.optimizers = [checked(optimizer(self._parameters[::-1]), self._parameters)]
        _check_elementwise(self.optimizers[0])
        for p, g in zip(self._parameters, self._g_views, strict=True):
            p.grad = g
        self._buffers = {
            name: b.detach().expand(size, *b.shape).clone()
            for name, b in self._model.named_buffers()
        }

        def objective(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return loss(functional_call(self._model, {**p, **b}, (x,)), y)

        # Other draws in every worker, from torch's generator, for models that draw (dropout).
        self._gradient = vmap(grad_and_value(objective), randomness="different")
        self._chunk = max(1, _CHUNK_NUMEL // sum(b.numel for b in self.buckets))

    def _stack(self, matrices: list[Tensor]) -> list[Tensor]:
        """Return views [size, ...] of all workers' parameters, in the buckets' order."""
        views = []
        row = self.buckets.views([m[0] for m in matrices])
        for view, p in zip(row, self.buckets.parameters, strict=True):
            m = next(m for m in matrices if m.device == p.device)
            sizes, strides = (self.size, *view.shape), (m.stride(0), *view.stride())
            views.append(m.as_strided(sizes, strides, view.storage_offset()))
        return views

    def backward(self, x: Any, y: Any) -> Tensor:
        """See Workers.backward; x and y are [size, batch, ...]."""
        losses = []
        for a in range(0, self.size, self._chunk):
            part = slice(a, min(self.size, a + self._chunk))
            p = dict(zip(self._names, (v[part] for v in self._views), strict=True))
            b = {name: stack[part] for name, stack in self._buffers.items()}
            grads, values = self._gradient(p, b, x[part], y[part])
            for name, view in zip(self._names, self._g_views, strict=True):
                view[part] = grads[name]
            losses.append(values)
        return torch.cat(losses)

    def step(self) -> None:
        """See Workers.step."""
        self.optimizers[0].step()

    def gradients(self) -> list[Tensor]:
        """See Workers.gradients."""
        return self._g

    def used(self, rank: int) -> list[bool]:
        """See Workers.used; torch.func gives zeros to what is not used."""
        return [True] * len(self._parameters)

    def use(self, means: list[Tensor], unused: set[int]) -> None:
        """See Workers.use; they are where gradients are already."""

    @property
    def _optimized(self) -> Sequence[Tensor]:
        return self._parameters

    def _stacks_of_buffers(self) -> dict[str, Tensor]:
        return self._buffers


def _check_elementwise(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, ELEMENTWISE):
        known = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise ValueError(
            f"simulation: expected an optimizer that treats every coordinate alone, to step all "
            f"workers at once ({known}), got {type(optimizer).__name__}; use vectorize=False"
        )
