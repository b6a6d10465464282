"""Checkpoints: whole or not there, and the same step on all ranks."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import optimizer_cases as cases
import pytest
import torch
from checkpoint_cases import loaded, names, same, saved, state_of, steps_of

import decentral
from decentral.communicators import run_local

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_rank_gets_its_own_state_of_the_newest_step(tmp_path, ranks):
    assert steps_of(tmp_path / "new", ranks) is None
    saved(tmp_path / "new", 1, 2, ranks=ranks)
    assert steps_of(tmp_path / "new", ranks) == 2
    files = names(tmp_path / "new" / "step-00000002")
    assert files == ["manifest.json", *(f"rank-{r:05d}.safetensors" for r in range(ranks))]
    manifest = json.loads((tmp_path / "new" / "step-00000002" / "manifest.json").read_text())
    assert manifest["decentral"] == decentral.__version__


def test_the_last_ones_are_kept(tmp_path):
    saved(tmp_path, 5, 100_000_000, 7, 8, keep=2)  # as if a job had begun again
    assert names(tmp_path) == ["step-00000007", "step-00000008", "step-100000000"]
    saved(tmp_path, 9, keep=1)
    assert names(tmp_path) == ["step-00000009", "step-100000000"]


def test_what_is_newer_than_what_was_saved_is_named(tmp_path, caplog):
    saved(tmp_path, 5, 3)
    (record,) = caplog.records
    assert "step-00000005, which is newer than step 3" in record.message
    assert steps_of(tmp_path) == 5


def test_a_step_that_is_saved_again_replaces_it(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    before = []
    rename = os.rename

    def look_first(source, target):
        before.append(names(tmp_path))
        rename(source, target)

    monkeypatch.setattr(os, "rename", look_first)
    for _ in range(2):
        saved(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001.2"]
    assert steps_of(tmp_path) == 1
    assert all(any(name.startswith("step-") for name in listing) for listing in before)


def test_other_things_in_the_directory_are_left_alone(tmp_path, caplog):
    saved(tmp_path, 1)
    for name in ("step-2", "step-abc", "step-00000003.x", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000009").write_text("a file")
    (tmp_path / ".step-00000009.tmp").write_text("a file")
    before = names(tmp_path)
    assert steps_of(tmp_path) == 1
    saved(tmp_path, 2, keep=1)
    assert set(names(tmp_path)) == {*before, "step-00000002"} - {"step-00000001"}
    assert not caplog.records


def test_what_a_killed_job_left_is_removed_and_never_loaded(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000002.0123.tmp")
    assert steps_of(tmp_path) is None
    saved(tmp_path, 3)
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_other_ranks_states_for_another_number_of_ranks(tmp_path, ranks):
    saved(tmp_path, 4, ranks=3)
    for found in loaded(tmp_path, ranks):
        assert (found.step, found.size) == (4, 3)
        for rank in range(3):
            assert same(found.of(rank), state_of(rank, 4))
        with pytest.raises(ValueError, match=r"of ranks 0\.\.2, got rank 3"):
            found.of(3)
        with pytest.raises(ValueError, match=r"is of 3 ranks, .* with of\(rank\)"):
            _ = found.state


def test_loading_executes_no_code(tmp_path):
    saved(tmp_path, 1)
    code = (
        "import sys, pickle, torch, decentral\n"
        "from decentral.communicators import run_local\n"
        "def no(*_, **__): raise AssertionError('pickle')\n"
        "pickle.Unpickler = pickle.load = pickle.loads = torch.load = no\n"
        "run = lambda comm: decentral.Checkpoints(sys.argv[1], comm).load().state\n"
        "assert [state['rank'] for state in run_local(2, run)] == [0, 1]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize(("algorithm", "compressor"), cases.accepted_pairs())
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path, algorithm, compressor):
    def rank(comm):
        def job():
            model = cases.mlp()
            how = cases.algorithm(algorithm, compressor)
            adam = torch.optim.Adam(model.parameters(), 0.01)
            return model, cases.distributed(model, comm, how, adam, local_steps=2)

        model, opt = job()
        cases.train(opt, model, 3)
        checkpoints = decentral.Checkpoints(tmp_path, comm)
        checkpoints.save(3, [model.state_dict(), opt.state_dict()])
        cases.train(opt, model, 2, first=3)
        again, opt_again = job()
        states_of_3 = checkpoints.load().state
        again.load_state_dict(states_of_3[0])
        opt_again.load_state_dict(states_of_3[1])
        cases.train(opt_again, again, 2, first=3)
        cases.equal(cases.parameters(again), cases.parameters(model))

    run_local(2, rank)


class Killed(BaseException):
    pass


def kill_after(patch, changes):
    """Let a job end behind so many changes to files or folders, if it makes as many."""
    left = iter(range(changes - 1))

    def counted(change, *args, **options):
        change(*args, **options)
        if next(left, None) is None:
            raise Killed

    for name in ("fsync", "mkdir", "rename", "rmdir", "unlink"):
        patch.setattr(os, name, partial(counted, getattr(os, name)))


@pytest.mark.parametrize("step", [1, 2])
def test_whatever_the_last_change_of_a_killed_job_each_step_is_whole(tmp_path, step, monkeypatch):
    for changes in range(1, 100):
        directory = tmp_path / f"{changes}"
        saved(directory, 1, ranks=1)
        with monkeypatch.context() as patch, suppress(Killed):
            kill_after(patch, changes)
            saved(directory, step, ranks=1, keep=1)
            break
        assert steps_of(directory, 1) in (1, step)
        for folder in directory.glob("step-*"):
            assert names(folder) == ["manifest.json", "rank-00000.safetensors"]
    assert 10 < changes < 99


def test_a_job_that_is_killed_while_it_saves_leaves_a_whole_checkpoint():
    script = ROOT / "benchmarks" / "kill_while_saving.py"
    done = subprocess.run(
        [sys.executable, str(script), "--trials", "6"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=True,
    )
    assert "6 of 6" in done.stdout
