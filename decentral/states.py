"""A state, nested dicts, lists and tuples of tensors and numbers, as one safetensors file.

The tensors stand under their paths, e.g. "state['model']['weight']"; the entry "structure" is JSON,
and says where they belong. In it a list is a list; None, True, text, finite floats and
integers of 64 bits are themselves; anything else is an object whose first key says what it is. So
reading one executes no code, and gives every type back as it was.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_STRUCTURE = "structure"
_ENCODING = ("utf-8", "surrogatepass")  # what Python allows in a str is kept
_DTYPES = {
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
}
_DICTS = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_WIDEST = 2**63  # what other readers of JSON take for an integer


def write(path: Path, state: Any) -> None:
    """Write a state to a new file, and wait until the disk has it.

    Raises:
        TypeError: it holds something else; names the path to it.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(
        _Writer(tensors).structure(state, "state"), allow_nan=False, ensure_ascii=False
    )
    tensors[_STRUCTURE] = torch.frombuffer(bytearray(text, *_ENCODING), dtype=torch.uint8)
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read(path: Path) -> Any:
    """Return the state that write() wrote, with its tensors on the CPU.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # a copy: what it returns is a map of the file, which may be removed
            structure = bytes(file.get_tensor(_STRUCTURE).numpy()).decode(*_ENCODING)
            return _value(json.loads(structure), lambda name: file.get_tensor(name).clone())
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error


class _Writer:
    """Takes a state apart into JSON, and tensors of the host that share no memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._storages: set[int] = set()

    def structure(self, value: Any, path: str) -> Any:
        """Return a value as JSON; `path` is what its tensors are called."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if -_WIDEST <= value < _WIDEST else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind in (list, tuple):
            items = [self.structure(v, f"{path}[{i}]") for i, v in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if kind in _DICTS.values():
            return self._dict(value, path)
        if kind in (Tensor, nn.Parameter):
            return {"tensor": self._keep(value.detach(), path)}
        if kind is np.ndarray or isinstance(value, np.generic):
            return {"array" if kind is np.ndarray else "scalar": self._keep(_tensor(value), path)}
        raise _unknown(value, path)

    def _dict(self, value: Any, path: str) -> dict[str, Any]:
        pairs = []
        for key, item in value.items():
            where = f"{path}[{key!r}]"
            _check_key(key, where)
            pairs.append([self.structure(key, where), self.structure(item, where)])
        result: dict[str, Any] = {type(value).__name__: pairs}
        if hasattr(value, "_metadata"):  # versions of modules, which Module.state_dict() adds
            result["_metadata"] = self.structure(value._metadata, f"{path}._metadata")
        return result

    def _keep(self, tensor: Tensor | None, path: str) -> str:
        if tensor is None or tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            raise _unknown(tensor, path)
        if tensor.device.type == "meta":
            raise _unknown(tensor, path)
        tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        self._tensors[path] = tensor.clone() if storage in self._storages else tensor
        self._storages.add(storage)
        return path


def _tensor(value: Any) -> Tensor | None:
    """Return a copy of a NumPy array or number, None where torch has no such dtype."""
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError):  # ValueError: bytes in the other order
        return None


def _unknown(value: Any, path: str) -> TypeError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        kind = f"a {value.layout} tensor of {value.dtype} on {value.device}"
    elif value is None:
        kind = "a NumPy array of another dtype"
    return TypeError(
        f"{path}: expected a dict, list, tuple, dense tensor or NumPy array of numbers, int, "
        f"float, bool, None or str, got {kind}; convert it first"
    )


def _check_key(key: Any, path: str) -> None:
    if type(key) is tuple:
        for part in key:
            _check_key(part, path)
    elif key is not None and type(key) not in (str, int, bool):
        raise TypeError(
            f"{path}: expected a dict key of str, int, bool, None or a tuple of them, got "
            f"{type(key).__name__}; convert it first"
        )


def _value(node: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Put a value together again; `tensor` returns one by name."""
    if isinstance(node, list):
        return [_value(item, tensor) for item in node]
    if not isinstance(node, dict):
        return node
    kind, content = next(iter(node.items()))
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if kind == "tuple":
        return tuple(_value(item, tensor) for item in content)
    if kind == "tensor":
        return tensor(content)
    if kind in ("array", "scalar"):
        array = tensor(content).numpy()
        return array if kind == "array" else array[()]
    result = _DICTS[kind]()
    for key, item in content:
        result[_value(key, tensor)] = _value(item, tensor)
    if "_metadata" in node:
        result._metadata = _value(node["_metadata"], tensor)
    return result
