"""What a simulation refuses, and how it says so."""

import pytest
import torch
from optimizer_cases import SHARD, algorithm, batch, compressor, mlp
from simulation_cases import N, sgd, simulate, take_steps

import decentral
import decentral_topologies
from decentral import NotFiniteError

MODES = pytest.mark.parametrize("vectorize", (False, True))


@MODES
@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_what_is_not_finite_is_found(name, vectorize):
    sim = simulate(lambda: algorithm(name, "nuqsgd"), vectorize=vectorize)
    x, y = (part.view(N, SHARD, -1).clone() for part in batch(N))
    x[3] = torch.nan
    with pytest.raises(NotFiniteError, match=r"rank 3, step 1, bucket .* parameter '"):
        sim.step(x, y)


@MODES
def test_options_out_of_range(vectorize):
    for options, match in (
        ({"size": 0}, "expected size and local_steps of at least 1, got 0 and 1"),
        ({"local_steps": 0}, "of at least 1, got 5 and 0"),
        (
            {"model": mlp().double()},
            r"expected float32 parameters, got torch.float64 of '0.weight'",
        ),
        ({"model": mlp().requires_grad_(False)}, "require gradients, got none"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "got LBFGS, which needs a closure"),
        ({"optimizer": lambda p: sgd(p[1:])}, "of the 4 parameters it was given, got one of 3"),
        (
            {"how": lambda: algorithm("d-psgd", topology=decentral_topologies.Ring(4))},
            "for 4 ranks",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            simulate(**options, vectorize=vectorize)
    with pytest.raises(TypeError, match="expected a function that makes an algorithm"):
        simulate(algorithm(), vectorize=vectorize)
    with pytest.raises(ValueError, match=r"a batch for each of 5 workers.*got 4 and 5"):
        simulate(vectorize=vectorize).step(torch.zeros(4, 2, 6), torch.zeros(5, 2, 3))
    one = algorithm()
    with pytest.raises(RuntimeError, match="construct another one"):
        simulate(lambda: one, vectorize=vectorize)


def test_an_optimizer_that_is_not_elementwise_takes_the_loop():
    class Normalized(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        def step(self):
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad / (1 + p.grad.norm()), alpha=0.1)

    with pytest.raises(ValueError, match=r"every coordinate alone.*SGD.*got Normalized; use vect"):
        simulate(optimizer=Normalized)
    take_steps(simulate(optimizer=Normalized, vectorize=False))


def test_two_levels_are_not_simulated():
    def how():
        return decentral.algorithms.AllReduce(compressor("nuqsgd"), "two-level")

    with pytest.raises(NotImplementedError, match=r"split\(\) waits for other ranks.*reduce-scat"):
        simulate(how)
