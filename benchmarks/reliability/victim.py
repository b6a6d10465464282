"""The example, of which some ranks come to harm at a step of their own choice.

    mpirun -n 8 python benchmarks/reliability/victim.py --harm KILL:3@17 [--times FILE] -- FLAGS

Rank 3, as numbered at the beginning, gets SIGKILL (or STOP, TERM, INT, or RAISE: an exception)
before step 17; FLAGS are those of examples/ecd_resnet.py. With --times, lines "rank what seconds"
tell when harm was done, and when each survivor had taken its first step after it.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import ecd_resnet


def parse_harm(text):
    """Return (what, rank, step) of WHAT:RANK@STEP."""
    what, _, place = text.partition(":")
    rank, _, step = place.partition("@")
    return what, int(rank), int(step)


def suffer(what):
    if what == "RAISE":
        raise ZeroDivisionError("harm done")
    os.kill(os.getpid(), getattr(signal, f"SIG{what}"))


class Victim(ecd_resnet.Training):
    """The example's training, in which harm is done."""

    harm, times = (), None

    def __init__(self, *args):
        super().__init__(*args)
        self._number, self._told = self.comm.rank, 0

    def _tell(self, what):
        if self.times:
            with open(self.times, "a") as file:
                file.write(f"{self._number} {what} {time.time()}\n")

    def train_step(self):
        for what, rank, step in self.harm:
            if (rank, step) == (self._number, self.step):
                self._tell("harm")
                suffer(what)
        super().train_step()
        if len(self.failures) > self._told:
            self._told = len(self.failures)
            self._tell("goes on")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harm", action="append", default=[], type=parse_harm)
    parser.add_argument("--times", metavar="FILE")
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    Victim.harm, Victim.times = args.harm, args.times
    sys.argv[1:] = [flag for flag in args.flags if flag != "--"]
    ecd_resnet.Training = Victim
    ecd_resnet.main()


if __name__ == "__main__":
    main()
