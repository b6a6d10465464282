"""Mistakes end the job on all ranks, with one clear message and a non-zero status, in 30 s."""

import os
import re
from pathlib import Path

import pytest
from launching import EXAMPLE, mpirun

LIMIT_S = 30  # acceptance of the project, and a hang fails here rather than in CI's time-out

FLAGS = {
    "bits": ("--bits 9", "nuqsgd: bits must be 2..8, got 9"),
    "block size": ("--block-size 0", "block_size must be an integer from 1"),
    "topology": ("--topology rong", "name must be one of ring, torus, complete, "),
    "torus shape": ("--topology torus --rows 2 --columns 2", "rows * columns must be 3, got 2 x 2"),
    "size": (
        "--topology hypercube",
        "must be a power of two, got 3; the nearest are 2 and 4; with 3",
    ),
    "compressor": ("--compressor zip", "unknown compressor 'zip'; known are: none, qsgd"),
    "algorithm": ("--algorithm adam", "unknown algorithm 'adam'; known are: allreduce"),
    "pairing": ("--algorithm d-psgd", "needs compressor 'none'"),
    "data set": ("--dataset mnist", "mnist"),
    "no data": ("--dataset cifar10 --data-dir /nowhere", "/nowhere"),
    "device": ("--device cuda:99 --epochs 1", "--device must be auto, cpu or cuda, got 'cuda:99'"),
    "wiring": ("--topology graph --edges /nowhere", "--edges /nowhere: expected a file"),
    "results": ("--json /nowhere/r.json", "--json /nowhere/r.json: expected a file"),
    "checkpoints": ("--checkpoint-dir /proc/x", "--checkpoint-dir /proc/x: expected a directory"),
    "logs": ("--log-dir /proc/x", "--log-dir /proc/x: expected a directory"),
    "resume": ("--resume", "--resume needs the --checkpoint-dir"),
    "nothing to resume": (
        "--resume --checkpoint-dir /nowhere",
        "expected a checkpoint in /nowhere",
    ),
}


@pytest.mark.parametrize("mistake", FLAGS)
def test_flags(mistake):
    flags, message = FLAGS[mistake]
    ranks = 3 if "3" in message else 2
    job = mpirun(ranks, EXAMPLE, *flags.split(), timeout=LIMIT_S)
    assert job.status != 0
    assert message in job.output
    assert job.output.count("error: ") == 1, job.output
    assert "Traceback" not in job.output


SCRIPT = """
import sys, time, torch, decentral
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
torch.manual_seed(0)
width = 5 if {different_models} and rank == 2 else 4
model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))
opt = decentral.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), 0.1),
    model,
    decentral.algorithms.from_name({algorithm!r}, compressor={compressor}),
)
say = sys.excepthook
if rank == 0:  # busy, when it is to say what is wrong
    sys.excepthook = lambda *error: (time.sleep({late_s}), say(*error))
for step in range(1, 6):
    opt.zero_grad()
    if rank == 1 and step == 3:
        {before_backward}
    model(torch.ones(2, 3)).sum().backward()
    if rank == 1 and step == 3:
        {fault}
    opt.step()
print("finished")
"""


def run_script(
    tmp_path,
    fault="pass",
    before_backward="pass",
    different_models=False,
    late_s=0,
    algorithm="ecd-psgd",
    codec="nuqsgd",
    timeout=LIMIT_S,
):
    script = tmp_path / "train.py"
    compressor = f"decentral.compressors.from_name({codec!r})"
    script.write_text(
        SCRIPT.format(
            fault=fault,
            before_backward=before_backward,
            different_models=different_models,
            late_s=late_s,
            algorithm=algorithm,
            compressor=compressor,
        )
    )
    return mpirun(3, script, timeout=timeout)


def test_the_script_runs_without_a_fault(tmp_path):
    job = run_script(tmp_path, timeout=120)  # it ends on its own; two slow, busy cores take long
    assert job.status == 0, job.output
    assert job.output.count("finished") == 3


