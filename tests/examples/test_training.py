"""The example's training loop over ranks that are threads, on few digits: what it writes."""

import copy
import csv
import json
import sys

import pytest
import torch

import datasets
import decentral
import ecd_resnet
import report
import resnet

RANKS = 3


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """Each fourth digit, which is enough for a few steps."""
    whole = datasets.load("digits")

    def some(split):
        return datasets.InMemory(split.images[::4], split.labels[::4], split.mean, split.std)

    few = datasets.DataSet(some(whole.train), some(whole.test), 1, 10, 8)
    monkeypatch.setitem(datasets.DATASETS, "digits", lambda data_dir: few)
    threads = torch.get_num_threads()
    yield few
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_start(monkeypatch):
    """The same weights in every run: ranks that are threads share torch's generator, and race."""
    build = resnet.build
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = {name: build(name, 1, 10) for name in ("resnet20", "resnet32")}
    monkeypatch.setattr(resnet, "build", lambda name, *_: copy.deepcopy(nets[name]))


def train(monkeypatch, text, ranks=RANKS, kind=ecd_resnet.Training):
    """Return results and training objects of all ranks; an epoch of 3 has 8 steps."""
    monkeypatch.setattr(sys, "argv", ["ecd_resnet.py", "--epochs", "1", *text.split()])
    args = ecd_resnet.parse_args()

    def run(comm):
        training = kind(args, comm)
        return training.run(), training

    return decentral.communicators.run_local(ranks, run)


def test_each_rank_evaluates_its_own_model_on_all_images(monkeypatch, few_digits):
    text = "--partition dirichlet --alpha 0.1 --evaluate each --local-steps 3 --average-every 4"
    ranks = train(monkeypatch, text)
    result, training = ranks[0]
    assert (result["partition"], result["alpha"], result["local_steps"]) == ("dirichlet", 0.1, 3)
    assert result["average_every"] == 4
    for other, _ in ranks:
        assert other["rank_accuracies"] == result["rank_accuracies"]
        assert other["test_accuracy"] == result["test_accuracy"]
        assert other["steps"] == result["steps"]
    ((images, labels),) = datasets.batches(few_digits.test, range(len(few_digits.test)), 1000)
    for (_, training), accuracy in zip(ranks, result["rank_accuracies"], strict=True):
        guess = training.model.eval()(images).argmax(1)
        assert float((guess == labels).float().mean()) == pytest.approx(accuracy)
    variances = [t.model.stem[1].running_var for _, t in ranks]
    assert not torch.equal(variances[0], variances[1])  # BatchNorm's are each rank's own


def test_without_being_asked_only_the_averaged_model_is_evaluated(monkeypatch):
    ((result, _), *_) = train(monkeypatch, "--algorithm d-psgd --compressor none")
    assert "rank_accuracies" not in result and "alpha" not in result
    assert (result["partition"], result["local_steps"]) == ("iid", 1)


@pytest.mark.parametrize(
    "text",
    [
        "--algorithm dcd-psgd --topology path",
        "--algorithm choco-sgd --gamma theorem --topology star",
        "--algorithm deepsqueeze --topology complete",
        "--algorithm sgp --compressor none --topology exponential",
        "--algorithm qg-dsgdm --compressor none --topology one-peer-exponential --momentum 0",
        "--algorithm allreduce --local-steps 4",
    ],
)
def test_algorithms_and_topologies_train(text, monkeypatch):
    ((result, _), *_) = train(monkeypatch, f"--epochs 4 --lr 0.05 {text}")
    assert result["train_loss"] < 1  # guessing is 2.3
    assert result["bytes_sent_per_rank_per_step"] > 0


def test_a_pairing_that_is_not_valid_says_what_is(monkeypatch):
    with pytest.raises(ValueError, match=r"needs an undirected topology.*use one of ring, "):
        train(monkeypatch, "--algorithm choco-sgd --topology exponential")


@pytest.mark.parametrize(
    ("flags", "topology"),
    [
        ("--algorithm allreduce --topology torus", None),
        ("--algorithm cocod-sgd", None),
        ("--algorithm intdiana --compressor intsgd", None),
        ("", "ring"),
        ("--topology path", "path"),
    ],
)
def test_the_topology_is_reported_where_there_is_one(flags, topology, monkeypatch):
    ((result, _), *_) = train(monkeypatch, f"--max-steps 1 {flags}")
    assert json.loads(json.dumps(result))["topology"] == topology


def test_the_table_leaves_out_what_only_a_program_compares(capsys):
    report.print_table({"steps": 3, "state_sha256": ["a1"], "train_loss": 0.5})
    assert capsys.readouterr().out.splitlines() == ["steps       3", "train_loss  0.5"]


