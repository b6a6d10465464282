"""What the tests of checkpoints share."""

import struct

import numpy as np
import torch

import decentral
from decentral.communicators import run_local


def same(a, b):
    """Return whether two states are equal in every type and bit, dicts in their order too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*flat)
    if isinstance(a, (np.ndarray, np.generic)):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, dict):
        versions = [getattr(d, "_metadata", None) for d in (a, b)]
        return same(list(a.items()), list(b.items())) and same(*versions)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state_of(rank, step):
    """Return a state that tells rank and step, the length of its file from other ranks' apart."""
    return {"rank": rank, "step": step, "x": torch.full((10 + rank,), float(step))}


def saved(directory, *steps, ranks=2, keep=3):
    """Save state_of() at these steps, one after the other."""

    def rank(comm):
        checkpoints = decentral.Checkpoints(directory, comm, keep)
        for step in steps:
            checkpoints.save(step, state_of(comm.rank, step))

    run_local(ranks, rank)


def loaded(directory, ranks=2):
    """Return what each rank has found."""
    return run_local(ranks, lambda comm: decentral.Checkpoints(directory, comm).load())


def steps_of(directory, ranks=2):
    """Return the step that all ranks have found, after a look at their states; None for none."""
    found = loaded(directory, ranks)
    for rank, one in enumerate(found):
        assert one is None or same(one.state, state_of(rank, one.step))
    (step,) = {None if one is None else one.step for one in found}
    return step


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def on_all(ranks, function):
    """Call function(comm) on all ranks; return the error of each."""

    def rank(comm):
        try:
            function(comm)
        except Exception as error:
            return error
        return None

    return run_local(ranks, rank)
