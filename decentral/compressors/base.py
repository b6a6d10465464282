"""What every compressor is: float32 vector -> Payload -> float32 vector.

A compressor knows nothing of ranks, and an algorithm nothing of bits: they meet in this interface.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch

from decentral_kernels.layout import MAX_NUMEL

from ..payload import HEADER_NBYTES, MAX_BUCKET, Payload, as_array, as_tensor

Key = tuple[int, int, int, int]  # seed, step, rank, bucket


class NotFiniteError(ValueError):
    """A vector cannot be encoded, because coordinate `index` is NaN or inf, or too large."""

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


def lossless() -> Compressor:
    """Return the compressor that algorithms use where none is given: Identity."""
    from .identity import Identity  # at call time, since identity.py imports this file

    return Identity()


class Compressor(ABC):
    """Encode float32 vectors into payloads, and decode, or accumulate, payloads.

    Attributes tell what algorithms may rely on: `unbiased`, E[decode(encode(x))] = x; `lossless`,
    decode(encode(x)) = x; `summable`, messages may be added before decoding (integers.py);
    `stateful`, encode() keeps something between calls, per (rank, bucket) of its key;
    `fixed_length`, the size of a message follows from the number of coordinates. Without
    `device_kernels` a vector of a GPU is encoded and decoded on the host.
    """

    name: ClassVar[str]
    unbiased: bool = True
    lossless: ClassVar[bool] = False
    summable: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    fixed_length: bool = True
    device_kernels: bool = False

    @cached_property
    def configuration(self) -> int:
        """A checksum of the compressor and its options, which every message carries."""
        return zlib.crc32(repr(self).encode())

    @abstractmethod
    def body_nbytes(self, numel: int) -> int:
        """Return the bytes, less the header, of the message for `numel` coordinates, at most."""

    def least_body_nbytes(self, numel: int) -> int:
        """Return the bytes, less the header, that it has at least."""
        return self.body_nbytes(numel)

    @abstractmethod
    def _encode(self, x: Any, key: Key, payload: Payload) -> int | None:
        """Write the body and return its length, None for body_nbytes()."""

    @abstractmethod
    def _decode(self, payload: Payload, out: Any) -> None: ...

    @abstractmethod
    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None: ...

    def _accumulate_all(self, messages: Sequence[tuple[Payload, float]], out: Any) -> None:
        for payload, weight in messages:
            self._accumulate(payload, out, weight)

    def prepare(self, threads: int = 1) -> None:  # noqa: B027 (some have nothing to prepare)
        """Compile or load the CPU kernels, so that no step waits; they may use so many threads."""

    def fresh(self) -> Compressor:
        """Return a compressor with the same options and no state; this one if it never has any."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved: tensors and numbers by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (most have no state)
        """Take over what state_dict() returned."""

    def stats(self) -> dict[str, Any]:
        """Return what it counted, by name."""
        return {}

    def new_payload(self, numel: int, like: Any = None) -> Payload:
        """Return an empty payload for `numel` coordinates, in the memory where `like` lives."""
        return Payload.empty(self.body_nbytes(numel), like)

    def encode(self, x: Any, key: Key, out: Payload | None = None) -> Payload:
        """Encode x, float32[d], a NumPy array or a torch tensor on the CPU or a GPU.

        `key` is (seed, step, rank, bucket): equal keys give equal bytes, different keys independent
        draws. `out` is a payload to write to instead of a new one.

        Raises:
            NotFiniteError: x holds NaN or inf, or (norm-based compressors) a norm of 2^126 or more.
            TypeError, ValueError: x is not a float32 vector, `key` or `out` does not fit.
        """
        array = check_vector(x, f"{self.name}: x")
        if len(key) != 4 or not 0 <= key[3] <= MAX_BUCKET:
            raise ValueError(
                f"{self.name}: key must be (seed, step, rank, bucket) with bucket 0..{MAX_BUCKET}, "
                f"got {key}"
            )
        if out is None:
            out = self.new_payload(len(x), like=x)
        elif out.capacity != HEADER_NBYTES + self.body_nbytes(len(x)):
            raise ValueError(
                f"{self.name}: out must have a body of {self.body_nbytes(len(x))} bytes for "
                f"{len(x)} coordinates, got {out.capacity - HEADER_NBYTES}; take it from "
                "new_payload()"
            )
        out.resize(out.capacity)
        if isinstance(array, torch.Tensor) and not self.device_kernels:
            out.copy_from(self.encode(array.cpu().numpy(), key))
            return out
        length = self._encode(array, key, out)
        out.resize(out.capacity if length is None else HEADER_NBYTES + length)
        out.write_header(self.configuration, step=key[1], bucket=key[3], numel=len(x))
        return out

    def refuse(self, numel: int, key: Key, out: Payload) -> Payload:
        """Write, instead of a message, that these coordinates cannot be encoded: NaN when decoded.

        So that one rank's NaN or inf reaches all, which then do the same.
        """
        out.resize(HEADER_NBYTES)
        out.write_header(self.configuration, step=key[1], bucket=key[3], numel=numel)
        return out

    def retract(self) -> None:  # noqa: B027 (most have no state)
        """Forget what the last message of every (rank, bucket) has changed: none is used."""

    def _numel(self, payload: Payload) -> int:
        head = payload.header()
        if head.configuration != self.configuration:
            raise ValueError(f"{self!r}: the payload was made by another compressor or options")
        got = payload.body.shape[0]
        least, most = self.least_body_nbytes(head.numel), self.body_nbytes(head.numel)
        fits = least <= got <= most or payload.is_refusal
        if not (fits and head.numel <= MAX_NUMEL):
            expected = f"{most}" if least == most else f"{least} to {most}"
            raise ValueError(
                f"{self!r}: expected a body of {expected} bytes for "
                f"{head.numel} coordinates, got {got}"
            )
        return head.numel

    def _check_target(self, payload: Payload, array: Any) -> None:
        numel = self._numel(payload)
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"{self.name}: out must be writable, got a read-only array; copy it")
        if len(array) != numel:
            raise ValueError(f"{self.name}: out must have {numel} coordinates, got {len(array)}")

    def decode(self, payload: Payload, out: Any = None) -> Any:
        """Decode a payload into float32[d]: `out` if given, else a new array of the payload's kind.

        Raises:
            ValueError: the payload is cut, not of this compressor, or does not fit `out`.
        """
        if out is None:
            numel = self._numel(payload)
            if isinstance(payload.buffer, torch.Tensor):
                out = torch.empty(numel, dtype=torch.float32, device=payload.buffer.device)
            else:
                out = np.empty(numel, np.float32)
        target = check_vector(out, f"{self.name}: out")
        self._check_target(payload, target)
        if payload.is_refusal:
            target[:] = np.nan
        elif isinstance(target, torch.Tensor) and not self.device_kernels:
            target.copy_(torch.from_numpy(self.decode(self._on_host(payload))))
        else:
            self._decode(payload, target)
        return out

    def _on_host(self, payload: Payload) -> Payload:
        return Payload(payload.wire.array[: payload.nbytes].cpu().numpy())

    def accumulate(self, payload: Payload, out: Any, weight: float = 1.0) -> None:
        """Add weight * decode(payload) to out, float32[d], in one pass.

        Raises:
            ValueError: as decode().
        """
        self.accumulate_all([(payload, weight)], out)

    def accumulate_all(self, messages: Sequence[tuple[Payload, float]], out: Any) -> None:
        """Add weight * decode(payload) of all (payload, weight) to out, float32[d], in order.

        In one pass over `out`, where the kernels can.

        Raises:
            ValueError: as decode(), and nothing is added.
        """
        target = check_vector(out, f"{self.name}: out")
        for payload, _ in messages:
            self._check_target(payload, target)
        if any(payload.is_refusal for payload, _ in messages):
            target[:] = np.nan
        elif isinstance(target, torch.Tensor) and not self.device_kernels:
            for payload, weight in messages:
                values = torch.from_numpy(self.decode(self._on_host(payload)))
                target.add_(values.to(target.device), alpha=weight)
        else:
            self._accumulate_all(messages, target)
