"""One message: a header, scales and codes in ONE contiguous uint8 buffer, which is what travels.

    offset 0   magic "DCNT", format version (u16), bucket (u16), configuration (u32), step (u32),
               number of coordinates (u64), number of bytes of the whole message (u64)
    offset 32  the compressor's body; none where the sender's vector was not finite

Little-endian. The configuration is a checksum of the compressor's repr, so that two ranks whose
compressors differ cannot misread each other. The buffer is a NumPy array, or a torch tensor where
the coordinates live on a GPU; all that knows about device memory stands in this file.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

FORMAT_VERSION = 1
_MAGIC = b"DCNT"
_HEADER = struct.Struct("<4sHHIIQQ")
HEADER_NBYTES = _HEADER.size
MAX_BUCKET = 2**16 - 1


class Header(NamedTuple):
    """What the first 32 bytes of a message say."""

    bucket: int
    configuration: int
    step: int
    numel: int
    nbytes: int


def as_array(vector: npt.NDArray[np.float32] | torch.Tensor) -> Any:
    """Return what the kernels take: a NumPy array for memory of the host, else the CUDA tensor."""
    if not isinstance(vector, torch.Tensor):
        return vector
    return vector.detach().numpy() if vector.device.type == "cpu" else vector.detach()


def as_tensor(array: Any) -> torch.Tensor:
    """Return a tensor to read from, on the same memory, or a copy where NumPy says read-only."""
    readonly = isinstance(array, np.ndarray) and not array.flags.writeable
    return torch.as_tensor(array.copy() if readonly else array)


def stream_of(array: Any) -> int:
    """Return the handle of the current CUDA stream where `array` lives; 0 on the host."""
    if isinstance(array, torch.Tensor) and array.is_cuda:
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    return 0


class Wire:
    """A contiguous array as MPI may touch it.

    Host memory goes as it is. Device memory goes as it is to a CUDA-aware MPI (`device_direct`),
    after the stream has drained; to any other MPI goes a pinned copy.
    """

    def __init__(self, array: Any) -> None:
        self.array = as_array(array)
        self._pinned: torch.Tensor | None = None

    def _mirror(self) -> torch.Tensor:
        if self._pinned is None:
            self._pinned = torch.empty_like(self.array, device="cpu", pin_memory=True)
        return self._pinned

    def outgoing(self, device_direct: bool, nbytes: int | None = None) -> Any:
        """Return the buffer to send, or its first `nbytes` bytes if it is one of bytes.

        Its contents are complete and stay valid while it is held.
        """
        part = self.array[:nbytes]
        if isinstance(part, np.ndarray):
            return part
        mirror = None if device_direct else self._mirror()[:nbytes]
        if mirror is not None:
            mirror.copy_(part, non_blocking=True)
        torch.cuda.current_stream(part.device).synchronize()
        return part if mirror is None else mirror.numpy()

    def incoming(self, device_direct: bool) -> Any:
        """Return the buffer to receive into; `landed` must follow."""
        if isinstance(self.array, np.ndarray) or device_direct:
            return self.array
        return self._mirror().numpy()

    def landed(self, device_direct: bool) -> None:
        """Bring what was received to where the array lives."""
        if not isinstance(self.array, np.ndarray) and not device_direct:
            self.array.copy_(self._mirror())  # blocking: MPI may write to the mirror again soon


class Payload:
    """A message that owns its buffer, uint8[32 + body].

    `nbytes` is what travels; where the length varies, the memory behind it is `capacity`.
    """

    def __init__(self, buffer: Any) -> None:
        self._memory = buffer
        self._views: dict[Any, Any] = {}
        self.wire = Wire(buffer)
        self.capacity = self.nbytes = int(buffer.nbytes)

    @classmethod
    def empty(cls, body_nbytes: int, like: Any = None) -> Payload:
        """Return a payload with room for a body of so many bytes, in the memory where `like` is."""
        nbytes = HEADER_NBYTES + body_nbytes
        if isinstance(like, torch.Tensor):
            return cls(torch.zeros(nbytes, dtype=torch.uint8, device=like.device))
        return cls(np.zeros(nbytes, np.uint8))

    @property
    def buffer(self) -> Any:
        """What travels, uint8[nbytes]: a NumPy array or a torch tensor."""
        return self._memory[: self.nbytes]

    @property
    def body(self) -> Any:
        """What follows the header, as a view: NumPy uint8 on the host, a tensor on a GPU."""
        return self.wire.array[HEADER_NBYTES : self.nbytes]

    @property
    def is_refusal(self) -> bool:
        """Whether it is the header alone of a vector that could not be encoded."""
        return self.nbytes == HEADER_NBYTES and self.header().numel > 0

    def resize(self, nbytes: int) -> None:
        """Say how many bytes of the memory are the message.

        Raises:
            ValueError: they do not fit.
        """
        if not 0 <= nbytes <= self.capacity:
            raise ValueError(f"payload: {nbytes} bytes do not fit its {self.capacity}")
        self.nbytes = nbytes

    def landed(self, device_direct: bool, nbytes: int) -> None:
        """Take over a message of so many bytes that was received into `wire`."""
        self.wire.landed(device_direct)
        self.resize(nbytes)

    def section(self, start: int, nbytes: int, dtype: Any) -> Any:
        """Return bytes start..start+nbytes of the body as a view of a NumPy dtype."""
        last = min(HEADER_NBYTES + start + nbytes, self.nbytes)
        view = self._views.get((start, last, dtype))
        if view is None:
            part = self.wire.array[HEADER_NBYTES + start : last]
            on_host = isinstance(part, np.ndarray)
            view = part.view(dtype if on_host else getattr(torch, np.dtype(dtype).name))
            if self.nbytes == self.capacity:  # messages of a fixed length have the same ones again
                self._views[start, last, dtype] = view
        return view

    def write_header(self, configuration: int, step: int, bucket: int, numel: int) -> None:
        """Fill in the header."""
        array = self.wire.array
        on_host = isinstance(array, np.ndarray)
        head: Any = array if on_host else np.empty(HEADER_NBYTES, np.uint8)
        fields = (bucket, configuration, step & 0xFFFFFFFF, numel, self.nbytes)
        _HEADER.pack_into(head, 0, _MAGIC, FORMAT_VERSION, *fields)
        if not on_host:
            array[:HEADER_NBYTES].copy_(torch.from_numpy(head))

    def header(self) -> Header:
        """Read the header.

        Raises:
            ValueError: the buffer does not hold a message of this format version, or is cut.
        """
        if self.nbytes < HEADER_NBYTES:
            raise ValueError(f"payload: expected at least {HEADER_NBYTES} bytes, got {self.nbytes}")
        raw: Any = self.wire.array
        if isinstance(raw, torch.Tensor):
            raw = raw[:HEADER_NBYTES].cpu().numpy()
        magic, version, *rest = _HEADER.unpack_from(raw)
        if magic != _MAGIC or version != FORMAT_VERSION:
            raise ValueError(
                f"payload: expected magic {_MAGIC!r} and format version {FORMAT_VERSION}, got "
                f"{magic!r} and {version}; do all ranks run the same version of decentral?"
            )
        bucket, configuration, step, numel, nbytes = rest
        if nbytes != self.nbytes:
            raise ValueError(f"payload: its header says {nbytes} bytes, got {self.nbytes}")
        return Header(bucket, configuration, step, numel, nbytes)
