"""What a run is made of, so that another one can go on from it; and one number for all of it."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import torch
from torch import Tensor

import decentral
from decentral.checkpoint_folder import Found


def restore(parts: dict[str, Any], state: dict[str, Any]) -> None:
    """Let every part be what it was: parameters, residuals, estimates, norms, bit for bit."""
    for name, part in parts.items():
        part.load_state_dict(state[name])


def adopt(parts: dict[str, Any], found: Found, rank: int) -> None:
    """Let every part be about what it was on another number of ranks.

    The model is the mean over those; the optimizer's momentum that of one of them.
    """
    states = [found.of(r) for r in range(found.size)]
    models = [state["model"] for state in states]
    parts["model"].load_state_dict({name: _mean([m[name] for m in models]) for name in models[0]})
    parts["optimizer"].adopt(states[rank % found.size]["optimizer"])
    parts["schedule"].load_state_dict(states[0]["schedule"])


def _mean(tensors: list[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]  # BatchNorm's count
    return torch.stack([t.double() for t in tensors]).mean(0).to(tensors[0].dtype)


def digest_of(model: torch.nn.Module, opt: decentral.DistributedOptimizer) -> str:
    """Return a SHA-256 of parameters, the optimizer's state, and the compression's."""
    state = opt.state_dict()
    ours = state["decentral"]
    return digest([dict(model.named_parameters()), state["state"], ours["state"], ours["round"]])


def digest(value: Any) -> str:
    """Return the SHA-256 of nested dictionaries and lists of tensors, numbers and strings."""
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=repr):
            sha.update(repr(key).encode())
            _feed(sha, value[key])
    elif isinstance(value, (list, tuple)):
        sha.update(struct.pack("<q", len(value)))
        for item in value:
            _feed(sha, item)
    elif isinstance(value, Tensor):
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().reshape(-1)
        sha.update(data.view(torch.uint8).numpy().tobytes())
    else:
        sha.update(repr(value).encode())
