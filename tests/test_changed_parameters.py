"""What a script does to parameters between steps is a part of its rank's update, also in gossip."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, mlp, on_ranks
from torch import nn

import decentral

SIZE = 4
ALONE = "qg-dsgdm"  # whose momentum goes on with what was added


def added_by_one(name, dtype=torch.float32, **options):
    """Return every rank's parameters before one adds 1 to its own, and after three more steps."""

    def rank(comm):
        model = mlp().to(dtype)
        opt = distributed(model, comm, cases.algorithm(name), **options)
        for step in range(3):
            opt.zero_grad()
            cases.loss_on(
                model, [v.to(dtype) for v in cases.shard(comm.rank, SIZE, step)]
            ).backward()
            opt.step()
        before = cases.parameters(model)
        if comm.rank == 0:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            opt.step()
        return before, cases.parameters(model)

    return on_ranks(SIZE, rank)


def means(results, k):
    return [sum(p.float() for p in ps) / SIZE for ps in zip(*(r[k] for r in results), strict=True)]


OPTIONS = {
    "each step": (1e-5, {}),
    "local steps": (1e-5, {"local_steps": 3}),
    "half precision": (0.02, {"dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("name", [n for n in cases.gossip() if n != ALONE])
@pytest.mark.parametrize("tolerance, options", OPTIONS.values(), ids=OPTIONS)
def test_it_reaches_all_ranks(name, tolerance, options):
    results = added_by_one(name, **options)
    before, after = means(results, 0), means(results, 1)
    cases.close(after, [p + 1 / SIZE for p in before], tolerance)


@pytest.mark.parametrize("name", decentral.algorithms.available())
def test_another_memory_format_changes_no_value(name):
    """Ranks have agreed on the order of coordinates before."""

    def rank(comm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
        how = cases.algorithm(name, "intsgd" if name == "intdiana" else "none")
        opt = distributed(model, comm, how, inner=torch.optim.SGD(model.parameters(), 0.0))
        before = cases.parameters(model)
        model.to(memory_format=torch.channels_last)
        for _ in range(3):
            opt.zero_grad()
            model(torch.randn(2, 3, 3, 3)).sum().backward()
            opt.step()
        return before, cases.parameters(model)

    for before, after in on_ranks(SIZE, rank):
        cases.close(after, before)
