import pytest
import torch

from decentral.communicators.launch import launched

torch.set_num_threads(1)  # others take the cores: pytest's workers, ranks, run_local's threads


def pytest_collection_modifyitems(items):
    """Under mpirun only what is marked `mpi` runs: the rest would run the same n times."""
    processes, _ = launched()
    if processes == 1:
        return
    skip = pytest.mark.skip(reason="needs one process; runs under plain pytest")
    for item in items:
        if item.get_closest_marker("mpi") is None:
            item.add_marker(skip)
