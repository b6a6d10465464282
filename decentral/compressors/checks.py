"""What a compressor asks of vectors and options, and what it says where they do not fit."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch

from decentral_kernels.layout import MAX_NUMEL

from ..payload import as_array, as_tensor, kept_array


class NotFiniteError(ValueError):
    """A vector cannot be encoded, because coordinate `index` is NaN or inf, or too large."""

    on_all_ranks = False  # see communicators.end_job()

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.index)


def check_finite(x: Any, name: str) -> None:
    """Raise NotFiniteError if x, float32[d], holds NaN or inf."""
    vector = as_tensor(x)
    if torch.isfinite(vector.sum()):  # one pass; a sum may overflow without an inf, so look closer
        return
    wrong = torch.nonzero(~torch.isfinite(vector))
    if len(wrong):
        index = int(wrong[0])
        raise NotFiniteError(
            f"{name}: expected finite values, got {float(vector[index])} at coordinate {index}",
            index,
        )


def check_vector(x: Any, what: str) -> Any:
    """Return x as the kernels take it.

    Raises:
        TypeError: x is not a float32 NumPy array or torch tensor.
        ValueError: x is not one-dimensional and contiguous, or is too long.
    """
    if isinstance(x, torch.Tensor) and (kept := kept_array(x)) is not None:
        return kept
    if not isinstance(x, (np.ndarray, torch.Tensor)) or x.dtype not in (np.float32, torch.float32):
        got = f"{type(x).__name__} of {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
        raise TypeError(
            f"{what} must be a float32 NumPy array or torch tensor, got {got}; convert it first"
        )
    contiguous = x.is_contiguous() if isinstance(x, torch.Tensor) else x.flags.c_contiguous
    if x.ndim != 1 or not contiguous:
        raise ValueError(
            f"{what} must be one-dimensional and contiguous, got shape {tuple(x.shape)}"
            f"{'' if contiguous else ', not contiguous'}; flatten it first"
        )
    if len(x) > MAX_NUMEL:
        raise ValueError(f"{what} may have at most {MAX_NUMEL} coordinates, got {len(x)}; split it")
    return as_array(x)


def not_finite(name: str, x: Any, start: int, length: int, what: str) -> NotFiniteError:
    """Return the error for a block of x, float32[d], that the kernels have refused."""
    part = as_tensor(x[start : start + length])
    wrong = (~part.isfinite()).nonzero()
    if len(wrong):
        index = start + int(wrong[0])
        return NotFiniteError(
            f"{name}: expected finite values, got {float(x[index])} at coordinate {index}", index
        )
    index = start + int(part.abs().argmax())
    return NotFiniteError(
        f"{name}: {what} is 2^126 or more, too large for float32; the largest value is "
        f"{float(x[index]):g} at coordinate {index}",
        index,
    )


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer, and not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_block_size(name: str, block_size: Any, usual: int) -> None:
    """Raise ValueError unless so many coordinates can share a scale."""
    if not (is_whole(block_size) and 1 <= block_size <= MAX_NUMEL):
        raise ValueError(
            f"{name}: block_size must be an integer from 1 to {MAX_NUMEL}, got {block_size!r}; "
            f"{usual} is usual"
        )
