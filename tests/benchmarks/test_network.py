"""The network benchmarks, as far as they go without root: flags, tables, sizes, records."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

NETWORK = Path(__file__).parents[2] / "benchmarks" / "network"
RUN = {
    "hosts": 4,
    "ranks_per_host": 1,
    "rate": "1gbit",
    "link_bits_per_s": 1e9,
    "mpi": "MPICH",
}


@pytest.fixture(scope="module", autouse=True)
def network_on_the_path():
    """As when a script there is started: its folder comes first."""
    sys.path.insert(0, str(NETWORK))
    yield
    sys.path.remove(str(NETWORK))


def system(seconds, **more):
    found = {"mean_s": seconds, "cpu_s": 0.1, "wire_bytes": 2e6}
    return found | {"lowest_s": seconds, "highest_s": seconds} | more


def test_workload_has_the_parameters_that_it_says():
    import mlp

    count = sum(p.numel() for p in mlp.perceptron().parameters())
    assert count == mlp.parameter_count() == 10_493_710


def test_batches_differ_between_ranks_only():
    import mlp

    x, y = mlp.batch(4, rank=1)
    again, _ = mlp.batch(4, rank=1)
    other, _ = mlp.batch(4, rank=2)
    assert x.shape == (4, 784) and y.shape == (4,)
    assert x.equal(again) and not x.equal(other)


def test_free_model_has_gradients_of_every_parameter():
    import mlp

    model = mlp.Free(mlp.perceptron((3, 4, 2)))
    mlp.loss_of(model, *mlp.batch(2, 0, (3, 4, 2))).backward()
    assert [p.grad.shape for p in model.parameters()] == [p.shape for p in model.parameters()]


def test_flags():
    import exchange
    import step
    import worker

    args = step.parse_args(["--hosts", "8", "--rates", "1gbit", "--systems", "ddp", "ecd-psgd"])
    assert (args.hosts, args.rates, args.systems) == (8, ["1gbit"], ["ddp", "ecd-psgd"])
    assert exchange.parse_args([]).mib == [16, 64]
    assert worker.parse_args(["--systems", "compute"]).batch == 16
    with pytest.raises(SystemExit):
        step.parse_args(["--systems", "no-such-system"])


def test_ratios():
    import tables

    systems = {"ddp": system(0.6), "ecd-psgd": system(0.15), "failed": None}
    assert tables.ratio(systems, "ecd-psgd", "ddp") == pytest.approx(0.25)
    assert tables.ratio(systems, "failed", "ddp") is None
    assert tables.ratio(systems, "ddp", "ddp-fp16") is None


def test_step_table():
    import tables

    run = RUN | {"systems": {"ddp": system(0.6), "bad": None, "ours": system(0.3, hidden=0.75)}}
    lines = tables.steps(run).splitlines()
    assert lines[2].startswith("| ddp | 0.600 (0.600 to 0.600) | 1.00 | - | 2.00 |")
    assert lines[3].startswith("| bad | failed |")
    assert "| 0.50 |" in lines[4] and lines[4].endswith("| 0.75 |")
    assert len({line.count("|") for line in lines}) == 1
    assert "4 hosts, 1 rank each, 1gbit" in tables.title(run)


def test_exchange_table_knows_the_wire():
    import tables

    assert tables.wire_seconds(16, 4, 1e9) == pytest.approx(0.2013, abs=1e-4)
    run = RUN | {"systems": {"sum-gloo-16": system(0.4026), "sum-mpi-16": system(0.8053)}}
    mpi, gloo = tables.exchanges(run).splitlines()[2:]
    assert mpi.startswith("| 16 MiB | mpi | 0.805 | 2.00 | 4.00 |")
    assert gloo.startswith("| 16 MiB | gloo | 0.403 | 1.00 | 2.00 |")


def test_medians_over_ranks_and_turns():
    import turns

    ranks = [{"mean_s": s, "cpu_s": 1, "wire_bytes": 2} for s in (1, 2, 9)]
    assert turns.over_ranks([r | {"median_s": 0, "min_s": 0} for r in ranks])["mean_s"] == 2
    found = turns.over_turns([{"mean_s": 3.0}, {"mean_s": 1.0}, {"mean_s": 2.0}])
    assert (found["mean_s"], found["lowest_s"], found["highest_s"]) == (2, 1, 3)
    assert turns.over_turns([]) is None


def test_overlap_is_measured_beside_a_computation_as_long():
    import balanced
    import tables
    import turns

    assert balanced.hidden(both=3.0, computing=2.0, communicating=2.0) == pytest.approx(0.5)
    assert balanced.batch_for(0.3, {16: 0.1, 256: 0.58}) == 116
    assert balanced.batch_for(0.0, {16: 0.1, 256: 0.58}) == 1

    def step(spec):
        name, _, how = spec.partition("@")
        if name == "compute":
            return {"median_s": 0.1 if how == "free" else int(how) / 100}
        return {"median_s": 0.6 if how == "free" else 0.75, "hidden": 0.9}

    found = balanced.balance("ecd-psgd", step)
    assert (found["batch"], found["compute_s"], found["mean_s"]) == (50, 0.5, 0.75)
    assert found["hidden"] == pytest.approx(0.5) and found["stats_hidden"] == 0.9
    run = RUN | {"systems": {"ecd-psgd": turns.over_turns([found]), "bad": None}}
    assert "| ecd-psgd | 50 | 0.500 | 0.500 | 0.750 | 0.50 (0.50 to 0.50) |" in tables.overlaps(run)


def test_accuracy_table():
    import accuracy
    import tables

    runs = [{"steps": 10, "seconds": s, "accuracy": 0.97, "reached": s < 3} for s in (1, 2, 3)]
    found = accuracy.over_seeds(runs)
    assert (found["seconds"], found["reached"]) == (2, 2)
    assert accuracy.over_seeds([]) is None
    run = RUN | {"target": 0.97, "seeds": 3, "systems": {"ddp": found, "bad": None}}
    assert "| ddp | 2.0 | 1.00 | 10 | 2 of 3 |" in tables.accuracies(run)


def test_worker_takes_a_batch_or_no_computation():
    import worker

    assert worker.parse("ddp") == ("ddp", None, False)
    assert worker.parse("ddp@64") == ("ddp", 64, False)
    assert worker.parse("ddp@free") == ("ddp", None, True)
    with pytest.raises(SystemExit):
        worker.parse_args(["--systems", "no-such-system"])


def test_stats_per_step():
    import worker

    after = {"bytes_sent": 60, "communication_s": 4.0, "waited_s": 1.0, "steps": 5}
    grown = worker.differences({k: 0 for k in after}, after, 2)
    assert grown == {"bytes_sent": 30, "communication_s": 2, "waited_s": 0.5, "hidden": 0.75}
    assert worker.differences({}, {}, 2) == {}


def test_picture(tmp_path):
    import plot

    run = RUN | {"systems": {"ddp": system(0.6), "ecd-psgd": system(0.2), "bad": None}}
    (tmp_path / "a.json").write_text(
        json.dumps({"kind": "step", "runs": [run, run, run | {"hosts": 8}]})
    )
    found = plot.read([tmp_path / "a.json"])
    assert [kind for kind, _ in found] == ["step"] * 3
    plot.draw([r for _, r in found], tmp_path / "a.svg")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "a.svg").read_text())
    titles = [text for text in texts if "hosts" in text]
    assert titles == ["4 hosts, 1gbit"] * 2 + ["8 hosts, 1gbit"]
    assert texts.count("ecd-psgd") == 2 and texts.count("0.2") == 3  # names of rows, bars' labels


def test_records_go_to_the_lab_or_to_the_terminal(tmp_path, monkeypatch, capsys):
    import jobs

    jobs.record({"rank": 0})
    assert json.loads(capsys.readouterr().out) == {"rank": 0}
    monkeypatch.setenv("DECENTRAL_LAB_RECORDS", str(tmp_path))
    jobs.record({"rank": 1})
    assert json.loads((tmp_path / str(os.getpid())).read_text()) == {"rank": 1}


def test_lab_says_what_it_needs(monkeypatch):
    import lab

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="need root"):
        lab.Lab(2)


def test_prediction_from_what_was_measured():
    import predict

    args = predict.parse_args(["--hosts", "4", "--rates", "1gbit"])
    assert args.systems == list(predict.DEFAULT)
    real = system(0.6, bytes_sent=1.0)
    names = ("encode_bytes_per_s", "decode_bytes_per_s", "copy_bytes_per_s")
    speeds = dict.fromkeys(names, 5e9)
    found = {
        "link_bits_per_s": 9.5e8,
        "bits_per_s": {"neighbors": 9e8, "all": 9.6e8},
        "coding": {"none": speeds, "nuqsgd": speeds},
        "compute_s": 0.1,
        "systems": dict.fromkeys(("sum-decentral-16", *args.systems), real),
    }
    rows = predict.compare(found, 4, args)
    assert list(rows) == args.systems
    # 63 MB over .95 Gbit/s, behind a part of the computation
    assert 0.53 < rows["allreduce-none"]["predicted"]["total"] < 0.75
    assert rows["d-psgd"]["error"] == rows["d-psgd"]["predicted"]["total"] / 0.6 - 1
    text = predict.table([{"hosts": 4, "rate": "1gbit", "comparison": rows}])
    assert len(text.splitlines()) == 6


def test_what_an_all_reduce_hides_at_best(monkeypatch):
    monkeypatch.syspath_prepend(str(NETWORK.parent))
    import overlap_on_paper as paper

    monkeypatch.setattr(paper, "_TICKS", 6000)
    assert abs(paper.hidden([1], False)) < 0.01  # sent after the one backward, before the forward
    # Forward takes .2 a layer, backward .4 and .2: the second layer's half is under way for the
    # last .2 of the step, and the first one's comes after it.
    assert abs(paper.hidden([1, 1], False) - 0.2) < 0.01
    # When the first one's has overtaken it, what is left has .2 more behind that layer's forward.
    assert abs(paper.hidden([1, 1], True) - 0.4) < 0.01
    for sizes in paper.LAYERS.values():
        assert paper.hidden(sizes[:8], True) > paper.hidden(sizes[:8], False)


def test_pictures_of_scaling(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(NETWORK.parent))
    import scaling

    names = scaling.systems(["ring"])
    assert list(names)[-1] == "ring, 4 bits"
    panel = {name: [(2, 1.0), (4, 2.0)] for name in names}
    scaling.draw({"1 Gbit/s": panel}, tmp_path / "scaling.svg")
    assert (tmp_path / "scaling.svg").stat().st_size > 1000
    assert "| ring, 4 bits | 2 |" in scaling.table(panel)
