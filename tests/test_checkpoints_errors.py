"""What is wrong on one rank is an error on all, and none waits for another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_cases import names, on_all, saved, steps_of

import decentral
from decentral import checkpoint_folder

ROOT = Path(__file__).parents[1]


def test_a_directory_that_ranks_do_not_share_is_an_error_on_all(tmp_path):
    def apart(comm):
        return decentral.Checkpoints(tmp_path / str(comm.rank), comm)

    for error in on_all(3, lambda comm: apart(comm).save(1, 0)):
        assert isinstance(error, OSError)
        assert re.search(
            r"save: rank 1: expected to see .*tmp, as rank 0 does.* must be on", str(error)
        )
    assert names(tmp_path / "0") == []
    saved(tmp_path / "0", 1, ranks=3)
    for error in on_all(3, lambda comm: apart(comm).load()):
        assert isinstance(error, OSError)
        assert "load: rank 1: expected to see" in str(error)


def test_a_disk_that_is_full_is_an_error_on_all(tmp_path):
    """The kernel's own error: one rank's file is larger than the process may write."""
    code = f"""if True:
        import resource, signal, torch, decentral
        from decentral.communicators import run_local
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

        def rank(comm):
            checkpoints = decentral.Checkpoints({str(tmp_path)!r}, comm)
            checkpoints.save(1, 0)
            try:
                checkpoints.save(2, torch.ones(10 ** (6 * (comm.rank == 1))))
            except OSError as error:
                return str(error), checkpoints.load().step

        for message, step in run_local(3, rank):
            assert "rank 1: " in message and "File too large" in message, message
            assert step == 1
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("where", ["fsync", "rename", "mkdir"])
def test_an_error_of_rank_0_is_one_on_all(tmp_path, monkeypatch, where):
    saved(tmp_path, 1)

    def fail(*_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        patch.setattr(Path, "mkdir", fail if where == "mkdir" else Path.mkdir)
        errors = on_all(2, lambda comm: decentral.Checkpoints(tmp_path, comm).save(2, 0))
    for error in errors:
        assert isinstance(error, OSError)
        assert "save: rank 0: [Errno 30] Read-only file system" in str(error)
    assert steps_of(tmp_path) == 1


def test_a_file_that_may_not_be_read_is_an_error_on_all(tmp_path, monkeypatch):
    """It is not skipped: what it holds may be whole."""
    saved(tmp_path, 1)

    def refuse(path):
        if path.name == "rank-00001.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return checksum(path)

    checksum = checkpoint_folder.sha256_of
    monkeypatch.setattr(checkpoint_folder, "sha256_of", refuse)
    for error in on_all(2, lambda comm: decentral.Checkpoints(tmp_path, comm).load()):
        assert isinstance(error, OSError)
        assert "load: rank 1: [Errno 13] Permission denied" in str(error)


def test_what_cannot_be_saved_on_one_rank_is_an_error_on_all(tmp_path):
    def save(comm):
        state = {"a": [1, object()]} if comm.rank == 1 else {}
        decentral.Checkpoints(tmp_path, comm).save(1, state)

    for error in on_all(3, save):
        assert isinstance(error, TypeError)
        assert re.search(r"rank 1: state\['a'\]\[1\]: expected", str(error))
    assert names(tmp_path) == []


def test_ranks_that_save_another_step(tmp_path):
    for error in on_all(2, lambda comm: decentral.Checkpoints(tmp_path, comm).save(comm.rank, 0)):
        assert isinstance(error, ValueError)
        assert re.search(r"must save the same step, got \[0, 1\]", str(error))
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", [-1, 1.0, True, "1", None])
def test_steps_that_are_none(tmp_path, step):
    for error in on_all(2, lambda comm: decentral.Checkpoints(tmp_path, comm).save(step, 0)):
        assert isinstance(error, ValueError)
        assert "expected a step that is an integer of 0 or more" in str(error)


@pytest.mark.parametrize("keep", [0, -1, 1.5, None])
def test_keep_is_at_least_one(tmp_path, keep):
    for error in on_all(1, lambda comm: decentral.Checkpoints(tmp_path, comm, keep)):
        assert isinstance(error, ValueError)
        assert "keep must be an integer of 1 or more" in str(error)