@pytest.mark.parametrize("ranks", [RANKS, 2])
def test_a_run_resumed_with_other_flags_is_refused(ranks, monkeypatch, tmp_path):
    text = f"--checkpoint-dir {tmp_path / 'runs'}"
    train(monkeypatch, f"{text} --max-steps 2")
    for flag, begun in {
        "--epochs 3": "--epochs 1",
        "--lr 0.2": "--lr 0.1",
        "--batch-size 8": "--batch-size 16",
        "--model resnet32": "--model resnet20",
    }.items():
        message = f"{flag}: the run in {tmp_path / 'runs'} was begun with {begun}, which"
        with pytest.raises(ValueError, match=message):
            train(monkeypatch, f"{text} --resume {flag}", ranks)


def test_bytes_per_step_are_those_of_an_unbroken_run(monkeypatch, tmp_path):
    def sent(text, stop):
        ranks = train(monkeypatch, f"--epochs 3 --max-steps {stop} {text}")
        assert {result["steps"] for result, _ in ranks} == {stop}
        return [result["bytes_sent_per_rank_per_step"] for result, _ in ranks]

    folder = f"--checkpoint-dir {tmp_path}"
    sent(folder, 12)
    assert sent(f"{folder} --resume", 20) == sent("", 20)


def rows(folder):
    """Return (step, bytes, loss, accuracy) of every row of curves.csv."""
    with open(folder / "curves.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["step", "bytes_sent", "train_loss", "test_accuracy"]
    return [tuple(map(float, line)) for line in lines]


def steps_of(folder):
    return [row[0] for row in rows(folder)]


class Breaks(ecd_resnet.Training):
    """A training in which rank 0 ends after 19 steps, as `how` says."""

    how = ZeroDivisionError

    def __init__(self, args, comm):
        super().__init__(args, comm)
        self._breaks = comm.rank == 0

    def train_step(self):
        if self._breaks and self.step == 19:
            raise self.how
        super().train_step()


def test_curves_of_a_run_that_ends_are_there_and_a_resumed_one_adds_to_them(monkeypatch, tmp_path):
    logs, saved = tmp_path / "logs", tmp_path / "checkpoints"
    flags = "--epochs 3 --algorithm d-psgd --compressor none"
    text = f"{flags} --log-dir {logs} --checkpoint-dir {saved} --checkpoint-every 12"
    with pytest.raises(ZeroDivisionError):
        train(monkeypatch, text, kind=Breaks)
    assert steps_of(logs) == [8, 16] and not (logs / "curves.png").exists()
    before = rows(logs)
    # what was logged after the checkpoint of step 12 is done, and logged, again
    monkeypatch.setattr(Breaks, "how", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, f"{text} --resume", kind=Breaks)
    assert steps_of(logs) == [8, 16]
    train(monkeypatch, f"{text} --resume")
    assert steps_of(logs) == [8, 16, 24] and rows(logs)[0] == before[0]
    sent = [row[1] for row in rows(logs)]  # as if it had not ended
    assert sent == [sent[0], 2 * sent[0], 3 * sent[0]] and (logs / "curves.png").exists()
    train(monkeypatch, f"--max-steps 8 --log-dir {logs}")
    assert steps_of(logs) == [8]  # another run begins anew


def test_the_survivor_that_is_rank_0_goes_on_with_the_curves(monkeypatch, tmp_path):
    monkeypatch.setattr(Breaks, "how", decentral.communicators.LocalDeath)
    flags = f"--epochs 5 --on-failure continue --log-dir {tmp_path}"
    dead, (result, _), _ = train(monkeypatch, flags, kind=Breaks)
    assert dead is None and result["failures"] == [0]
    first, second, *later = steps_of(tmp_path)
    assert (first, second) == (8, 16) and later and min(later) > 19


def test_a_file_of_curves_that_is_none_is_said(tmp_path):
    (tmp_path / "curves.csv").write_text("step,bytes_sent,train_loss,test_accuracy\n8,9,x,1\n")
    with pytest.raises(ValueError, match=r"curves\.csv: expected lines of step,bytes_sent,.*'x'"):
        report.Log(str(tmp_path), step=8)
    (tmp_path / "other").mkdir()
    report.Log(str(tmp_path / "other"), step=8).close()  # logs nothing of before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--json {}/none/r.json", "--json .*/none/r.json: expected a file that can be written"),
        ("--json {}", "--json .*: expected a file that can be written"),
        ("--checkpoint-dir {}/file/runs", "--checkpoint-dir .*/file/runs: expected a directory"),
        ("--checkpoint-dir {}/file", "--checkpoint-dir .*/file: expected a directory that can be"),
        ("--log-dir {}/file/logs", "--log-dir .*/file/logs: expected a directory that can be wri"),
    ],
)
def test_what_cannot_be_written_is_said_before_training(flags, said, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(ecd_resnet.Training, "run", lambda self: pytest.fail("trains"))
    with pytest.raises(OSError, match=said):
        train(monkeypatch, flags.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_trying_what_can_be_written_leaves_nothing_and_takes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(ecd_resnet.Training, "run", lambda self: None)
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("{}")
    for path in (old, new):
        train(monkeypatch, f"--json {path} --checkpoint-dir {tmp_path / 'a' / 'b'}")
    assert old.read_text() == "{}" and [path.name for path in tmp_path.iterdir()] == ["old.json"]
