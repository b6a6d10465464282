"""Checkpoints: a folder per step with a file per rank, which appears whole or not at all.

    step-00000040/rank-00000.safetensors ...   each rank's state (states.py)
    step-00000040/manifest.json                format, step, ranks; bytes and SHA-256 of each file

All of it is written into a folder of another name, synchronized, and renamed at last, so that the
end of a job at any moment leaves what was there before. A step that is saved again goes into
step-00000040.1, before the folder that it replaces is removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import states
from ._version import __version__
from .checkpoint_folder import (
    FORMAT_VERSION,
    MANIFEST,
    Found,
    file_of,
    not_shared,
    read_manifest,
    sha256_of,
)
from .communicators.base import Communicator

_FOLDER = re.compile(r"step-([0-9]{8,})(?:\.([0-9]+))?")


class _Folder(NamedTuple):
    step: int
    again: int  # how often the step was saved before
    name: str


class Checkpoints:
    """The checkpoints of a job in one directory, which all its ranks must see.

    Args:
        directory: is created where it does not exist.
        comm: the ranks, e.g. DistributedOptimizer.communicator.
        keep: how many are kept, at least 1.

    Raises:
        ValueError: keep is no integer, or less than 1.
    """

    def __init__(self, directory: str | os.PathLike[str], comm: Communicator, keep: int = 3):
        if not isinstance(keep, int) or keep < 1:
            raise ValueError(f"checkpoints: keep must be an integer of 1 or more, got {keep!r}")
        self.directory, self._comm, self._keep = Path(directory).absolute(), comm, keep

    def save(self, step: int, state: Any) -> None:
        """Write each rank's state, and remove what is older than the last `keep`.

        All ranks must call it. `state` is made of dicts, lists and tuples of tensors, NumPy arrays,
        numbers, text and None, as state_dict()s are. What an earlier job left unfinished goes too.

        Raises:
            TypeError: the state of a rank holds something else; on all ranks, as the others.
            ValueError: the step is no integer of 0 or more, or not the same on all ranks.
            OSError: a rank cannot write, or does not see the directory of rank 0.
        """
        begun = self._together("save", lambda: (step, self._begin(step)))
        steps = [theirs for theirs, _ in begun]
        temporary = self.directory / begun[0][1]
        try:
            if len(set(steps)) > 1:
                raise ValueError(f"checkpoints: all ranks must save the same step, got {steps}")
            files = self._together("save", lambda: self._write(temporary, state))
            self._together("save", lambda: self._publish(temporary, step, dict(files)))
        except Exception:
            if self._comm.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def load(self) -> Found | None:
        """Return the newest checkpoint that is whole, the same on all ranks, or None.

        All ranks must call it. Those that are not are named in a warning of rank 0.

        Raises:
            ValueError: one is of another format version; on all ranks, as the others.
            OSError: a rank may not read, or does not see the directory of rank 0.
        """
        on_first = self._comm.rank == 0
        folders = self._together("load", lambda: self._folders() if on_first else [])[0]
        for folder in folders:
            found = self._examine(self.directory / folder.name, folder.step)
            if isinstance(found, Found):
                return found
            if on_first:
                _warn(f"decentral: skips a checkpoint that is not whole: {found}")
        return None

    def _together(self, what: str, action: Callable[[], Any]) -> list[Any]:
        """Return every rank's action(); if one raises, all do."""
        mine: Any = None
        failure: Exception | None = None
        try:
            mine = action()
        except Exception as error:
            failure = error
        said = None if failure is None else (_kind(failure), f"{failure}")
        everyone = self._comm.all_gather_object((mine, said))
        for rank, (_, theirs) in enumerate(everyone):
            if theirs is not None:
                raise theirs[0](f"checkpoints: {what}: rank {rank}: {theirs[1]}") from failure
        return [value for value, _ in everyone]

    def _folders(self) -> list[_Folder]:
        """Return what is there, the newest first."""
        if not self.directory.exists():
            return []
        with os.scandir(self.directory) as entries:
            names = [(e.name, _FOLDER.fullmatch(e.name)) for e in entries if e.is_dir()]
        found = [_Folder(int(m[1]), int(m[2] or 0), name) for name, m in names if m]
        return sorted(found, reverse=True)

    # ---- saving -----------------------------------------------------------------------------

    def _begin(self, step: int) -> str:
        """Make room; return, on rank 0, the name of the folder to write into."""
        if type(step) is not int or step < 0:
            raise ValueError(f"expected a step that is an integer of 0 or more, got {step!r}")
        if self._comm.rank != 0:
            return ""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            _sync(self.directory.parent)
        for left_over in self.directory.glob(".step-*.tmp"):
            if left_over.is_dir():
                shutil.rmtree(left_over)
        name = _hidden(f"step-{step:08d}")
        (self.directory / name).mkdir()
        return name

    def _write(self, temporary: Path, state: Any) -> tuple[str, dict[str, Any]]:
        """Write this rank's file; return its name and what the manifest says of it."""
        if not temporary.is_dir():
            raise not_shared(temporary)
        path = temporary / file_of(self._comm.rank)
        states.write(path, state)
        return path.name, {"bytes": path.stat().st_size, "sha256": sha256_of(path)}

    def _publish(self, temporary: Path, step: int, files: dict[str, dict[str, Any]]) -> None:
        """On rank 0: complete what all have written, give it its name, and remove old ones."""
        if self._comm.rank != 0:
            return
        manifest = {
            "format": FORMAT_VERSION,
            "decentral": __version__,
            "step": step,
            "size": self._comm.size,
            "files": files,
        }
        with open(temporary / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync(temporary)
        before = [folder.again for folder in self._folders() if folder.step == step]
        again = f".{max(before) + 1}" if before else ""
        os.rename(temporary, self.directory / f"step-{step:08d}{again}")
        _sync(self.directory)
        self._remove_old(step)

    def _remove_old(self, step: int) -> None:
        newer = [folder.name for folder in self._folders() if folder.step > step]
        if newer:  # of a job that went further: never ours to remove
            _warn(
                f"decentral: {self.directory} holds {newer[0]}, which is newer than step {step} "
                "that was just saved, and would be loaded; remove it, or use another directory"
            )
        older = [folder for folder in self._folders() if folder.step <= step]
        last: dict[int, _Folder] = {}
        for folder in older:
            last.setdefault(folder.step, folder)
        kept = list(last.values())[: self._keep]
        for folder in older:
            if folder not in kept:
                hidden = self.directory / _hidden(folder.name)  # first, so that no half is seen
                os.rename(self.directory / folder.name, hidden)
                shutil.rmtree(hidden)

    # ---- loading ----------------------------------------------------------------------------

    def _examine(self, folder: Path, step: int) -> Found | str:
        """Return the checkpoint of a folder, or why it is not whole; the same on all ranks."""
        comm = self._comm
        on_first = comm.rank == 0
        manifest = self._together("load", lambda: read_manifest(folder, step) if on_first else "")[
            0
        ]
        if isinstance(manifest, str):
            return manifest
        found = Found(folder, manifest, comm.rank, comm.size)
        wrong = self._together("load", lambda: found.take(comm.size))
        return next(filter(None, wrong), found)


def _hidden(name: str) -> str:
    """Return a name that no checkpoint has, and no other file system by chance."""
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"


def _sync(directory: Path) -> None:
    """Wait until the disk knows the names in a directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kind(error: Exception) -> type[Exception]:
    """Return what the other ranks raise."""
    kinds = (OSError, TypeError, ValueError)
    return next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)


def _warn(message: str) -> None:
    logging.getLogger("decentral").warning(message)
