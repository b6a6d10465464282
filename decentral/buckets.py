"""Parameters <-> flat buckets: a bucket is a float32 vector of coordinates that travel together.

All parameters lie end to end in one vector, about in the order in which backward finishes them,
the reverse of the model's; a bucket is a slice of it. Small parameters share a bucket. A large one
fills buckets alone, so that its gradient need not be copied (gradients.py), and several if it is
larger than one, so that they are encoded, sent and decoded at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from math import ceil

import torch
from torch import Tensor

MAX_BUCKETS = 2**14  # two MPI tags each, of which there are at least 2^15
_ALIGN = 1024  # coordinates; where a parameter is cut: the kernels' unit

Flat = list[Tensor]  # float32, one per device: all parameters end to end
Layout = tuple[torch.Size, tuple[int, ...]]  # shape and strides


class Bucket:
    """A slice of the flat vector: which parameters, or which part of one, lie in it.

    `alone` says that it is one parameter; `first` is then the first bucket that this one fills, and
    else this bucket.
    """

    def __init__(
        self, number: int, device: int, start: int, parts: Sequence[tuple[int, str, int]]
    ) -> None:
        """`parts` are (number of the parameter, name, coordinates); `device` an index of Flat."""
        self.number = number
        self.indices = [i for i, _, _ in parts]
        self.names = [name for _, name, _ in parts]
        self.numels = [numel for _, _, numel in parts]
        self.numel = sum(self.numels)
        self.device, self.start = device, start
        self.alone, self.first = len(parts) == 1, 0

    def __str__(self) -> str:
        first, last = self.names[0], self.names[-1]
        names = repr(first) if self.alone else f"{first!r} to {last!r}"
        return f"bucket {self.number} ({names})"

    def of(self, flat: Flat) -> Tensor:
        """Return this bucket's slice, float32[numel]."""
        return flat[self.device][self.start : self.start + self.numel]

    def name_at(self, index: int) -> str:
        """Return the name of the parameter that coordinate `index` belongs to."""
        ends = accumulate(self.numels)
        return next(name for name, end in zip(self.names, ends, strict=True) if index < end)


class Buckets:
    """Where every parameter lies, in memory order, and the buckets, in the order of backward.

    Args:
        named: parameters by name, in the model's order.
        cap_mb: MiB of float32 in a bucket, at most (parameters are cut at multiples of 1024).

    Raises:
        ValueError: cap_mb is not positive, or makes too many buckets.
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], cap_mb: float) -> None:
        if not cap_mb > 0:
            raise ValueError(f"bucket_cap_mb must be positive, got {cap_mb}; 8 is usual")
        pairs = list(reversed(list(named)))
        self.parameters = [p for _, p in pairs]
        # What ranks have agreed on, whatever memory format a parameter is given later.
        self.layouts = [memory_order(p) for p in self.parameters]
        runs = [list(run) for _, run in groupby(enumerate(pairs), lambda pair: pair[1][1].device)]
        self._devices = [(run[0][1][1].device, sum(p.numel() for _, (_, p) in run)) for run in runs]
        self._all: list[Bucket] = []
        for d, run in enumerate(runs):
            start = 0
            for parts in _cut([(i, n, p.numel()) for i, (n, p) in run], cap_mb * 2**20 / 4):
                self._all.append(Bucket(len(self._all), d, start, parts))
                start += self._all[-1].numel
        if len(self._all) > MAX_BUCKETS:
            raise ValueError(
                f"bucket_cap_mb={cap_mb} cuts the model into {len(self._all)} buckets, but at most "
                f"{MAX_BUCKETS} are possible; make it larger"
            )
        self.holding: list[list[int]] = [[] for _ in self.parameters]  # buckets, by parameter
        self._places = [(0, 0)] * len(pairs)  # (device, start) of each parameter
        for b, bucket in enumerate(self._all):
            start = bucket.start
            for i, numel in zip(bucket.indices, bucket.numels, strict=True):
                if not self.holding[i]:
                    self._places[i] = bucket.device, start
                self.holding[i].append(b)
                start += numel
            bucket.first = self.holding[bucket.indices[0]][0] if bucket.alone else b

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._all)

    def __getitem__(self, b: int) -> Bucket:
        return self._all[b]

    def start_of(self, i: int) -> int:
        """Return where parameter i begins in the flat vector of its device."""
        return self._places[i][1]

    def empty(self) -> Flat:
        """Return uninitialized flat vectors where the parameters live."""
        return [torch.empty(n, dtype=torch.float32, device=device) for device, n in self._devices]

    def views(self, flat: Flat) -> list[Tensor]:
        """Return views of a flat vector in the parameters' shapes, and strides at the start."""
        return [
            flat[d][start : start + shape.numel()].as_strided(shape, strides)
            for (d, start), (shape, strides) in zip(self._places, self.layouts, strict=True)
        ]

    def gather(self, tensors: Iterable[Tensor | None], flat: Flat) -> Flat:
        """Copy tensors of the parameters' shapes into the flat vector; None counts as zeros.

        Raises:
            ValueError: a tensor is sparse.
        """
        copy_all_into(self.views(flat), tensors)
        return flat

    def scatter(self, flat: Flat) -> None:
        """Copy the flat vector into the parameters."""
        copy_all_from(self.views(flat), self.parameters)

    def adopt(self, flat: Flat) -> None:
        """Let the parameters that are float32 and dense live in the flat vector from now on."""
        for view, p in zip(self.views(flat), self.parameters, strict=True):
            copy_into(view, p)
            if p.dtype == torch.float32 and view.stride() == p.stride():
                p.data = view


