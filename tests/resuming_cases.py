"""Training with momentum, a schedule and BatchNorm, which can be saved and compared bit for bit."""

import optimizer_cases as cases
import torch
from optimizer_cases import distributed, mlp_with_batch_norm

STEPS = 40


class Run:
    """Training on one rank, with momentum and a schedule."""

    def __init__(self, comm, name, compressed, largest=None, **options):
        """With `largest` the script itself cuts parameters to that, after each step."""
        self.model, self.largest = mlp_with_batch_norm(), largest
        inner = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        how = cases.algorithm(name, compressed)
        self.opt = distributed(self.model, comm, how, inner, **options)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.opt, 0.05, total_steps=STEPS)
        self.parts = {"model": self.model, "opt": self.opt, "schedule": self.schedule}

    def state(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def train(self, first, last):
        for step in range(first, last):
            cases.train(self.opt, self.model, 1, step)
            self.schedule.step()
            if self.largest is not None:
                with torch.no_grad():
                    for p in self.model.parameters():
                        p.clamp_(-self.largest, self.largest)


def leaves(value, path=""):
    """Yield (path, value) of everything in nested dictionaries and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}/{i}")
    else:
        yield path, value


def assert_equal(actual, expected):
    actual, expected = dict(leaves(actual)), dict(leaves(expected))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(actual[path], value), path
        else:
            assert actual[path] == value, path
