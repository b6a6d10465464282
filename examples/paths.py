"""Files and directories that flags name: tried before training, and a mistake says whose it is."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WRITABLE = "a directory that can be written"


@contextmanager
def of_flag(flag: str, path: str, expected: str) -> Iterator[None]:
    """Let an OSError that is raised inside name the flag that the path is of."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{flag} {path}: expected {expected}, got: {error}") from error


def check(args: argparse.Namespace) -> None:
    """Raise OSError where a run could not write what it has to; leave nothing behind.

    For rank 0, which makes them. What is resumed from may be read-only, if nothing is left to do.
    """
    if args.json:
        with of_flag("--json", args.json, "a file that can be written in a directory that exists"):
            _try_file(Path(args.json))
    folders = {"--log-dir": args.log_dir}
    if not args.resume:
        folders["--checkpoint-dir"] = args.checkpoint_dir
    for flag, folder in folders.items():
        if folder:
            with of_flag(flag, folder, WRITABLE):
                _try_directory(Path(folder).absolute())


def _try_file(path: Path) -> None:
    if path.is_fifo():  # who reads it would take this for the end
        return
    there = path.exists()
    with path.open("a"):
        pass
    if not there:
        path.unlink()


def _try_directory(path: Path) -> None:
    """Raise OSError unless one can write to the directory, or make it."""
    while not os.path.lexists(path):
        path = path.parent
    with tempfile.TemporaryDirectory(dir=path):
        pass
