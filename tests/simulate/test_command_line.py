"""python -m decentral.simulate"""

import json
import sys

import pytest

import decentral
from decentral.simulate import __main__ as command

SMALL = ["--workers", "4", "--steps", "12", "--batch-size", "8"]


def run(tmp_path, *flags):
    file = tmp_path / "results.json"
    command.main([*SMALL, *flags, "--json", str(file)])
    return json.loads(file.read_text())


def test_table_and_file(tmp_path, capsys):
    results = run(tmp_path, "--bits", "4", "--topology", "torus")
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + 10 + 1  # names, rows, what it took
    assert "4 workers, 4810 parameters" in table[-1]
    assert len(results["rows"]) == 10 and results["rows"][-1]["step"] == results["steps"] == 12
    message = decentral.compressors.NUQSGD(bits=4).new_payload(4810).nbytes
    assert results["bytes_sent_per_worker"] == 12 * 2 * message
    assert results["bytes_sent"] == 4 * results["bytes_sent_per_worker"]
    assert results["test_accuracy"] > 0.2 and results["train_loss"] < 2.3
    assert results["consensus_distance"] > 0


def test_the_same_flags_give_the_same_numbers(tmp_path):
    runs = [run(tmp_path, "--algorithm", "d-psgd", "--compressor", "none") for _ in range(2)]
    assert runs[0]["rows"] == runs[1]["rows"]
    other = run(tmp_path, "--algorithm", "d-psgd", "--compressor", "none", "--seed", "1")
    assert other["rows"] != runs[0]["rows"]


def test_local_steps(tmp_path):
    results = run(tmp_path, "--local-steps", "3")
    message = decentral.compressors.NUQSGD().new_payload(4810).nbytes
    assert results["bytes_sent_per_worker"] == 4 * 2 * message


@pytest.mark.parametrize(
    ("flags", "match"),
    (
        (["--algorithm", "sgd"], "error: unknown algorithm 'sgd'; known are: allreduce"),
        (["--workers", "0"], "error: simulation: expected size and local_steps of at least 1"),
        (["--steps", "0"], "error: expected --steps and --batch-size of at least 1"),
        (["--bits", "99"], "error: nuqsgd: bits must be 2..8, got 99"),
    ),
)
def test_mistakes_are_said(flags, match):
    with pytest.raises(SystemExit, match=match):
        command.main([*SMALL, *flags])


def test_without_scikit_learn_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn, which is not installed; pip install"):
        command.main(SMALL)
