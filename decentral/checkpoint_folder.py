"""One checkpoint as it stands on the disk: a folder with a manifest and a file per rank."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from . import states

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class Found:
    """A checkpoint that was found whole: `step`, and `size`, how many ranks wrote it."""

    def __init__(self, folder: Path, manifest: dict[str, Any], rank: int, size: int) -> None:
        self._folder, self._manifest = folder, manifest
        self.step, self.size = int(manifest["step"]), int(manifest["size"])
        self._rank, self._as_many = rank, size == self.size
        self._state: Any = None

    @property
    def state(self) -> Any:
        """What this rank saved; its tensors are on the CPU.

        Raises:
            ValueError: another number of ranks wrote it.
        """
        if not self._as_many:
            raise ValueError(
                f"{self._folder} is of {self.size} ranks, which are not as many as there are now; "
                "take the states that are needed with of(rank)"
            )
        return self._state

    def of(self, rank: int) -> Any:
        """Return what a rank of the job that wrote it has saved, with tensors on the CPU.

        Raises:
            ValueError: it had no such rank, or the file is damaged.
            OSError: the file cannot be read.
        """
        if not 0 <= rank < self.size:
            raise ValueError(f"{self._folder} is of ranks 0..{self.size - 1}, got rank {rank}")
        self._verify(rank)
        return states.read(self._folder / file_of(rank))

    def _verify(self, rank: int) -> None:
        path, expected = self._folder / file_of(rank), self._manifest["files"][file_of(rank)]
        got = path.stat().st_size
        if got != expected["bytes"]:
            raise ValueError(f"{path}: expected {expected['bytes']} bytes, got {got}")
        if sha256_of(path) != expected["sha256"]:
            raise ValueError(f"{path}: its SHA-256 is not the manifest's; it was altered")

    def take(self, ranks: int) -> str:
        """Read this rank's state, or its share of the files; return what is wrong with them."""
        if not self._folder.is_dir():
            raise not_shared(self._folder)
        try:
            if self._as_many:
                self._state = self.of(self._rank)
            else:
                for rank in range(self._rank, self.size, ranks):
                    self._verify(rank)
        except PermissionError:
            raise
        except (OSError, ValueError) as error:
            return str(error)
        return ""


def read_manifest(folder: Path, step: int) -> dict[str, Any] | str:
    """Return the manifest of a folder, or what is wrong with it.

    Raises:
        ValueError: it is of another format version.
        PermissionError: it may not be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        version, size = manifest["format"], manifest["size"]
    except PermissionError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        return f"{path}: no manifest: {error}"
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version!r}; load it with "
            f"decentral {manifest.get('decentral')}, which wrote it, or a newer one"
        )
    try:
        files = manifest["files"]
        expected = [file_of(rank) for rank in range(len(files))]
        sums = [(type(file["bytes"]), type(file["sha256"])) for file in files.values()]
        whole = (manifest["step"], size) == (step, len(files)) and list(files) == expected
    except (LookupError, TypeError, AttributeError) as error:
        return f"{path}: damaged: {error!r}"
    if not (whole and files) or set(sums) != {(int, str)}:
        return f"{path}: damaged: expected step {step}, and the files of {size} ranks"
    return dict(manifest)


def file_of(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def not_shared(folder: Path) -> OSError:
    """Return the error of a rank that does not see what rank 0 sees."""
    return OSError(
        f"expected to see {folder}, as rank 0 does, got no such folder; the directory of "
        "checkpoints must be on a file system that all hosts mount at the same path"
    )
