"""The example's training loop over ranks that are threads, on few digits: what JSON gets."""

import sys

import pytest
import torch

import datasets
import decentral
import ecd_resnet

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


def train(monkeypatch, text, ranks=RANKS):
    """Return results and training objects of all ranks."""
    monkeypatch.setattr(sys, "argv", ["ecd_resnet.py", "--epochs", "1", *text.split()])
    args = ecd_resnet.parse_args()

    def run(comm):
        training = ecd_resnet.Training(args, comm)
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
    ((result, _), *_) = train(monkeypatch, f"--lr 0.05 {text}")
    assert result["train_loss"] < 3
    assert result["bytes_sent_per_rank_per_step"] > 0


def test_a_pairing_that_is_not_valid_says_what_is(monkeypatch):
    with pytest.raises(ValueError, match=r"needs an undirected topology.*use one of ring, "):
        train(monkeypatch, "--algorithm choco-sgd --topology exponential")
