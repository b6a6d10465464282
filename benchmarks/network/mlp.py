"""The workload of the network benchmarks: a perceptron of 10.5 M parameters on random data.

Large for its computation, so that the network counts even on two cores: 784-2100-2100-2100-10,
10,493,710 parameters, which are 42 MB of float32.
"""

import copy
import functools
import itertools

import torch
from torch import nn
from torch.nn.functional import cross_entropy

WIDTHS = (784, 2100, 2100, 2100, 10)


def parameter_count(widths=WIDTHS):
    """Return the number of weights and biases."""
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def perceptron(widths=WIDTHS, seed=0):
    """Return a perceptron with ReLU, equal for equal seeds."""
    return copy.deepcopy(_initialized(widths, seed))


@functools.cache
def _initialized(widths, seed):  # drawing the weights takes longer than some runs
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch(size, rank, widths=WIDTHS):
    """Return a rank's inputs, float32 [size, first width], and labels."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(size, widths[0], generator=generator)
    return x, torch.randint(0, widths[-1], (size,), generator=generator)


class _Free(torch.autograd.Function):
    """Zero, whose gradients are there at once."""

    @staticmethod
    def forward(ctx, gradients, *parameters):
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return None, *(g.clone() for g in ctx.gradients)


class Free(nn.Module):
    """The same parameters and gradients of the same sizes, but nothing to compute."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self._gradients = [1e-3 * p.detach() for p in model.parameters()]

    def forward(self, _):
        return _Free.apply(self._gradients, *self.model.parameters())


def loss_of(model, x, target):
    """Return the loss; a Free model returns its own."""
    output = model(x)
    return cross_entropy(output, target) if output.ndim else output
