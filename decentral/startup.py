"""What happens once, before the first step: ranks compare what must agree, and start equal."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._version import __version__
from .algorithms import Algorithm
from .buckets import Buckets
from .communicators.base import Communicator
from .payload import FORMAT_VERSION
from .registry import described
from .wrapper import Wrapper

_CHUNK = 1 << 26  # bytes of parameters that are broadcast together


class MismatchError(ValueError):
    """Ranks were started with different models or options."""

    on_all_ranks = True  # all compare the same lists


def check_kinds(optimizer: Any, model: Any, algorithm: Any, timeout: float | None) -> None:
    """Raise TypeError, or ValueError, for what DistributedOptimizer was given by mistake."""
    if isinstance(optimizer, Wrapper):
        raise TypeError(
            "optimizer: is a DistributedOptimizer already; wrap the torch optimizer, and once"
        )
    if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups"):
        usual = "an optimizer such as torch.optim.SGD(model.parameters(), lr=0.1)"
        raise TypeError(f"optimizer: expected {usual}, got {described(optimizer)}")
    if not isinstance(model, nn.Module):
        what = "the torch.nn.Module whose parameters the optimizer has"
        raise TypeError(f"model: expected {what}, got {described(model)}")
    if not isinstance(algorithm, Algorithm):
        usual = "decentral.algorithms.from_name('ecd-psgd') or its like"
        raise TypeError(f"algorithm: expected {usual}, got {described(algorithm)}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}; the default is 600")


def trained_parameters(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> list[tuple[str, nn.Parameter]]:
    """Return the optimizer's parameters that need gradients, by name, in the model's order.

    Those without coordinates have nothing to send.

    Raises:
        ValueError: there are none, one is complex, or one of the optimizer's is not in the model.
    """
    groups = enumerate(optimizer.param_groups)
    wanted = {id(p): (g, p) for g, group in groups for p in group["params"]}
    named = [(n, p) for n, p in model.named_parameters() if id(p) in wanted]
    strangers = set(wanted) - {id(p) for _, p in named}
    if strangers:
        g, p = wanted[strangers.pop()]
        raise ValueError(
            f"expected every parameter of the optimizer to be one of the model's, but group {g} "
            f"has one of shape {tuple(p.shape)} that is not; pass the module that holds them all"
        )
    trained = [(n, p) for n, p in named if p.requires_grad and p.numel()]
    for name, p in trained:
        if p.is_complex():
            raise ValueError(
                f"parameter {name!r} is {p.dtype}, expected a real one; hold the real and the "
                "imaginary part as float32, and use torch.view_as_complex() in forward()"
            )
    if not trained:
        raise ValueError("expected parameters that require gradients, got none")
    return trained


def check_trained(
    optimizer: torch.optim.Optimizer, model: nn.Module, known: Container[int]
) -> None:
    """Raise RuntimeError where a parameter has a gradient, and its id() is not among the `known`.

    Ranks would not average it, and so part without a word.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and id(p) not in known and p.numel():
                names = (repr(name) for name, mine in model.named_parameters() if mine is p)
                raise RuntimeError(
                    f"parameter {next(names, f'of shape {tuple(p.shape)}')} has a gradient, but "
                    "did not require one, or was not in the optimizer, when DistributedOptimizer "
                    "was made, so ranks do not average it. Make it anew, around the optimizer, "
                    "whenever there are more parameters to train"
                )


