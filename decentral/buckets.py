"""Parameters <-> flat buckets: a bucket is a float32 vector of parameters that travel together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

MAX_BUCKETS = 2**14  # two MPI tags each, of which there are at least 2^15


class Bucket:
    """Some parameters, and where each of them lies in the flat vector, float32[numel]."""

    def __init__(self, named: Sequence[tuple[str, torch.nn.Parameter]]) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.numels = [p.numel() for p in self.parameters]
        self.ends = torch.tensor(self.numels).cumsum(0).tolist()
        self.numel: int = self.ends[-1]

    def empty(self) -> Tensor:
        """Return an uninitialized flat vector where the parameters live."""
        device = self.parameters[0].device
        return torch.empty(self.numel, dtype=torch.float32, device=device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat vector in the parameters' shapes."""
        starts = [0, *self.ends[:-1]]
        return [
            flat[a:b].view(p.shape)
            for a, b, p in zip(starts, self.ends, self.parameters, strict=True)
        ]

    def gather(self, tensors: Iterable[Tensor | None], flat: Tensor) -> Tensor:
        """Copy tensors of the parameters' shapes into the flat vector; None counts as zeros.

        Raises:
            ValueError: a tensor is sparse.
        """
        for view, tensor in zip(self.views(flat), tensors, strict=True):
            if tensor is None:
                view.zero_()
            elif tensor.is_sparse:
                raise ValueError(
                    "sparse gradients cannot travel, expected dense ones; construct the embedding "
                    "with sparse=False"
                )
            else:
                view.copy_(tensor.detach())
        return flat

    def scatter(self, flat: Tensor) -> None:
        """Copy the flat vector into the parameters."""
        with torch.no_grad():
            for view, p in zip(self.views(flat), self.parameters, strict=True):
                p.copy_(view)

    def name_at(self, index: int) -> str:
        """Return the name of the parameter that coordinate `index` belongs to."""
        return next(name for name, end in zip(self.names, self.ends, strict=True) if index < end)


def make_buckets(named: Iterable[tuple[str, torch.nn.Parameter]], cap_mb: float) -> list[Bucket]:
    """Group parameters into buckets of at most cap_mb MiB of float32, one device each.

    In reverse order, the one in which backward finishes them, as PyTorch's DDP does. A parameter
    that is larger than the cap has a bucket of its own.

    Raises:
        ValueError: cap_mb is not positive, or makes too many buckets.
    """
    if not cap_mb > 0:
        raise ValueError(f"bucket_cap_mb must be positive, got {cap_mb}; PyTorch's DDP uses 25")
    cap = cap_mb * 2**20 / 4
    groups: list[list[tuple[str, torch.nn.Parameter]]] = []
    filled = 0
    for name, p in reversed(list(named)):
        fits = bool(groups) and filled + p.numel() <= cap and groups[-1][0][1].device == p.device
        if not fits:
            groups.append([])
            filled = 0
        groups[-1].append((name, p))
        filled += p.numel()
    if len(groups) > MAX_BUCKETS:
        raise ValueError(
            f"bucket_cap_mb={cap_mb} cuts the model into {len(groups)} buckets, but at most "
            f"{MAX_BUCKETS} are possible; make it larger"
        )
    return [Bucket(group) for group in groups]
