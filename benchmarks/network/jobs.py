"""Start a job over the hosts of a lab, bound it in time, and collect what its processes record.

Launchers mix up the lines of several ranks, so record() writes to a file of each process.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_PORT = 29531
_RECORDS = "DECENTRAL_LAB_RECORDS"  # the folder for them, in the environment of a job


class Result(NamedTuple):
    """What a job recorded; `error` is None when it ended well, else why not and its last words."""

    records: list
    error: str | None


def record(values):
    """Hand a JSON object to whoever started this process: the lab, or a person at a terminal."""
    line = json.dumps(values)
    if folder := os.environ.get(_RECORDS):
        with open(Path(folder) / f"{os.getpid()}", "a") as file:
            file.write(line + "\n")
    else:
        print(line, flush=True)


def mpi(lab, command, ranks_per_host, timeout, openmpi=None):
    """Run `python command` with MPI: MPICH, or the Open MPI installed in the folder `openmpi`.

    Between hosts only TCP over eth0 is allowed; within a host MPI may share memory.
    """
    words, environment = (_open_mpi if openmpi else _mpich)(lab, ranks_per_host, openmpi)
    return _run(lab, [(0, [*words, sys.executable, *command], environment)], timeout)


def _mpich(lab, ranks_per_host, _):
    mpirun = str(Path(sys.executable).with_name("mpirun"))
    words = [mpirun, "-launcher", "rsh", "-launcher-exec", str(lab.enter), "-iface", "eth0"]
    words += ["-hosts", ",".join(f"{a}:{ranks_per_host}" for a in lab.addresses)]
    words += ["-n", str(lab.hosts * ranks_per_host)]
    if lab.hosts == 1:
        return words, {}
    return words, {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}


def _open_mpi(lab, ranks_per_host, prefix):
    prefix = Path(prefix).absolute()
    options = {"pml": "ob1", "btl": "tcp,self" + (",sm" if ranks_per_host > 1 else "")}
    options["btl_tcp_if_include"] = "eth0"
    launch = {"plm_ssh_agent": str(lab.enter), "prte_if_include": "eth0"}
    words = [str(prefix / "bin" / "mpirun"), "--bind-to", "none", "--map-by", ":oversubscribe"]
    words += [word for name, value in options.items() for word in ("--mca", name, value)]
    words += [word for name, value in launch.items() for word in ("--prtemca", name, value)]
    words += ["--host", ",".join(f"{a}:{ranks_per_host}" for a in lab.addresses)]
    words += ["-n", str(lab.hosts * ranks_per_host)]
    for name in ("PATH", "PYTHONPATH", "MPI4PY_MPIABI", "MPI4PY_LIBMPI", _RECORDS):
        words += ["-x", name]
    environment = {
        "MPI4PY_MPIABI": "openmpi",
        "MPI4PY_LIBMPI": str(prefix / "lib" / "libmpi.so"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    return words, environment


def gloo(lab, command, ranks_per_host, timeout):
    """Run `python command` once per rank, with the variables that torchrun would set."""
    size = lab.hosts * ranks_per_host
    processes = []
    for rank in range(size):
        host, local_rank = divmod(rank, ranks_per_host)
        environment = {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": ranks_per_host,
            "MASTER_ADDR": lab.addresses[0],
            "MASTER_PORT": _PORT,
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        processes.append((host, [sys.executable, *command], environment))
    return _run(lab, processes, timeout)


def pair(lab, command, timeout):
    """Run `python command` with RANK 0 and 1 on the first two hosts; return the one record."""
    start = [(r % lab.hosts, [sys.executable, *command], {"RANK": r}) for r in range(2)]
    result = _run(lab, start, timeout)
    if result.error:
        raise RuntimeError(result.error)
    return result.records[0]


def _run(lab, processes, timeout):
    """Run (host, words, environment) at once; end all when one fails or time is up."""
    folder = Path(tempfile.mkdtemp(dir=lab.folder))
    (folder / "records").mkdir()
    running = []
    try:
        for i, (host, words, environment) in enumerate(processes):
            variables = environment | {_RECORDS: folder / "records"}
            running.append(_start(lab, host, words, variables, timeout, folder / f"output{i}"))
        reason = _wait(running, timeout)
    finally:
        lab.end_processes()
        for process in running:
            process.kill()
            process.wait()
    lines = [line for p in folder.glob("records/*") for line in p.read_text().splitlines()]
    outputs = [p.read_text(errors="replace")[-1500:] for p in sorted(folder.glob("output*"))]
    error = reason and f"{reason}; its last words:\n" + "\n".join(filter(None, outputs))[-6000:]
    return Result([json.loads(line) for line in lines], error)


def _start(lab, host, words, variables, timeout, output):
    # Should this process be killed, `timeout` still ends its children.
    bound = ["timeout", "-k", "5", str(int(timeout) + 30), str(lab.enter), lab.addresses[host]]
    with open(output, "wb") as file:
        return subprocess.Popen(
            [*bound, *(shlex.quote(str(word)) for word in words)],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(running, timeout):
    """Return None when all end with status 0, else why not."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        states = [process.poll() for process in running]
        if failed := [s for s in states if s]:
            return f"a process ended with status {failed[0]}"
        if None not in states:
            return None
        time.sleep(0.02)
    return f"the job did not end in {timeout} s"
