import pytest
import torch

from decentral.communicators.launch import launched

torch.set_num_threads(1)  # others take the cores: pytest's workers, ranks, run_local's threads

# The first loss of a process was off by 1e-5 in 2 of some 80 processes on two busy cores,
# where threads that are ranks begin at once: so MKL begins here. None in 81 since.
torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())(torch.ones(8, 8)).sum().backward()


def pytest_collection_modifyitems(items):
    """Under mpirun only what is marked `mpi` runs: the rest would run the same n times."""
    processes, _ = launched()
    if processes == 1:
        return
    skip = pytest.mark.skip(reason="needs one process; runs under plain pytest")
    for item in items:
        if item.get_closest_marker("mpi") is None:
            item.add_marker(skip)
