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
from contextlib import AbstractContextManager, nullcontext
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
    if (kept := kept_array(vector)) is not None:
        return kept
    # detach() lets other threads have the GIL, and so may wait to have it back
    vector = vector.detach() if vector.requires_grad else vector
    return vector.numpy() if vector.device.type == "cpu" else vector


def keep_array(vector: torch.Tensor) -> torch.Tensor:
    """Return a flat float32 vector, of which as_array() is asked in every step, and make it once.

    That takes 20 us where the caches are full of gradients. The array is of an alias, so that there
    is no cycle.
    """
    if vector.device.type == "cpu":
        vector.array_kept = vector.view(-1).numpy()  # type: ignore[attr-defined]
    return vector


def kept_array(vector: torch.Tensor) -> Any:
    """Return what keep_array() has made, or None."""
    return getattr(vector, "array_kept", None)


def as_tensor(array: Any) -> torch.Tensor:
    """Return a tensor to read from, on the same memory, or a copy where NumPy says read-only."""
    readonly = isinstance(array, np.ndarray) and not array.flags.writeable
    return torch.as_tensor(array.copy() if readonly else array)


def stream_of(array: Any) -> int:
    """Return the handle of the current CUDA stream where `array` lives; 0 on the host."""
    if isinstance(array, torch.Tensor) and array.is_cuda:
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    return 0


def on_device_of(array: Any) -> AbstractContextManager[Any]:
    """Return a context in which the GPU where `array` lives is the current one, if there is any."""
    return torch.cuda.device_of(array) if isinstance(array, torch.Tensor) else nullcontext()


def backward_in_this_thread() -> AbstractContextManager[Any]:
    """Return a context in which backward() runs all in the thread that calls it.

    Otherwise all threads of a process share one per GPU, and a rank whose hooks wait there for
    another rank's keeps them from running.
    """
    return torch.autograd.set_multithreading_enabled(False)


class Wire:
    """A contiguous array as MPI may touch it, once it is `ready`.

    Host memory goes as it is, and is always ready. Device memory goes as it is to a CUDA-aware MPI
    (`device_direct`), to any other a pinned copy; it is ready when the stream that was current in
    outgoing() or incoming() has come that far, for which nobody has to wait.
    """

    def __init__(self, array: Any) -> None:
        self.array = as_array(array)
        self._pinned: torch.Tensor | None = None
        self._stream: Any = None  # which works on the array
        self._event: Any = None  # what it has done by the time that MPI may begin

    def _mirror(self) -> torch.Tensor:
        if self._pinned is None:
            self._pinned = torch.empty_like(self.array, device="cpu", pin_memory=True)
        return self._pinned

    def _mark(self) -> None:
        if self._event is None:
            self._event = torch.cuda.Event()
        self._event.record(self._stream)

    @property
    def ready(self) -> bool:
        """Whether MPI may touch what outgoing() or incoming() returned."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> None:
        """Return when it is ready."""
        if self._event is not None:
            self._event.synchronize()

    def outgoing(self, device_direct: bool, nbytes: int | None = None) -> Any:
        """Return the buffer to send, or its first `nbytes` bytes if it is one of bytes.

        Its contents are complete when it is `ready`, and stay valid while it is held.
        """
        part = self.array[:nbytes]
        if isinstance(part, np.ndarray):
            return part
        self._stream = torch.cuda.current_stream(part.device)
        mirror = None if device_direct else self._mirror()[:nbytes]
        if mirror is not None:
            mirror.copy_(part, non_blocking=True)
        self._mark()
        return part if mirror is None else mirror.numpy()

    def incoming(self, device_direct: bool) -> Any:
        """Return the buffer to receive into when it is `ready`; `landed` must follow."""
        if isinstance(self.array, np.ndarray):
            return self.array
        self._stream = torch.cuda.current_stream(self.array.device)
        if not device_direct:
            return self._mirror().numpy()  # ready when what landed before has left it
        self._mark()  # what is still to be read from the array has been
        return self.array

    def landed(self, device_direct: bool, nbytes: int | None = None) -> None:
        """Bring what was received to where the array lives, before what its stream does next."""
        if not isinstance(self.array, np.ndarray) and not device_direct:
            with torch.cuda.stream(self._stream):
                self.array[:nbytes].copy_(self._mirror()[:nbytes], non_blocking=True)
            self._mark()

    def received(self, nbytes: int) -> Any:
        """Return the first bytes of what has landed in pinned memory, uint8[nbytes], or None."""
        return None if self._pinned is None else self._pinned[:nbytes].numpy().copy()


class Payload:
    """A message that owns its buffer, uint8[32 + body].

    `nbytes` is what travels; where the length varies, the memory behind it is `capacity`.
    """

    def __init__(self, buffer: Any) -> None:
        self._memory = buffer
        self._views: dict[Any, Any] = {}
        self._head: Any = None  # the header of device memory, where the host knows it
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
        self.wire.landed(device_direct, nbytes)
        self._head = None if device_direct else self.wire.received(HEADER_NBYTES)
        self.resize(nbytes)

    def copy_from(self, host: Payload) -> None:
        """Take over a message that was made in host memory."""
        self.resize(host.nbytes)
        self._head = host.buffer[:HEADER_NBYTES]
        self.buffer.copy_(torch.from_numpy(host.buffer))

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
            self._head = head
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
            raw = self._head if self._head is not None else raw[:HEADER_NBYTES].cpu().numpy()
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
