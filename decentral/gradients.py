"""Where gradients lie on their way: a bucket is one vector, and no second copy if it can be helped.

A parameter that fills buckets alone leaves its gradient where autograd has put it, and its buckets
are slices of that. The others are copied into their common bucket, of which p.grad becomes a view,
as DDP's `gradient_as_bucket_view` has it. On the CPU, what autograd has allocated is let go only
when the next one is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .buckets import Buckets, copy_into, same_memory

_hooks: Any = WeakIdKeyDictionary()  # by parameter, what takes its hook away
_use_count = getattr(torch._C, "_storage_Use_Count", None)  # private: there is no public one


def hook(p: nn.Parameter, then: Callable[[Tensor], None]) -> None:
    """Call then(p) whenever its gradient is there, and no more what an earlier optimizer asked."""
    unhook(p)
    _hooks[p] = p.register_post_accumulate_grad_hook(then)


def unhook(p: Tensor) -> None:
    """Do nothing more when its gradient is there."""
    if (before := _hooks.pop(p, None)) is not None:
        before.remove()


class Gradients:
    """The gradients of all parameters during one backward()."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets, self._parameters = buckets, buckets.parameters
        self._first = [buckets[b].first for b, *_ in buckets.holding]  # bucket, by parameter
        self._kept: dict[int, Tensor] = {}  # flat gradients that stay, by first bucket
        self._ours: dict[int, Tensor] = {}  # where the others are copied to, likewise

    def collect(self, i: int) -> None:
        """Take the gradient of parameter i; None counts as zeros.

        Raises:
            ValueError: it is sparse.
        """
        p, first = self._parameters[i], self._first[i]
        g = p.grad
        if g is not None and self._buckets[first].alone and self._may_stay(g, i):
            self._kept[first] = g.as_strided((g.numel(),), (1,))
            return
        self._kept.pop(first, None)
        view = self.mean(i)
        copy_into(view, g)
        if g is not None and g.dtype == view.dtype and g.device == view.device:
            if not same_memory(view, g):
                p.grad = view

    def _may_stay(self, g: Tensor, i: int) -> bool:
        """Return whether g is in the order of memory that ranks agree on, and nobody else's."""
        device = self._parameters[i].device
        if g.dtype != torch.float32 or g.device != device or g.is_sparse or g.requires_grad:
            return False
        if g.stride() != self._buckets.layouts[i][1] or _use_count is None:
            return False
        kept = self._kept.get(self._first[i])
        again = kept is not None and kept.data_ptr() == g.data_ptr()
        users = _use_count(g.untyped_storage()._cdata)
        return bool(users <= 2 + again)  # g, this line, and what was kept of the same

    def vector(self, b: int) -> Tensor:
        """Return bucket b, float32[numel]."""
        bucket = self._buckets[b]
        start = bucket.start - self._buckets[bucket.first].start
        return self._all_of(bucket.first)[start : start + bucket.numel]

    def mean(self, i: int) -> Tensor:
        """Return the gradient of parameter i as it is in its buckets, in the parameter's shape."""
        (shape, strides), first = self._buckets.layouts[i], self._first[i]
        start = self._buckets.start_of(i) - self._buckets[first].start
        return self._all_of(first)[start : start + shape.numel()].as_strided(shape, strides)

    def forget(self) -> None:
        """Let go of what lies on a GPU, whose allocator keeps the memory."""
        self._kept = {first: g for first, g in self._kept.items() if not g.is_cuda}

    def _all_of(self, first: int) -> Tensor:
        """Return the vector of a bucket, and of those that follow with the same parameter."""
        if first in self._kept:
            return self._kept[first]
        if first not in self._ours:
            bucket = self._buckets[first]
            p = self._parameters[bucket.indices[0]]
            numel = p.numel() if bucket.alone else bucket.numel
            self._ours[first] = torch.empty(numel, dtype=torch.float32, device=p.device)
        return self._ours[first]
