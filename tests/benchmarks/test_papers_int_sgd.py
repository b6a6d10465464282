"""The experiments of the IntSGD paper at a size of seconds: do they run, and make sense?"""

import csv
import importlib
import math
from pathlib import Path

import numpy as np
import pytest

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Return run(name, *flags) -> rows of the CSV."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(PAPERS))

    def run(name, *flags):
        module = importlib.import_module(name)
        module.main([*map(str, flags), "--out", str(tmp_path / "out")])
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000
        with open(tmp_path / "out" / f"{name}.csv", newline="") as file:
            return list(csv.DictReader(file))

    return run


def write_libsvm(path, rows=60, features=8):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(rows):
        label = 1 if i < rows // 2 else -1
        chosen = sorted(rng.choice(features, 3, replace=False) + 1)
        lines.append(f"{label} " + " ".join(f"{j}:{rng.normal() + label:.4f}" for j in chosen))
    path.write_text("\n".join(lines) + "\n")


def of(rows, name):
    return [row for row in rows if row["method"] == name]


def test_logistic_regression_on_a_libsvm_file(experiment, tmp_path, capsys):
    write_libsvm(tmp_path / "a5a.txt")
    rows = experiment(
        "logistic_regression",
        *("--dataset", "a5a", "--data-dir", tmp_path, "--l2", 0.05, "--ranks", 2),
        *("--steps", 60, "--batch-steps", 15, "--every", 5, "--beta", 0),
    )
    names = {row["method"] for row in rows}
    assert names == {"GD", "IntGD", "IntDIANA", "SGD", "IntSGD", "L-SVRG", "VR-IntDIANA"}
    gaps = {name: [float(row["gap"]) for row in of(rows, name)] for name in names}
    assert all(gap > -1e-12 for name in names for gap in gaps[name])
    for name in ("GD", "IntGD", "IntDIANA"):
        assert gaps[name][-1] < 1e-4 * gaps[name][0]
    largest = {name: int(of(rows, name)[-1]["largest_integer"]) for name in names}
    assert largest["GD"] == largest["SGD"] == 0
    assert largest["IntGD"] > 128 > largest["IntDIANA"]
    told = capsys.readouterr().out
    assert "HELD: IntGD's largest integer grows" in told
    assert "HELD: IntDIANA's integers stay under 2^7" in told


def test_logistic_regression_without_its_file(experiment, tmp_path):
    with pytest.raises(SystemExit, match="LibSVM's site"):
        experiment("logistic_regression", "--dataset", "w8a", "--data-dir", tmp_path)


def test_problem_on_sparse_rows_is_the_dense_one(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(PAPERS))
    import scipy.sparse

    Problem = importlib.import_module("logistic_problem").Problem
    rng = np.random.default_rng(1)
    A, b = rng.normal(size=(30, 6)), rng.choice([-1.0, 1.0], 30)
    dense, sparse = Problem(A, b, 0.1), Problem(scipy.sparse.csr_matrix(A), b, 0.1)
    x = sparse.minimum()
    assert np.linalg.norm(sparse.gradient(x)) < 1e-12
    np.testing.assert_allclose(x, dense.minimum(), atol=1e-10)
    assert math.isclose(dense.L, np.linalg.eigvalsh(A.T @ A)[-1] / 120 + 0.1, rel_tol=1e-6)
    assert math.isclose(sparse.L, dense.L, rel_tol=1e-9)
    v = rng.normal(size=6)
    slope = (dense.gradient(x + 1e-6 * v) - dense.gradient(x - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(sparse.hessian_product(x, v), slope, atol=1e-8)


def write_wikitext(folder):
    rng = np.random.default_rng(2)
    for part, lines in (("train", 60), ("valid", 12), ("test", 12)):
        text = [" ".join(f"w{k}" for k in rng.geometric(0.3, 12)) for _ in range(lines)]
        (folder / f"wiki.{part}.tokens").write_text("\n\n".join(f" {t} " for t in text) + "\n")


TINY = (
    *("--ranks", 2, "--batch-size", 4, "--bptt", 8, "--layers", 1, "--embedding", 8),
    *("--hidden", 8, "--epochs", 2, "--seeds", 2),
)


def test_language_model_on_wikitext_files(experiment, tmp_path, capsys):
    write_wikitext(tmp_path)
    rows = experiment("language_model", "--data-dir", tmp_path, *TINY, "--warmup", 1)
    assert len(rows) == 4 * 2 * 2
    assert len({row["steps"] for row in rows if row["epoch"] == "2"}) == 1
    for row in rows:
        assert 1 < float(row["valid_perplexity"]) < 1000
        assert math.isfinite(float(row["train_loss"]))
        assert bool(row["test_perplexity"]) == (row["epoch"] == "2")
    sent = {row["method"]: float(row["bytes_per_step"]) for row in rows}
    assert sent["Heuristic IntSGD, int8"] < 0.3 * sent["SGD, float32"]
    told = capsys.readouterr().out
    assert "IntSGD random trains no worse" in told
    assert "wiki.*.tokens: " in told


def test_language_model_draws_are_reproducible(experiment, tmp_path):
    text = tmp_path / "some.txt"
    text.write_text("The quick brown fox jumps over the lazy dog . " * 60)
    flags = ("--text", text, *TINY, "--seeds", 1, "--methods", "IntSGD random, int8")
    first = experiment("language_model", *flags)
    assert experiment("language_model", *flags) == first


def test_the_text_that_comes_with_python(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPERS))
    data = importlib.import_module("language_data")
    words = data.tokens(data.help_topics())
    assert len(words) > 50_000
    train, valid, test = data.split(words)
    assert len(train) + len(valid) + len(test) == len(words)


def test_language_model_without_its_files(experiment, tmp_path):
    with pytest.raises(SystemExit, match="WikiText-2's folder"):
        experiment("language_model", "--data-dir", tmp_path)
