"""The wrapped optimizer's step, and what of it gossip does itself.

Where messages are made part by part, gossip passes over the parameters right after the optimizer
has. What torch.optim.SGD does to a large parameter is therefore left to that loop, as a formula
that is applied to a part before the algorithm's: one pass over memory less. All else is the
optimizer's own step(): the other parameters, and everything where it is not known what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as hooks

from decentral_kernels.elementwise import Applied, Elementwise, Number, fma

from .buckets import Buckets, same_memory
from .payload import as_array

# As torch.optim.SGD, bit for bit: x the parameter, g its gradient, buf its momentum.


@Elementwise
def _sgd(x: Number, g: Number, lr: float, decay: float) -> tuple[Number, ...]:
    return (fma(fma(x, decay, g), -lr, x),)


@Elementwise
def _sgd_with_momentum(
    x: Number, buf: Number, g: Number, lr: float, decay: float, momentum: float, gain: float
) -> tuple[Number, ...]:
    buf = fma(fma(x, decay, g), gain, buf * momentum)
    return fma(buf, -lr, x), buf


@Elementwise
def _sgd_with_nesterov(
    x: Number, buf: Number, g: Number, lr: float, decay: float, momentum: float, gain: float
) -> tuple[Number, ...]:
    d = fma(x, decay, g)
    buf = fma(d, gain, buf * momentum)
    return fma(fma(buf, momentum, d), -lr, x), buf


def formula_of(group: dict[str, Any]) -> Elementwise:
    """Return what torch.optim.SGD does to the parameters of a group."""
    if not group["momentum"]:
        return _sgd
    return _sgd_with_nesterov if group["nesterov"] else _sgd_with_momentum


def formulas_of(optimizer: torch.optim.Optimizer) -> set[Elementwise]:
    """Return those that an optimizer's steps may be left to; none where that is not known."""
    if not _is_known(optimizer):
        return set()
    return {formula_of(group) for group in optimizer.param_groups}


def _is_known(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether step() is torch.optim.SGD's, and nobody looks on who would miss gradients."""
    its = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    all_ = hooks._global_optimizer_pre_hooks, hooks._global_optimizer_post_hooks
    known = type(optimizer) is torch.optim.SGD and "step" not in vars(optimizer)
    return known and not any((*its, *all_))


class LocalStep:
    """One step of an optimizer, with or without a closure."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None
    ) -> None:
        self._optimizer, self._closure = optimizer, closure

    def __call__(self) -> Any:
        """Take it, and return what the optimizer does."""
        return self._optimizer.step(*([self._closure] if self._closure else []))

    def but_for_rest(
        self, buckets: Buckets, views: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> tuple[Any, dict[int, Applied]]:
        """Take it but for what formulas can do; return the result, and these, by bucket.

        `views` and `vectors` are where parameters live, by parameter and by bucket. What is left is
        float32 on the CPU, one parameter or a part of one, and to be applied before anybody looks.
        """
        left = {} if self._closure else dict(_left(self._optimizer, buckets, views, vectors))
        kept = [(p, p.grad) for p, _ in left.values()]
        try:
            for p, _ in kept:
                p.grad = None  # the optimizer passes by
            result = self()
        finally:
            for p, g in kept:
                p.grad = g
        return result, {b: applied for b, (_, applied) in left.items()}


def _left(
    optimizer: torch.optim.Optimizer,
    buckets: Buckets,
    views: Sequence[Tensor],
    vectors: Sequence[Tensor],
) -> Iterator[tuple[int, tuple[Tensor, Applied]]]:
    """Yield (bucket, (parameter, formula with what it is applied to))."""
    if not _is_known(optimizer):
        return
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for p, view, numbers in zip(buckets.parameters, views, buckets.holding, strict=True):
        alone, group = all(buckets[b].alone for b in numbers), groups.get(id(p))
        if not alone or group is None or p.device.type != "cpu" or not same_memory(view, p):
            continue
        others, at = list(_used(optimizer, group, p)), 0
        for b in numbers if others else ():
            parts = [v[at : at + buckets[b].numel].numpy() for v in others]
            applied = formula_of(group).on(as_array(vectors[b]), *parts, *_constants(group))
            yield b, (p, applied)
            at += buckets[b].numel


def _used(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> Iterator[Tensor]:
    """Yield what the formula takes besides the parameter, flat; nothing if it is not for it."""
    tensors = [p.grad]
    if group["momentum"]:
        # None in the first step
        tensors.insert(0, optimizer.state.get(p, {}).get("momentum_buffer"))
    if group["maximize"] or group["differentiable"]:
        return
    if all(g is not None and _lies_like(g, p) for g in tensors):
        yield from (g.as_strided((g.numel(),), (1,)) for g in tensors if g is not None)


def _constants(group: dict[str, Any]) -> list[float]:
    rates = [float(group["lr"]), group["weight_decay"]]
    return rates + ([group["momentum"], 1 - group["dampening"]] if group["momentum"] else [])


def _lies_like(g: Tensor, p: Tensor) -> bool:
    """Return whether g is float32 in the same order of memory as p, without a gap."""
    same = (g.dtype, g.device, g.layout) == (torch.float32, p.device, torch.strided)
    return same and g.stride() == p.stride() and not g.requires_grad
