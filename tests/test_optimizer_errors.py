"""What goes wrong is said on every rank, or by the rank that knows, with names and a remedy."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, mlp, on_ranks
from torch import nn

import decentral
from decentral import MismatchError, NotFiniteError
from decentral.algorithms import DPSGD, ECDPSGD, AllReduce
from decentral.communicators import WaitTimeoutError, run_local
from decentral.compressors import NUQSGD
from decentral.payload import FORMAT_VERSION
from decentral.startup import check_agreement

SIZE, ODD = 3, 1


def spoil(value, where):
    """Return a hook that puts `value` at one coordinate of a gradient."""

    def hook(gradient):
        spoiled = gradient.clone()
        spoiled.view(-1)[where] = value
        return spoiled

    return hook


@pytest.mark.parametrize(
    "value, parameter",
    [*(("nan", name) for name in cases.BUCKETS), ("inf", "0.bias"), ("-inf", "2.weight")],
)
@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_a_gradient_that_is_not_finite_is_found_where_it_is(name, compressed, parameter, value):
    def rank(comm):
        model = mlp()
        how = cases.algorithm(name, compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
        cases.train(opt, model, steps=2)
        if comm.rank == ODD:
            model.get_parameter(parameter).register_hook(spoil(float(value), where=2))
        cases.train(opt, model, steps=1, first=2)

    bucket = cases.BUCKETS.index(parameter)
    expected = (
        rf"^rank 1, step 3, bucket {bucket}: .*expected finite values, got -?{value.strip('-')} "
        rf"at coordinate 2, which belongs to parameter '{parameter}'.*Lower the learning rate"
    )
    with pytest.raises(NotFiniteError, match=expected) as caught:
        on_ranks(SIZE, rank)
    assert caught.value.index == 2


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_the_parameter_is_named_where_many_share_a_bucket(name):
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name, "nuqsgd"))
        if comm.rank == ODD:
            model[0].bias.register_hook(spoil(float("nan"), where=4))
        cases.train(opt, model, steps=1)

    # 2.bias has 3 coordinates, 2.weight 15, and then comes 0.bias
    with pytest.raises(
        NotFiniteError, match=r"step 1, bucket 0: .* coordinate 22, which belongs to parameter '0.b"
    ):
        on_ranks(SIZE, rank)


def test_a_finite_gradient_that_is_too_large_for_its_norm():
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("allreduce", "nuqsgd"))
        model[2].bias.register_hook(spoil(3e38, where=1))
        cases.train(opt, model, steps=1)

    with pytest.raises(NotFiniteError, match=r"step 1, bucket 0: .*norm of block 0.*'2.bias'"):
        on_ranks(SIZE, rank)


def test_a_sum_of_finite_gradients_may_be_large():
    """float32 holds them one by one though not their sum over coordinates: no false alarm."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm)
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e38)
        opt.step()
        return bool(torch.isfinite(model[0].weight).all())

    assert on_ranks(2, rank) == [True, True]


def make_wide():
    return cases.refill(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), 0)


def make_deep():
    return cases.refill(nn.Sequential(*mlp(), nn.Linear(3, 3)), 0)


def make_double():
    return mlp().double()


def make_with_buffer():
    model = mlp()
    model.register_buffer("extra", torch.ones(2))
    return model


