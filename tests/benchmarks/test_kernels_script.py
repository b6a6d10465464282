"""The benchmark of the CPU kernels: what takes turns, and what the tables have."""

import json
import sys
from pathlib import Path

import torch

from decentral_kernels.threads import get_num_threads

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import kernels


def test_all_take_turns_and_the_first_does_not_count(capsys):
    calls, names = [], ("update", "memcpy", "encode", "add")
    counted = [lambda name=name: calls.append((name, get_num_threads())) for name in names]
    row = kernels.measure("a row", counted[2:], counted[:2], rounds=2)
    turn = [(name, count) for count in (1, 2) for name in names]
    assert calls == 3 * turn and get_num_threads() == 1
    assert set(row) == {"what"} | {f"{name} {count}" for name, count in turn}
    cells = [cell.strip() for cell in capsys.readouterr().out.strip("| \n").split("|")]
    gains = [row[f"{n} 1"] / row[f"{n} 2"] for n in ("encode", "add", "memcpy", "update")]
    assert cells[0] == row["what"] == "a row"
    assert cells[4:] == [f"{gain:.2f}" for gain in gains]


def test_everything_is_measured(capsys, monkeypatch, tmp_path):
    file, threads = tmp_path / "kernels.json", torch.get_num_threads()
    flags = f"--numel 16384 --rounds 1 --json {file}"
    monkeypatch.setattr(sys, "argv", ["kernels.py", *flags.split()])
    kernels.main()
    torch.set_num_threads(threads)
    found = json.loads(file.read_text())
    rows = {row.pop("what"): row for row in found["seconds"]}
    assert len(rows) == 3 * 7 + 3 + 3 and "NUQSGD, 4 bits" in rows
    assert min(seconds for row in rows.values() for seconds in row.values()) > 0
    assert len(found["microseconds"]) == 4
    widths = [line.count("|") for line in capsys.readouterr().out.splitlines() if line]
    assert widths == [0] + [9] * (2 + 24) + [5] * (2 + 3) + [3] * (2 + 4)