def copy_all_into(views: Iterable[Tensor], tensors: Iterable[Tensor | None]) -> None:
    """Copy tensors into views, each unless it is the view; None counts as zeros.

    Raises:
        ValueError: a tensor is sparse.
    """
    for view, tensor in zip(views, tensors, strict=True):
        copy_into(view, tensor)


@torch.no_grad()
def copy_all_from(views: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    """Copy views into parameters, each unless it is the view."""
    for view, p in zip(views, parameters, strict=True):
        if not same_memory(view, p):
            p.copy_(view)


def copy_into(view: Tensor, tensor: Tensor | None) -> None:
    """Copy a tensor of any dtype into a view, unless it is the view; None counts as zeros.

    Raises:
        ValueError: the tensor is sparse.
    """
    if tensor is None:
        view.zero_()
    elif tensor.is_sparse:
        raise ValueError(
            "sparse gradients cannot travel, expected dense ones; construct the embedding "
            "with sparse=False"
        )
    elif not same_memory(view, tensor):
        view.copy_(tensor.detach())


def same_memory(view: Tensor, tensor: Tensor) -> bool:
    """Return whether a tensor is nothing but that view."""
    same = view.dtype == tensor.dtype and view.stride() == tensor.stride()
    return same and view.data_ptr() == tensor.data_ptr()


def memory_order(p: Tensor) -> Layout:
    """Return the shape of p, and its strides if it is dense, else those of a contiguous tensor."""
    expected = 1
    for stride, length in sorted(zip(p.stride(), p.shape, strict=True)):
        if length > 1 and stride != expected:
            return p.shape, torch.empty(p.shape, device="meta").stride()
        expected *= length
    return p.shape, p.stride()


def _cut(parts: Sequence[tuple[int, str, int]], cap: float) -> Iterator[list[tuple[int, str, int]]]:
    """Group small (index, name, coordinates) up to a cap; cut large ones into equal pieces.

    A group stays open while large ones pass by.
    """
    group: list[tuple[int, str, int]] = []
    filled = 0
    for index, name, numel in parts:
        if numel > cap / 2:
            pieces = max(1, ceil(numel / max(_ALIGN, cap)))
            edges = [min(numel, -(-numel * k // (pieces * _ALIGN)) * _ALIGN) for k in range(pieces)]
            yield from ([(index, name, b - a)] for a, b in pairwise([*edges, numel]) if b > a)
            continue
        if group and filled + numel > cap:
            yield group
            group, filled = [], 0
        group.append((index, name, numel))
        filled += numel
    if group:
        yield group