# What the odd rank has instead of the others', and what the error then says.
MISMATCHES = {
    "shape": ({"model": make_wide}, r"'2\.weight'.*: rank 1 got .*\(4, 5\).*rank 0 has .*\(3, 5\)"),
    "dtype": ({"model": make_double}, r"'0\.weight'.*: rank 1 got .*float64.* has .*float32"),
    "depth": ({"model": make_deep}, r"rank 1 got parameter or buffer '3\.weight', rank 0 has what"),
    "buffer": ({"model": make_with_buffer}, r"rank 1 got parameter or buffer 'extra', rank 0 has"),
    "algorithm": (
        {"how": lambda: AllReduce(NUQSGD(4))},
        r"the algorithm: rank 1 got AllReduce\(.*rank 0 has ECDPSGD\(",
    ),
    "bits": ({"how": lambda: ECDPSGD("ring", NUQSGD(5))}, r"algorithm: .*bits=5.* has .*bits=4"),
    "blocks": (
        {"how": lambda: ECDPSGD("ring", NUQSGD(4, 64))},
        r"algorithm: rank 1 got .*block_size=64.* has .*block_size=8192",
    ),
    "topology": (
        {"how": lambda: ECDPSGD("complete", NUQSGD(4))},
        r"algorithm: rank 1 got .*Complete\(3\).*rank 0 has .*Ring\(3\)",
    ),
    "horizon": (
        {"how": lambda: ECDPSGD("ring", NUQSGD(4), horizon=4)},
        r"algorithm: .*horizon=4.* has .*horizon=10",
    ),
    "seed": (
        {"seed": 8},
        r"seed and bucket_cap_mb: rank 1 got \(8, 25.0\), rank 0 has \(7, 25.0",
    ),
    "cap": (
        {"cap": 1.0},
        r"seed and bucket_cap_mb: rank 1 got \(7, 1.0\), rank 0 has \(7, 25.0",
    ),
    "trained": (
        {"train": lambda model: model[2].parameters()},
        r"rank 1 got what the optimizer trains \('2\.weight'\), rank 0 has .*trains \('0\.weight'",
    ),
    "trained less": (
        {"train": lambda model: model[0].parameters()},
        r"rank 1 got .*, rank 0 has what the optimizer trains \('2\.weight'\)",
    ),
}


def start(comm, model=mlp, how=lambda: ECDPSGD("ring", NUQSGD(4)), seed=7, cap=25.0, train=None):
    made = model()
    parameters = made.parameters() if train is None else train(made)
    inner = torch.optim.SGD(parameters, 0.1)
    return distributed(made, comm, how(), inner, seed=seed, bucket_cap_mb=cap)


@pytest.mark.parametrize("what", MISMATCHES)
def test_every_rank_says_which_rank_differs_in_what(what):
    changes, expected = MISMATCHES[what]
    said = cases.messages(SIZE, lambda comm: start(comm, **changes if comm.rank == ODD else {}))
    assert said == [said[0]] * SIZE
    kind, text = said[0]
    assert kind is MismatchError
    with pytest.raises(MismatchError, match=expected):
        raise MismatchError(text)


def test_without_a_difference_nobody_complains():
    assert cases.messages(SIZE, start) == [None] * SIZE


def test_another_version_is_a_mismatch(monkeypatch):
    """A machine with an older installation; one process has but one, so a rank is made to lie."""

    def lying(comm, items):
        (what, version), *rest = items
        assert version == (decentral.__version__, FORMAT_VERSION)
        lie = ("0.0.1", 1) if comm.rank == ODD else version
        check_agreement(comm, [(what, lie), *rest])

    monkeypatch.setattr("decentral.optimizer.check_agreement", lying)
    said = cases.messages(SIZE, start)
    assert said == [said[0]] * SIZE
    kind, text = said[0]
    assert kind is MismatchError
    assert "the version of decentral: rank 1 got ('0.0.1', 1), rank 0 has" in text


def test_a_parameter_of_another_model():
    def rank(comm):
        model = mlp()
        stranger = nn.Parameter(torch.zeros(7, 2))
        groups = [{"params": model.parameters()}, {"params": [stranger]}]
        distributed(model, comm, inner=torch.optim.SGD(groups, 0.1))

    expected = (
        "expected every parameter of the optimizer to be one of the model's, but group 1 has one "
        "of shape (7, 2) that is not; pass the module that holds them all"
    )
    assert cases.messages(2, rank) == [(ValueError, expected)] * 2


def test_nothing_to_train():
    def rank(comm):
        model = mlp().requires_grad_(False)
        distributed(model, comm)

    expected = (ValueError, "expected parameters that require gradients, got none")
    assert cases.messages(2, rank) == [expected] * 2


@pytest.mark.parametrize("cap", (0, -1.0, float("nan")))
def test_a_bad_cap(cap):
    said = cases.messages(2, lambda comm: distributed(mlp(), comm, bucket_cap_mb=cap))
    expected = f"bucket_cap_mb must be positive, got {cap}; 8 is usual"
    assert said == [(ValueError, expected)] * 2


def test_a_rank_that_goes_on_alone_ends_and_names_its_neighbor():
    """Gossip notices two steps later, since an exchange is collected in the step after."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, DPSGD("ring"))
        cases.train(opt, model, steps=3 if comm.rank == 0 else 1)

    expected = "^rank 0, step 2, bucket 0 .*, messages of rank 1: waited for 2 s"
    with pytest.raises(WaitTimeoutError, match=expected):
        run_local(2, rank, timeout=2.0)