def assert_names_rank_step_and_parameter(job, who):
    assert job.status != 0
    assert "finished" not in job.output
    assert job.output.count("NotFiniteError: rank 1, step 3, bucket 0: ") == 1, job.output
    assert "parameter '1.weight'" in job.output
    assert f"rank {who} of 3 ended the job, see above" in job.output


@pytest.mark.parametrize(("algorithm", "codec"), [("ecd-psgd", "nuqsgd"), ("d-psgd", "none")])
def test_with_gossip_the_rank_of_a_nan_says_step_and_parameter(tmp_path, algorithm, codec):
    fault = "model[1].weight.grad[0, 2] = float('nan')"
    job = run_script(tmp_path, fault, algorithm=algorithm, codec=codec)
    assert_names_rank_step_and_parameter(job, who=1)


@pytest.mark.parametrize("codec", ("qsgdinf", "none"))
def test_averaging_all_ranks_know_whose_nan_it_was_and_rank_0_says_so(tmp_path, codec):
    hook = "model[1].weight.register_hook(lambda g: g * float('nan'))"
    job = run_script(tmp_path, before_backward=hook, algorithm="allreduce", codec=codec, late_s=3)
    assert_names_rank_step_and_parameter(job, who=0)


def test_different_models(tmp_path):
    job = run_script(tmp_path, different_models=True)
    assert job.status != 0
    message = "ranks do not agree on parameter or buffer '0.weight': rank 2 got"
    assert job.output.count(message) == 1, job.output


DAMAGED = """
        import numpy as np
        from decentral.payload import Payload
        exchange = opt._comm.exchange
        def change(payload):
            nbytes = payload.nbytes
            return Payload(np.resize(payload.wire.outgoing(False, nbytes), nbytes + {more}))
        opt._comm.exchange = lambda send, receive, tag: exchange(
            {{j: change(p) for j, p in send.items()}}, receive, tag
        )
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (-3, "ecd-psgd: rank [02] cannot read the message of rank 1 for bucket 0 of step [23]: "),
        (64, "the message of rank 1 could not be received, .* got: .*[Tt]runcate"),
    ],
    ids=["cut", "long"],
)
def test_a_damaged_message_ends_the_job_and_names_its_sender(tmp_path, more, said):
    job = run_script(tmp_path, fault=DAMAGED.format(more=more))
    assert job.status != 0
    assert re.search(said, job.output), job.output
    assert "finished" not in job.output


def test_any_exception_on_one_rank_ends_the_job(tmp_path):
    job = run_script(tmp_path, fault="raise KeyError('lost my batch')")
    assert job.status != 0
    assert job.output.count("KeyError: 'lost my batch'") == 1, job.output
    assert "finished" not in job.output


def test_mpirun_of_another_mpi():
    other = os.environ.get("OTHER_MPIRUN")
    if not other:
        pytest.skip("needs a second MPI: OTHER_MPIRUN=/path/to/its/mpirun (make test has one)")
    home = Path(other).parents[1]
    library = {"MPI4PY_MPIABI": "openmpi", "LD_LIBRARY_PATH": str(home / "lib")}
    for job in (
        mpirun(3, EXAMPLE, "--epochs", "1", launcher=other, timeout=LIMIT_S),
        mpirun(3, EXAMPLE, "--epochs", "1", timeout=LIMIT_S, **library),
    ):
        assert job.status != 0
        assert job.output.count("error: mpirun started 3 processes, but is not") == 1, job.output
        assert "Traceback" not in job.output


def test_no_mpi_library():
    """Nobody ends the others, so rank 1 does not leave it to rank 0 for 20 s."""
    job = mpirun(2, EXAMPLE, timeout=20, MPI4PY_MPIABI="openmpi", LD_LIBRARY_PATH="")
    assert job.status != 0
    assert "mpi4py cannot load an MPI library" in job.output
    assert "pip install decentral[mpich]" in job.output
    assert "Traceback" not in job.output
