"""Checkpointing: a gradient may come twice, and must not change after it was sent."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, on_ranks, shard
from torch import nn
from torch.utils.checkpoint import checkpoint

SIZE = 2


class Twice(nn.Module):
    """A layer that is used twice, each time in a checkpoint of its own, between two others."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        cases.refill(self, 0)

    def part(self, x):
        return torch.tanh(self.shared(x))

    def forward(self, x, times=2, reentrant=None):
        x = self.first(x)
        for _ in range(times):
            if reentrant is None:
                x = self.part(x)
            else:
                x = checkpoint(self.part, x, use_reentrant=reentrant)
        return self.last(x)


def gradients_of_twice(times=2, reentrant=None, no_sync=False, cap=cases.TINY_MB):
    def rank(comm):
        model = Twice()
        opt = distributed(model, comm, bucket_cap_mb=cap)
        x, y = shard(comm.rank, SIZE)

        def backward():
            nn.functional.mse_loss(model(x, times, reentrant), y).backward()

        if no_sync:
            with opt.no_sync():
                backward()
            opt.step()
        else:
            backward()
        return cases.gradients(model)

    return on_ranks(SIZE, rank)


def test_a_gradient_that_changes_after_it_was_sent_is_an_error():
    expected = (
        r"the gradient of a parameter in the bucket of 'shared\.\w+' changed in backward\(\) after "
        r"it was sent; .*use_reentrant=False, or call backward\(\) inside no_sync\(\)"
    )
    with pytest.raises(RuntimeError, match=expected):
        gradients_of_twice(reentrant=True)


@pytest.mark.parametrize(
    "options",
    [
        {"reentrant": False},
        {"reentrant": False, "cap": 25.0},
        {"reentrant": True, "no_sync": True},
        {"reentrant": True, "times": 1},
        {"reentrant": True, "cap": 25.0},  # one bucket, which goes when the first layer's is there
    ],
    ids=str,
)
def test_checkpoints_do_not_change_the_mean(options):
    times = options.get("times", 2)
    model = Twice()
    sum(
        nn.functional.mse_loss(model(x, times), y) / SIZE
        for x, y in (shard(r, SIZE) for r in range(SIZE))
    ).backward()
    for gradients in gradients_of_twice(**options):
        close(gradients, cases.gradients(model))


def test_what_the_message_says_helps_after_the_error():
    """The error leaves nothing behind that the next backward() could stumble on."""

    def rank(comm):
        model = Twice()
        opt = distributed(model, comm, bucket_cap_mb=cases.TINY_MB)
        x, y = shard(comm.rank, SIZE)
        with pytest.raises(RuntimeError, match="changed in backward"):
            nn.functional.mse_loss(model(x, reentrant=True), y).backward()
        opt.zero_grad()
        nn.functional.mse_loss(model(x, reentrant=False), y).backward()
        return cases.gradients(model)

    expected = gradients_of_twice()
    for actual, wanted in zip(on_ranks(SIZE, rank), expected, strict=True):
        equal(actual, wanted)
