"""Train every algorithm with every compressor that keeps state, side by side in one job.

    mpirun -n 3 python tests/launch/every_algorithm.py DIRECTORY [--resume] [--save-at STEP]
        [--kill RANK@STEP]

DIRECTORY gets a checkpoint of all of them at --save-at and after the last step. The rank to be
killed gets SIGKILL when half of the trainings have taken the step, and the other half has not.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import optimizer_cases as cases
from resuming_cases import STEPS, Run

import decentral

ALIKE = ("qsgd", "qsgdinf", "terngrad", "natural")  # keep no state, as NUQSGD does not


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--save-at", type=int)
    parser.add_argument("--kill", default="-1@-1", metavar="RANK@STEP")
    return parser.parse_args()


def main():
    args = parse_args()
    victim = tuple(map(int, args.kill.split("@")))
    torch.set_num_threads(1)
    pairs = [pair for pair in cases.accepted_pairs() if pair[1] not in ALIKE]
    runs = {" ".join(pair): Run(None, *pair, bucket_cap_mb=cases.TINY_MB) for pair in pairs}
    comm = next(iter(runs.values())).opt.communicator
    checkpoints, first = decentral.Checkpoints(args.directory, comm), 0
    if args.resume:
        found = checkpoints.load()
        first = found.step
        for name, run in runs.items():
            run.load(found.state[name])
    for step in range(first, STEPS):
        for number, run in enumerate(runs.values()):
            if number == len(runs) // 2 and victim == (comm.rank, step):
                os.kill(os.getpid(), signal.SIGKILL)
            run.train(step, step + 1)
        if step + 1 in (args.save_at, STEPS):
            checkpoints.save(step + 1, {name: run.state() for name, run in runs.items()})


if __name__ == "__main__":
    main()
