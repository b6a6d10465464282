"""Simulations of the optimizer's cases."""

import torch
from optimizer_cases import SHARD, TINY_MB, algorithm, batch, mlp
from torch import nn

from decentral.simulate import Simulation

N, STEPS = 5, 4


def sgd(params):
    return torch.optim.SGD(params, 0.1, momentum=0.9)


def simulate(how=algorithm, size=N, model=None, optimizer=sgd, **options):
    model = mlp() if model is None else model
    options = {"bucket_cap_mb": TINY_MB, **options}
    return Simulation(model, size, how, optimizer, nn.functional.mse_loss, **options)


def take_steps(sim, steps=STEPS, first=0):
    for step in range(first, first + steps):
        x, y = (part.view(sim.size, SHARD, -1) for part in batch(sim.size, step))
        losses = sim.step(x, y)
    return losses
