"""Arguments of another kind, calls in the wrong place, and parameters that do not fit are said."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, mlp, on_ranks
from torch import nn

import decentral
from decentral.communicators import as_communicator

SIZE = 2


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


def build(optimizer=sgd, model=None, algorithm=None, **options):
    """Return what makes a DistributedOptimizer of one wrong argument, on every rank."""

    def rank(comm):
        net = mlp()
        how = cases.algorithm() if algorithm is None else algorithm
        what = optimizer(net) if optimizer is sgd else optimizer
        decentral.DistributedOptimizer(what, net if model is None else model, how, comm, **options)

    return rank


KINDS = {
    "a class of optimizers": ({"optimizer": torch.optim.SGD}, "the class SGD"),
    "a model for an optimizer": ({"optimizer": mlp()}, "one of Sequential"),
    "parameters for a model": ({"model": mlp().parameters()}, "one of generator"),
    "an algorithm's name": ({"algorithm": "ecd-psgd"}, "the text 'ecd-psgd'"),
}


@pytest.mark.parametrize("arguments, got", KINDS.values(), ids=KINDS)
def test_an_argument_of_another_kind(arguments, got):
    (argument,) = arguments
    for kind, said in cases.messages(SIZE, build(**arguments)):
        assert kind is TypeError
        assert said.startswith(f"{argument}: expected ") and said.endswith(f", got {got}")


def test_a_wrapper_around_a_wrapper():
    def rank(comm):
        model = mlp()
        distributed(model, comm, inner=distributed(model, comm))

    expected = "optimizer: is a DistributedOptimizer already; wrap the torch optimizer, and once"
    assert cases.messages(SIZE, rank) == [(TypeError, expected)] * SIZE


@pytest.mark.parametrize("timeout", (0, -1, float("nan")))
def test_a_timeout_that_is_none(timeout):
    expected = f"timeout must be above 0 seconds, got {timeout}; the default is 600"
    assert cases.messages(SIZE, build(timeout=timeout)) == [(ValueError, expected)] * SIZE


@pytest.mark.parametrize("name", decentral.algorithms.available())
def test_the_name_of_a_compressor_is_none(name):
    with pytest.raises(TypeError, match=f"{name}: compressor: .*'nuqsgd'.*, got the text 'nuqsgd'"):
        decentral.algorithms.from_name(name, compressor="nuqsgd")


def test_a_compressor_is_no_topology_and_a_word_no_communicator():
    compressor = decentral.compressors.from_name("nuqsgd")
    with pytest.raises(TypeError, match=r"topology: expected a name, .*, got one of NUQSGD"):
        decentral.algorithms.from_name("ecd-psgd", topology=compressor, compressor=compressor)
    with pytest.raises(TypeError, match=r"comm: expected an mpi4py .*, got the text 'world'"):
        as_communicator("world")


CALLS = {
    "step()": lambda opt, _: opt.step(),
    "state_dict()": lambda opt, _: opt.state_dict(),
    "load_state_dict()": lambda opt, state: opt.load_state_dict(state),
    "adopt()": lambda opt, state: opt.adopt(state),
}


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
@pytest.mark.parametrize("what", CALLS)
def test_inside_averaged_nothing_is_done_that_its_end_undoes(what, name):
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name))
        cases.train(opt, model, steps=2)
        state = opt.state_dict()
        with opt.averaged(), opt.averaged():
            pass
        with opt.averaged():
            with opt.averaged():
                pass
            with pytest.raises(RuntimeError) as caught:
                CALLS[what](opt, state)
        cases.train(opt, model, steps=1, first=2)  # as if nothing had been
        return str(caught.value), opt.stats()["steps"], cases.parameters(model)

    def unharmed(comm):
        model = mlp()
        cases.train(distributed(model, comm, cases.algorithm(name)), model, steps=3)
        return cases.parameters(model)

    expected = f"{what} inside averaged(), at whose end every rank has its own parameters again; "
    for (said, steps, after), whole in zip(
        on_ranks(SIZE, rank), on_ranks(SIZE, unharmed), strict=True
    ):
        assert said.startswith(expected) and "Leave the block first" in said
        assert steps == 3
        cases.equal(after, whole)


@pytest.mark.parametrize("how", ("unfrozen", "added"))
def test_a_parameter_that_begins_to_train_later(how):
    """Ranks have agreed on the others, and this one would part without a word."""

    def rank(comm):
        model = mlp()
        inner = torch.optim.SGD(model[0].parameters() if how == "added" else model.parameters(), 1)
        model[2].requires_grad_(how == "added")
        opt = distributed(model, comm, inner=inner)
        cases.train(opt, model, steps=1)
        if how == "added":
            inner.add_param_group({"params": model[2].parameters()})
        model[2].requires_grad_(True)
        cases.train(opt, model, steps=1, first=1)

    for kind, said in cases.messages(SIZE, rank):
        assert kind is RuntimeError
        assert said.startswith("parameter '2.weight' has a gradient, but did not require one, or")
        assert "Make it anew" in said


@pytest.mark.parametrize("dtype", (torch.complex64, torch.complex128))
def test_complex_parameters(dtype):
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=dtype))

    expected = f"parameter 'w' is {dtype}, expected a real one; hold the real and the imaginary"
    for kind, said in cases.messages(SIZE, lambda comm: distributed(Fourier(), comm)):
        assert kind is ValueError and said.startswith(expected)


@pytest.mark.parametrize("cap", (25.0, cases.TINY_MB))
@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_a_parameter_without_coordinates_has_nothing_to_send(name, compressed, cap):
    def rank(comm):
        model = mlp()
        model.nothing = nn.Parameter(torch.empty(0, 3))
        how = cases.algorithm(name, compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cap)
        for step in range(2):
            opt.zero_grad()
            data = cases.shard(comm.rank, comm.size, step)
            (cases.loss_on(model[:3], data) + model.nothing.sum()).backward()
            opt.step()
        return opt.stats()["parameters"]

    assert on_ranks(SIZE, rank) == [53] * SIZE


def test_options_whose_words_name_an_address_agree():
    def rank(comm):
        model = mlp()
        inner = torch.optim.SGD([{"params": model.parameters(), "rate": object()}], 0.1)
        distributed(model, comm, inner=inner)
        return True

    assert on_ranks(SIZE, rank) == [True] * SIZE
