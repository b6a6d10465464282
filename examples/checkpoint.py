"""Checkpoints of one rank: a file each, since with gossip every rank has parameters of its own."""

from __future__ import annotations

import os
from typing import Any

import torch


def _path(directory: str, rank: int) -> str:
    return os.path.join(directory, f"rank{rank:05d}.pt")


def save(directory: str, rank: int, epoch: int, parts: dict[str, Any]) -> None:
    """Write the state_dict() of every part; the file appears whole or not at all."""
    os.makedirs(directory, exist_ok=True)
    path = _path(directory, rank)
    content = {name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch}
    torch.save(content, path + ".tmp")
    os.replace(path + ".tmp", path)


def load(directory: str, rank: int, parts: dict[str, Any]) -> int:
    """Restore every part, and return how many epochs were finished.

    Raises:
        FileNotFoundError: this rank has no checkpoint there.
    """
    path = _path(directory, rank)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"--resume: expected {path}; was the run that wrote this folder of as many ranks?"
        )
    # weights_only: a checkpoint is data, loading one does not execute code
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return int(content["epoch"])
