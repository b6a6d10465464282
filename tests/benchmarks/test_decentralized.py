"""The table of decentralized algorithms: its cells, what it keeps, and what diverged."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import decentralized

import flags


@pytest.fixture
def runs(monkeypatch):
    """Return the flags of what was run; nothing is."""
    done = []

    def run(ranks, text):
        done.append(text)
        if "dcd-psgd" in text:
            return {"diverged": "NotFiniteError: rank 1"}
        result = {"test_accuracy": 0.9 + len(done) / 1000, "train_loss": 0.1}
        return result | ({"rank_accuracies": [0.5, 0.7]} if "each" in text else {})

    monkeypatch.setattr(decentralized, "run", run)
    return done


def test_every_cell_is_a_run_that_the_example_takes(monkeypatch):
    cells = decentralized.cells()
    assert len(cells) == 1 + 6 * 3 * 4 + 3 * 3
    for text in cells.values():
        monkeypatch.setattr(sys, "argv", ["ecd_resnet.py", *text.split()])
        args = flags.parse_args()
        flags.check(args)
        flags.make_algorithm(args)


def test_finished_runs_are_kept_and_not_repeated(runs, tmp_path, capsys):
    path = tmp_path / "new" / "runs.json"
    command = ["--json", str(path), "--seeds", "2", "--only", "choco-sgd, nuqsgd, 4"]
    decentralized.main(command)
    assert len(runs) == 2 and len(json.loads(path.read_text())) == 2
    decentralized.main([*command[:-1], "choco-sgd, nuqsgd"])
    assert len(runs) == 2 + 6
    decentralized.main([*command, "--epochs", "5"])
    assert len(runs) == 2 + 6 + 2
    assert capsys.readouterr().out.splitlines()[-1] == "| choco-sgd, nuqsgd |  |  | 0.9095 |  |  |"


def test_the_table_shows_what_diverged_and_what_ranks_have(runs, capsys):
    only = ["dcd-psgd, qsgd, 2", "qg-dsgdm, Dirichlet 0.1", "float32"]
    decentralized.main(["--seeds", "1", "--only", *only])
    rows = capsys.readouterr().out.splitlines()
    assert "| dcd-psgd, qsgd |  |  |  |  | diverges |" in rows
    assert "| d-psgd, float32 | 0.9010 |  |  |  |  |" in rows
    assert "| qg-dsgdm |  |  | 0.9030 (0.6000, 0.5000) |" in rows
    assert len(rows) == 2 + 2 + 1 + 2 + 1


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2.4])
def test_a_loss_of_a_guess_or_worse_is_divergence(loss):
    bad, good = ({"test_accuracy": 0.5, "train_loss": x} for x in (loss, 0.1))
    assert decentralized.cell([bad]) == "diverges"
    assert decentralized.cell([bad, good, good]) == "0.5000, 1 of 3 diverge"
    assert decentralized.cell([]) == ""


def test_a_cell_that_is_not_there_is_an_error(runs):
    with pytest.raises(SystemExit, match="no cell holds adam; they are:\nd-psgd, float32"):
        decentralized.main(["--only", "adam"])
    assert not runs


def test_a_run_that_diverges_is_told_from_one_that_fails(monkeypatch, tmp_path):
    mpirun = tmp_path / "mpirun"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for text, how in (("NotFiniteError: rank 1, step 3", "diverged"), ("KeyError", "fails")):
        mpirun.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
        mpirun.chmod(0o755)
        if how == "diverged":
            assert decentralized.run(2, "--epochs 1") == {"diverged": text}
        else:
            with pytest.raises(SystemExit, match="KeyError"):
                decentralized.run(2, "--epochs 1")