def hyperparameters(optimizer: torch.optim.Optimizer) -> tuple[str, list[dict[str, Any]]]:
    """Return the optimizer's class and its groups' options: unequal ones part equal replicas."""
    groups = [{k: _plain(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return type(optimizer).__name__, groups


def _plain(value: Any) -> Any:
    """Return a value whose repr() is equal on all ranks, if it is: no address in it."""
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    kinds = (bool, int, float, str, Tensor, type(None))
    return value if isinstance(value, kinds) else type(value).__name__


def learning_rates(optimizer: torch.optim.Optimizer, buckets: Buckets) -> list[list[float]]:
    """Return the learning rate of every tensor, or part of one, by bucket; 1 where none is."""
    groups = optimizer.param_groups
    rates = {id(p): float(g.get("lr", 1.0)) for g in groups for p in g["params"]}
    of_parameter = [rates[id(p)] for p in buckets.parameters]
    return [[of_parameter[i] for i in bucket.indices] for bucket in buckets]


def fingerprint(
    options: dict[str, Any], model: nn.Module, trained: Sequence[tuple[str, nn.Parameter]]
) -> Iterator[tuple[str, Any]]:
    """Yield what all ranks must have equal, as (what, value) pairs, the most telling ones first."""
    yield "the version of decentral", (__version__, FORMAT_VERSION)
    yield from options.items()
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    for name, t in tensors:
        yield f"parameter or buffer {name!r}", (name, tuple(t.shape), t.dtype)
    for name, _ in trained:
        yield f"what the optimizer trains ({name!r})", name
    for name, p in trained:  # buckets hold them in the order of memory
        yield f"the memory layout of {name!r}", p.stride()
        yield f"the kind of device of {name!r}", p.device.type


def check_agreement(comm: Communicator, items: Iterable[tuple[str, Any]]) -> None:
    """Compare (what, value) pairs over all ranks.

    Raises:
        MismatchError: on every rank, naming the ranks that differ from rank 0 and the first item.
    """
    mine = [(what, repr(value)) for what, value in items]
    lists = comm.all_gather_object(mine)
    for i in range(max(map(len, lists))):
        values = [
            ranks[i] if i < len(ranks) else ("nothing more", "nothing more") for ranks in lists
        ]
        odd = [r for r, value in enumerate(values) if value != values[0]]
        if odd:
            what, theirs = values[odd[0]]
            expected = values[0][1]
            if what != values[0][0]:
                theirs, expected, what = what, values[0][0], "the next item"
            who = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
            raise MismatchError(
                f"ranks do not agree on {what}: {who} got {theirs}, rank 0 has {expected}; all "
                "ranks must construct the same model, algorithm and options"
            )


def check_state(comm: Communicator, state: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Compare what a saved state says of the run that saved it with this run, on all ranks.

    Raises:
        ValueError: on every rank, if it is a plain optimizer's, or of another algorithm, rank,
            size, seed or buckets on one of them.
        MismatchError: the ranks' are of different steps.
    """
    if state is None:
        raise ValueError(
            'state_dict has no entry "decentral": expected one of DistributedOptimizer\'s. '
            "Load a plain optimizer's into the optimizer before wrapping it"
        )
    wrong = (
        f"state_dict: {what} is {state[what]}, expected {expected}"
        for what, expected in identity.items()
        if state[what] != expected
    )
    for rank, problem in enumerate(comm.all_gather_object(next(wrong, ""))):
        if problem:
            raise ValueError(
                f"rank {rank}: {problem}; resume with the same model, options and number of ranks, "
                "each from its own file"
            )
    check_agreement(comm, [("the step to resume from", state["steps"])])


@functools.cache  # once per process
def _say(message: str) -> None:
    logging.getLogger("decentral").warning(message)


def agree_how_device_buffers_travel(comm: Communicator, tensors: Iterable[Tensor]) -> None:
    """Find out whether MPI gets device memory as it is or a copy in pinned memory; rank 0 says it.

    Only where there is device memory: on all ranks, or on none.
    """
    device = next((t.device for t in tensors if t.is_cuda), None)
    if comm.size == 1 or device is None:
        return
    from .device_probe import arrives  # which is a script, too

    comm.ask_for_device_direct(lambda: arrives(device))
    if comm.rank != 0:
        return
    if comm.device_direct:
        _say("decentral: hands device buffers to MPI, which is CUDA-aware")
    else:
        _say("decentral: stages device buffers through pinned memory; this MPI is not CUDA-aware")


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor, in the order of its indices, uint8[nbytes] on the host."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def broadcast_tensors(comm: Communicator, tensors: Iterable[Tensor], root: int = 0) -> None:
    """Replace tensors of any dtype, on any device, by those of rank `root`, bit for bit."""
    batch: list[Tensor] = []
    size = 0
    for tensor in tensors:
        batch.append(tensor)
        size += tensor.nbytes
        if size >= _CHUNK:
            _broadcast_batch(comm, batch, root)
            batch, size = [], 0
    if batch:
        _broadcast_batch(comm, batch, root)


def _broadcast_batch(comm: Communicator, tensors: list[Tensor], root: int) -> None:
    data = torch.cat([as_bytes(t) for t in tensors]) if tensors else torch.empty(0)
    comm.broadcast(data.numpy().view(np.uint8), root)
    with torch.no_grad():
        for tensor, part in zip(tensors, data.split([t.nbytes for t in tensors]), strict=True):
            # clone: a slice may start where the dtype could not be read from
            tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))
