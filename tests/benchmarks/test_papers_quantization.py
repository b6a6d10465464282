"""The experiments of the NUQSGD paper, tiny: they run, and their figures make sense."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"
PNG = b"\x89PNG"


@pytest.fixture(scope="module", autouse=True)
def papers_on_the_path():
    """As when a script there is started: its folder comes first."""
    sys.path.insert(0, str(PAPERS))
    yield
    sys.path.remove(str(PAPERS))


def rows_of(path):
    with open(path, newline="") as file:
        return [{k: _parsed(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _parsed(text):
    try:
        return float(text)
    except ValueError:
        return text


def is_png(path):
    return path.read_bytes()[:4] == PNG and path.stat().st_size > 5000


def said(capsys, claims):
    """Return what was printed, in which so many claims were judged."""
    out = capsys.readouterr().out
    assert out.count("    here: ") == claims
    return out


def test_gradient_variance(tmp_path, capsys):
    import gradient_variance

    flags = "--model resnet8 --batch-size 64 --steps 3 --every 2 --batches 4 --draws 2"
    gradient_variance.main([*flags.split(), "--out", str(tmp_path)])
    said(capsys, claims=6)
    assert is_png(tmp_path / "gradient_variance.png")
    rows = rows_of(tmp_path / "gradient_variance.csv")
    assert len(rows) == 2 * 8  # steps 1 and 3; SGD, EF-SignSGD, three quantizers on two grids
    for step in (1, 3):
        at = {(r["method"], r["zero_level"]): r for r in rows if r["step"] == step}
        sgd = at.pop(("SGD", "True"))["total"]
        assert sgd > 0
        for (method, _), r in at.items():
            if method != "EF-SignSGD":  # unbiased: variances add, up to what few draws tell
                assert r["total"] == pytest.approx(sgd + r["rounding"], rel=0.2)
        assert at["QSGD", "False"]["rounding"] > 2 * at["QSGD", "True"]["rounding"]
        assert at["QSGD", "True"]["rounding"] > 5 * at["NUQSGD", "True"]["rounding"]


def test_sgd_noise_is_the_variance_of_a_mini_batch():
    import gradient_variance

    rng = np.random.default_rng(0)
    gradients = (1 + 0.1 * rng.standard_normal((8, 4096))).astype(np.float32)
    variance = gradient_variance.Variance(bits=8, block_size=4096, draws=2, seed=0)
    rows = {(r["method"], r["zero_level"]): r for r in variance.measure(1, gradients)}
    assert rows["SGD", True]["total"] == pytest.approx(0.01 * 4096, rel=0.02)
    assert rows["SGD", True]["gradient_square"] == pytest.approx(1.01 * 4096, rel=0.02)
    for r in rows.values():
        assert r["relative"] == pytest.approx(r["rounding"] / r["gradient_square"])


def test_looking_leaves_the_residual_as_it_is():
    import gradient_variance

    gradients = np.random.default_rng(1).standard_normal((3, 640)).astype(np.float32)
    variance = gradient_variance.Variance(bits=4, block_size=64, draws=1, seed=0)
    variance.remember(1, gradients[0])
    first, second = (variance.measure(2, gradients)[-1] for _ in range(2))
    assert first["method"] == "EF-SignSGD"
    assert first == second


def test_bounds(tmp_path, capsys):
    import bounds

    flags = "--model resnet8 --steps 2 --bits 2 4 --block-sizes 64 1024 --numel 8192 --draws 4"
    bounds.main([*flags.split(), "--out", str(tmp_path)])
    out = said(capsys, claims=12)
    assert "DID NOT HOLD: QSGD's variance" not in out
    assert is_png(tmp_path / "bounds.png") and is_png(tmp_path / "bounds_bits.png")
    rows = rows_of(tmp_path / "bounds.csv")
    assert len(rows) == 3 * 2 * 2 * 7  # methods, bits, block sizes, kinds of data
    for r in rows:
        assert r["variance"] <= r["variance_bound"] + 5 * r["standard_error"] + 1e-6
        assert 0 < r["nonzeros"] <= 1.1 * r["nonzeros_bound"]
        assert r["elias"] <= r["elias_bound"] and r["huffman"] <= r["huffman_bound"]
        assert r["huffman"] <= r["fixed"] + 1e-9
        if r["data"] == "Gaussian":  # Huffman's symbols are pairs or more, a short vector has few
            assert r["entropy"] <= r["huffman"] + 0.2


def omega_bits(k):
    """The length of Elias' omega code of k, by its definition."""
    length = 1
    while k > 1:
        length += k.bit_length()
        k = k.bit_length() - 1
    return length


