"""Loops over different numbers of batches, for the tests of join()."""

import optimizer_cases as cases
import torch
from optimizer_cases import distributed, loss_on, mlp, shard

COUNTS = [(4,), (2, 5), (3, 0, 5), (5, 3, 0, 4)]  # batches by rank


def make(comm, name="allreduce", compressed="none", model=None, inner=None, **options):
    model = mlp() if model is None else model
    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9) if inner is None else inner
    options.setdefault("bucket_cap_mb", cases.TINY_MB)
    return model, distributed(model, comm, cases.algorithm(name, compressed), sgd, **options)


def loop(opt, model, count, first=0, after=lambda: None):
    for step in range(first, first + count):
        opt.zero_grad()
        loss_on(model, shard(opt.communicator.rank, opt.communicator.size, step)).backward()
        opt.step()
        after()


def joined(opt, model, counts, **options):
    with opt.join():
        loop(opt, model, counts[opt.communicator.rank], **options)


def tensors_of(model, optimizer):
    state = optimizer.state_dict()
    kept = [v for k in sorted(state["state"]) for _, v in sorted(state["state"][k].items())]
    return [t.clone() for t in [*model.state_dict().values(), *filter(torch.is_tensor, kept)]]


def groups_of(optimizer):
    return optimizer.state_dict()["param_groups"]
