"""Start real jobs: mpirun -n N python SCRIPT, bounded in time."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ecd_resnet.py"
VICTIM = ROOT / "benchmarks" / "reliability" / "victim.py"


@dataclass
class Job:
    status: int
    output: str  # stdout and stderr
    seconds: float


def open_mpi():
    """Return what makes a job one of Open MPI, as arguments of mpirun()."""
    other = os.environ.get("OTHER_MPIRUN")
    if not other:
        pytest.skip("needs Open MPI: OTHER_MPIRUN=/path/to/its/mpirun (make test has one)")
    library = Path(other).parents[1] / "lib" / "libmpi.so"
    return {"launcher": other, "MPI4PY_MPIABI": "openmpi", "MPI4PY_LIBMPI": str(library)}


def environment(**variables):
    """Return what a job runs with; Open MPI, if that is the one, refuses what is usual in tests."""
    return os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more ranks than cores
        "OMP_WAIT_POLICY": "passive",  # a job of one rank would spin on cores that others need
        **variables,
    }


def mpirun(ranks, *command, launcher="mpirun", options=(), timeout=120, **variables):
    """Run a command under mpirun; a job that outlives the time-out fails the test."""
    if shutil.which(launcher) is None:
        pytest.skip(f"no {launcher} on the PATH; pip install decentral[mpich]")
    start = time.monotonic()
    done = subprocess.run(
        [launcher, *options, "-n", str(ranks), sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment(**variables),
        cwd=ROOT,
    )
    return Job(done.returncode, done.stdout, time.monotonic() - start)
