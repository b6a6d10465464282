"""One rank of test_gpu_training.test_over_mpi: train, and say so if the loss has come down.

mpirun -n 2 python tests/gpu/train_over_mpi.py ALGORITHM DEVICE
"""

import sys

import test_gpu_training as cases

from decentral.communicators import as_communicator

name, cases.DEVICE = sys.argv[1:]
first, last, _ = cases.train(as_communicator(), name, cases.LOSSY, {})
if not last < 0.5 * first:
    sys.exit(f"the loss went from {first} to {last}")
print("trained", flush=True)
