"""What every compressor is: float32 vector -> Payload -> float32 vector.

A compressor knows nothing of ranks, and an algorithm nothing of bits: they meet in this interface.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from decentral_kernels.elementwise import Applied
from decentral_kernels.layout import MAX_NUMEL

from ..payload import HEADER_NBYTES, MAX_BUCKET, Payload
from .checks import check_finite, check_vector

Key = tuple[int, int, int, int]  # seed, step, rank, bucket


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

    def for_links(self, bits_per_s: Callable[[], float]) -> Compressor:
        """Return what serves links of this speed best: this one, or one that decodes to the same.

        For vectors of the host. Ranks that share messages have to choose alike, so bits_per_s(),
        which may be measured, gives all of them the same.
        """
        return self

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
        return self._seal(out, self._encode(array, key, out), key, len(x))

    def _seal(self, out: Payload, length: int | None, key: Key, numel: int) -> Payload:
        """Write the header of a message with a body of so many bytes, None for body_nbytes()."""
        out.resize(out.capacity if length is None else HEADER_NBYTES + length)
        out.write_header(self.configuration, step=key[1], bucket=key[3], numel=numel)
        return out

    def encode_in_parts(
        self,
        x: Any,
        key: Key,
        out: Payload,
        made: Applied,
        own: Any,
        weight: float,
        copy: tuple[Any, Any] | None = None,
    ) -> Payload:
        """Encode x, float32[d], which made() writes, and add weight * decode to own, float32[d].

        As encode() and accumulate() after it; then the first vector in `copy` is copied to the
        second. Where the kernels can, part by part, so that a part stays in the cache from its
        making on. `own` may be x.

        Raises:
            NotFiniteError: as encode(); nothing is added of the part that cannot be encoded.
        """
        if not made():
            self._raise_not_finite(made, x)
        self.encode(x, key, out)
        self.accumulate(out, own, weight)
        if copy is not None:
            copy[1][:] = copy[0]
        return out

    def _raise_not_finite(self, made: Applied, x: Any) -> None:
        """Raise NotFiniteError for what a formula has made of x, or of another of its vectors."""
        for vector in (x, *made.vectors):
            check_finite(vector, self.name)

    def refuse(self, numel: int, key: Key, out: Payload) -> Payload:
        """Write, instead of a message, that these coordinates cannot be encoded: NaN when decoded.

        So that one rank's NaN or inf reaches all, which then do the same.
        """
        out.resize(HEADER_NBYTES)
        out.write_header(self.configuration, step=key[1], bucket=key[3], numel=numel)
        return out

    def retract(self, step: int) -> None:  # noqa: B027 (most have no state)
        """Forget what the messages of a step, the last one, have changed: they are not used."""

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
