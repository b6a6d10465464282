"""Is a checkpoint there, whatever the moment at which a job is killed while it saves?

    python benchmarks/kill_while_saving.py [--trials 50] [--seed 0]

A child process, whose two ranks do nothing but save, every step twice, gets SIGKILL at a random
moment. Then the checkpoint that load() finds must be whole, at least as new as the last one whose
save() had returned, and the state of its step on each rank. The next child goes on from there, in
the same directory, and has to clear away what the last one left.
"""

import argparse
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

import decentral
from decentral.communicators import run_local

RANKS = 2


def state_of(rank, step):
    return {"rank": rank, "x": [torch.full((20_000,), step + i) for i in range(5)], "step": step}


def save_for_ever(directory, first, told):
    """Save one step after the other, each twice, and tell which ones have been saved."""

    def rank(comm):
        checkpoints, step = decentral.Checkpoints(directory, comm, keep=2), first
        while True:
            for _ in range(2):
                checkpoints.save(step, state_of(comm.rank, step))
                if comm.rank == 0:
                    told.send(step)
            step += 1

    run_local(RANKS, rank)


def kill(directory, first, wait_s):
    """Let a child save from step `first` on, and kill it; return the last step it told of."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=save_for_ever, args=(directory, first, its))
    child.start()
    its.close()
    last = mine.recv()
    time.sleep(wait_s)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    if child.exitcode != -signal.SIGKILL:
        sys.exit("expected a child that saves until it is killed, got one that ended, see above")
    try:
        while True:
            last = mine.recv()
    except EOFError:
        return last


def problem_with(directory, last):
    """Return what is wrong with the checkpoint that is found, and its step."""

    def rank(comm):
        found = decentral.Checkpoints(directory, comm).load()
        if found is None or found.step < last:
            return f"step {last} was saved, found {found and found.step}", last
        expected, got = state_of(comm.rank, found.step), found.state
        same = all(map(torch.equal, expected.pop("x"), got.pop("x"))) and expected == got
        return "" if same else f"step {found.step} is not what was saved", found.step

    results = run_local(RANKS, rank)
    return next((problem for problem, _ in results if problem), ""), results[0][1]


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # there are no threads to lose when forking
    random.seed(args.seed)
    warnings = Warnings()
    logging.getLogger("decentral").addHandler(warnings)
    good = halfway = 0
    step = 0
    with tempfile.TemporaryDirectory() as directory:
        for trial in range(args.trials):
            last = kill(directory, step + 1, random.uniform(0, 0.1))
            halfway += any(Path(directory).glob(".step-*.tmp"))
            problem, step = problem_with(directory, last)
            problem = problem or "; ".join(warnings.texts)
            good += not problem
            if problem:
                print(f"trial {trial}: {problem}; {sorted(os.listdir(directory))}")
                warnings.texts.clear()
    print(
        f"{good} of {args.trials} jobs that were killed while saving left a whole checkpoint, "
        f"{halfway} of them an unfinished one beside it"
    )
    sys.exit(good < args.trials)


if __name__ == "__main__":
    main()
