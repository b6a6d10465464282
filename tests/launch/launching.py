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


@dataclass
class Job:
    status: int
    output: str  # stdout and stderr
    seconds: float


def mpirun(ranks, *command, launcher="mpirun", timeout=120, **variables):
    """Run a command under mpirun; a job that outlives the time-out fails the test."""
    if shutil.which(launcher) is None:
        pytest.skip(f"no {launcher} on the PATH; pip install decentral[mpich]")
    # Open MPI, if that is the one, refuses root and more ranks than cores unless told.
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        **variables,
    }
    start = time.monotonic()
    done = subprocess.run(
        [launcher, "-n", str(ranks), sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=ROOT,
    )
    return Job(done.returncode, done.stdout, time.monotonic() - start)