def test_psi_bounds_the_omega_code():
    from theory import psi

    for k in [*range(1, 5000), *(2**p for p in range(13, 300))]:
        assert omega_bits(k) <= psi(k) + 1e-9
    for k in (1, 4, 16, 65536):
        assert omega_bits(k) == pytest.approx(psi(k))


def test_elias_sum_bounds_every_sequence():
    from theory import elias_sum

    rng = np.random.default_rng(2)
    for scale in (1, 3, 20, 1000):
        numbers = rng.integers(1, scale + 1, 50).tolist()
        bits = sum(map(omega_bits, numbers))
        assert bits <= elias_sum(50, sum(numbers)) + 1e-9
        assert elias_sum(50, sum(numbers)) <= elias_sum(60, sum(numbers)) + 1e-9
        assert elias_sum(50, sum(numbers)) <= elias_sum(50, sum(numbers) + 1) + 1e-9


def test_index_sum_of_nuqsgd_is_bounded():
    from theory import index_sum_bound, nonzeros_bound

    d, s = 1024, 2
    for v in (np.ones(d), np.eye(1, d)[0], 0.9 ** np.arange(d)):
        r = v / np.linalg.norm(v)
        index = np.where(r > 0, np.ceil(np.log2(np.maximum(r, 1e-30))) + s + 1, 0).clip(min=0)
        below = r < 2.0**-s  # these are rounded to level 0 or 1
        expected = np.where(below, r * 2.0**s, index).sum()
        assert expected <= index_sum_bound("nuqsgd", s, d)
    assert nonzeros_bound("nuqsgd", s, d) == 4**s + 2**s * math.sqrt(d)


def test_training(tmp_path, capsys):
    import training

    methods = ["SuperSGD", "NUQSGD, 4 bits", "QSGD, 4 bits", "IntSGD, random", "EF-SignSGD"]
    flags = "--ranks 2 --seeds 2 --epochs 1 --batch-size 128".split()
    training.main([*flags, "--methods", *methods, "--out", str(tmp_path)])
    said(capsys, claims=4)
    assert is_png(tmp_path / "training.png")
    rows = rows_of(tmp_path / "training.csv")
    assert [r["method"] for r in rows] == [m for m in methods for _ in range(2)]
    assert len(rows_of(tmp_path / "training_curves.csv")) == len(rows)
    bits = {r["method"]: r["bits_per_coordinate"] for r in rows}
    assert bits["SuperSGD"] == 32
    assert 4 < bits["NUQSGD, 4 bits"] < 4.1
    assert 2 <= bits["EF-SignSGD"] < 2.1
    for r in rows:
        assert 0 < r["loss"] < 5 and 0 <= r["accuracy"] <= 100


def test_difference_of_means_in_standard_errors():
    import training

    rows = [
        {"method": method, "accuracy": accuracy}
        for method, accuracies in {"a": (90, 92, 94), "b": (89, 89, 89)}.items()
        for accuracy in accuracies
    ]
    points, error = training.difference(rows, "a", "b")
    assert points == pytest.approx(3)
    assert error == pytest.approx(2 * 2 / math.sqrt(3))
