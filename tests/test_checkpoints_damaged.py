"""Checkpoints that are not whole: skipped, and named."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from checkpoint_cases import loaded, on_all, saved, steps_of

import decentral
from decentral import states


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def alter(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def claim(**fields):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


FILES = ("rank-00000.safetensors", "rank-00001.safetensors")
ENTRY = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize("newest", [2, 3])
@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("rank-00001.safetensors", cut, "expected [0-9]+ bytes, got"),
        ("rank-00001.safetensors", alter, "SHA-256"),
        ("rank-00000.safetensors", Path.unlink, "No such file"),
        ("manifest.json", Path.unlink, "No such file"),
        ("manifest.json", empty, "no manifest"),
        ("manifest.json", cut, "no manifest"),
        ("manifest.json", claim(size=1), "damaged"),
        ("manifest.json", claim(size=10**12), "damaged"),
        ("manifest.json", claim(step=7), "damaged"),
        ("manifest.json", claim(files={}), "damaged"),
        ("manifest.json", claim(files={"../x": {}, "y": 1}), "damaged"),
        ("manifest.json", claim(files=dict.fromkeys("xy", ENTRY)), "damaged"),
        ("manifest.json", claim(files=dict.fromkeys(FILES, ENTRY | {"bytes": "1"})), "damaged"),
    ],
)
def test_what_is_not_whole_is_skipped_and_named(tmp_path, caplog, newest, file, damage, why):
    saved(tmp_path, 1, 2, 3)
    for step in range(newest, 4):
        damage(tmp_path / f"step-{step:08d}" / file)
    for ranks in (2, 3):  # as many as before, and not
        caplog.clear()
        assert {found.step for found in loaded(tmp_path, ranks)} == {newest - 1}
        assert len(caplog.records) == 4 - newest
        for record in caplog.records:
            assert (record.name, record.levelno) == ("decentral", logging.WARNING)
            assert re.search(rf"not whole: .*step-0000000[23]/{file}", record.message)
            assert re.search(why, record.message)


def test_a_damaged_state_with_a_right_checksum_is_skipped(tmp_path, caplog, monkeypatch):
    saved(tmp_path, 1)
    monkeypatch.setattr(states, "write", lambda path, state: path.write_bytes(b"\xff" * 100))
    saved(tmp_path, 2)
    assert steps_of(tmp_path) == 1
    assert "damaged" in caplog.text


def test_where_nothing_is_whole_nothing_is_found(tmp_path, caplog):
    saved(tmp_path, 1)
    cut(tmp_path / "step-00000001" / "manifest.json")
    assert steps_of(tmp_path) is None
    assert len(caplog.records) == 1


def test_another_format_is_an_error_with_a_remedy(tmp_path):
    saved(tmp_path, 1)
    claim(format=2, decentral="9.0")(tmp_path / "step-00000001" / "manifest.json")
    for error in on_all(2, lambda comm: decentral.Checkpoints(tmp_path, comm).load()):
        assert isinstance(error, ValueError)
        assert re.search(r"expected format version 1, got 2; .*decentral 9\.0", str(error))


def test_of_refuses_what_was_altered_meanwhile(tmp_path):
    saved(tmp_path, 2)
    found = loaded(tmp_path)[0]
    alter(tmp_path / "step-00000002" / "rank-00001.safetensors")
    with pytest.raises(ValueError, match="SHA-256"):
        found.of(1)
