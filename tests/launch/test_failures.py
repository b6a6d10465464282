"""Ranks that are killed, stopped or told to end, in real jobs: docs/reliability.md's promises."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import EXAMPLE, VICTIM, environment, mpirun, open_mpi
from resuming_cases import assert_equal

import decentral
from decentral import states

ULFM = ("--with-ft", "ulfm")
CANNOT = "--on-failure continue: this MPI ends the job when a rank dies"
LIMIT_S = 150
EVERY_ALGORITHM = Path(__file__).parent / "every_algorithm.py"


def train(tmp_path, harm, flags, ranks=3, options=(), **launcher):
    """Return the job, and what it wrote to --json, if it came so far."""
    result = tmp_path / "result.json"
    result.unlink(missing_ok=True)
    harms = [text for h in harm for text in ("--harm", h)]
    flags = f"--epochs 2 --json {result} {flags}"
    job = mpirun(
        ranks, VICTIM, *harms, "--", *flags.split(), options=options, timeout=LIMIT_S, **launcher
    )
    return job, json.loads(result.read_text()) if result.exists() else None


@pytest.mark.parametrize(
    ("algorithm", "ranks", "victims"),
    [("allreduce", 4, (0, 3)), ("ecd-psgd", 4, (2,)), ("ecd-psgd", 2, (0,))],
    ids=str,
)
def test_survivors_of_a_killed_rank_go_on(tmp_path, algorithm, ranks, victims):
    harm = [f"KILL:{rank}@7" for rank in victims]
    flags, left = f"--algorithm {algorithm} --on-failure continue", ranks - len(victims)
    job, result = train(tmp_path, harm, flags, ranks, options=ULFM, **open_mpi())
    assert job.status == 0, job.output
    assert result["failures"] == list(victims) and result["world_size"] == left
    assert result["steps"] == 2 * {4: 23, 2: 45}[ranks] and len(result["state_sha256"]) == left
    assert result["test_accuracy"] > 0.7 and CANNOT not in job.output
    if algorithm == "allreduce":
        assert "goes on at step" in job.output


def test_without_fault_tolerance_a_killed_rank_ends_the_job(tmp_path):
    named = r"PID \d+ RUNNING AT .*(signal|SIGNAL:) 9", r"process rank 1 with PID .*signal 9 "
    for launcher, dead in zip(({}, open_mpi()), named, strict=True):
        job, result = train(tmp_path, ["KILL:1@5"], "--on-failure continue", **launcher)
        assert job.status != 0 and result is None, job.output
        assert re.search(dead, job.output, re.DOTALL), job.output
        assert job.output.count(CANNOT) == 1, job.output  # and it was said before


def test_told_to_stop_survivors_name_the_dead(tmp_path):
    job, result = train(tmp_path, ["KILL:1@5"], "", options=ULFM, **open_mpi())
    assert job.status != 0 and result is None
    assert "rank 1 has died" in job.output and "--resume from the last checkpoint" in job.output
    assert "Traceback" not in job.output


@pytest.mark.parametrize(("algorithm", "mpi"), [("allreduce", "openmpi"), ("ecd-psgd", "mpich")])
def test_a_stopped_rank_is_named_when_patience_ends(tmp_path, algorithm, mpi):
    launcher = open_mpi() if mpi == "openmpi" else {}
    flags = f"--algorithm {algorithm} --timeout 15"
    job, result = train(tmp_path, ["STOP:2@5"], flags, **launcher)
    assert job.status != 0 and result is None
    assert "rank 2 does not answer" in job.output, job.output
    assert "waited for 15 s" in job.output and "rank 0, " in job.output
    assert algorithm != "allreduce" or "step 6, bucket 0 ('head.bias' to" in job.output
    assert "WaitTimeoutError" in job.output


def test_an_exception_of_one_rank_ends_the_job(tmp_path):
    job, result = train(tmp_path, ["RAISE:2@4"], "")
    assert job.status != 0 and result is None, job.output
    assert job.output.count("ZeroDivisionError: harm done") == 1, job.output
    assert ", in suffer\n" in job.output  # the traceback


@pytest.mark.parametrize("what", ["TERM", "INT"])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(tmp_path, what):
    folder = tmp_path / "checkpoints"
    job, result = train(tmp_path, [f"{what}:1@9"], f"--checkpoint-dir {folder}")
    assert job.status == 128 + signal.Signals[f"SIG{what}"] and result is None
    assert "Traceback" not in job.output
    (saved,) = folder.iterdir()
    assert 9 <= int(saved.name.removeprefix("step-")) <= 12
    if what == "TERM":
        flags = f"--checkpoint-dir {folder} --resume --max-steps 20"
        job, result = train(tmp_path, [], flags)
        assert job.status == 0 and result["steps"] == 20, job.output


@pytest.mark.parametrize("launched", ["mpich", "openmpi"])
def test_ctrl_c_at_mpirun_saves_and_ends(tmp_path, launched):
    """What a scheduler does, too: it signals mpirun, which passes it on."""
    launcher = open_mpi() if launched == "openmpi" else {}
    folder = tmp_path / "checkpoints"
    command = [launcher.pop("launcher", "mpirun"), "-n", "3", sys.executable, str(EXAMPLE)]
    job = subprocess.Popen(
        [*command, "--epochs", "200", "--checkpoint-dir", str(folder), "--checkpoint-every", "5"],
        env=environment(**launcher),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder.exists() and any(folder.glob("step-*"))):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.2)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and "Traceback" not in output, output


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, algorithm="ecd-psgd"):
    folder = tmp_path / "checkpoints"
    flags = f"--algorithm {algorithm} --max-steps 30"
    _, whole = train(tmp_path, [], flags)
    flags += f" --checkpoint-dir {folder} --checkpoint-every 10"
    job, result = train(tmp_path, ["KILL:1@25"], flags)
    assert job.status != 0 and result is None
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000010", "step-00000020"]
    job, resumed = train(tmp_path, [], f"{flags} --resume")
    assert job.status == 0, job.output
    assert resumed["state_sha256"] == whole["state_sha256"] and len(set(whole["state_sha256"])) > 1
    assert resumed["test_accuracy"] == whole["test_accuracy"] and resumed["steps"] == 30


def test_every_algorithm_of_a_killed_job_resumes_to_the_same_bits(tmp_path):
    """40 steps, against 20, a checkpoint, SIGKILL in step 28, and 20 more by new processes."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def job(directory, *flags):
        return mpirun(3, EVERY_ALGORITHM, directory, *flags, timeout=LIMIT_S)

    unbroken, broken = job(whole), job(killed, "--save-at", "20", "--kill", "1@27")
    assert unbroken.status == 0, unbroken.output
    assert broken.status != 0 and [f.name for f in killed.iterdir()] == ["step-00000020"]
    resumed = job(killed, "--resume")
    assert resumed.status == 0, resumed.output
    for rank in range(3):
        expected, got = (
            states.read(folder / "step-00000040" / f"rank-0000{rank}.safetensors")
            for folder in (whole, killed)
        )
        assert {name.split()[0] for name in expected} == set(decentral.algorithms.available())
        assert_equal(got, expected)


def test_resuming_on_fewer_ranks_says_what_begins_anew(tmp_path):
    flags = f"--checkpoint-dir {tmp_path / 'checkpoints'}"
    _, before = train(tmp_path, [], f"{flags} --max-steps 30")
    job, result = train(tmp_path, [], f"{flags} --resume", ranks=2)
    assert job.status == 0, job.output
    assert "resumed on 2 ranks what 3 had saved at step 30" in job.output
    assert "residuals, estimates and norms begin anew, and so does an epoch" in job.output
    assert result["steps"] == 2 * 30 and result["train_loss"] < before["train_loss"]
