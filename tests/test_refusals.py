"""One rank's NaN or inf reaches all: the same error on every rank, and nothing that it has spoilt.

What averages gradients, with every compressor and exchange.
"""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, equal
from torch import nn

import decentral
from decentral import NotFiniteError
from decentral.algorithms import AllReduce, IntDIANA
from decentral.communicators import run_local

HOSTS = (0, 1, 1, 0)  # of 4 ranks
SIZE = len(HOSTS)
WIDE = 8000
SHARD = 2048  # of WIDE coordinates and 4 ranks; a host's two ranks have 4096 each

WAYS = {"none": ["auto"], "intsgd": ["auto"], "heuristic-intsgd": ["auto"]}
SENT = [
    (name, way)
    for name in decentral.compressors.available()
    for way in WAYS.get(name, ["all-gather", "reduce-scatter", "two-level"])
]
HOW = [("allreduce", *sent) for sent in SENT] + [
    ("intdiana", name, "auto") for name in ("intsgd", "heuristic-intsgd")
]
SOME = [how for how in HOW if how[1] in ("none", "nuqsgd", "intsgd")]


class Wide(nn.Module):
    """A vector that is long enough for shards, and a small one in a bucket behind it."""

    def __init__(self):
        super().__init__()
        self.wide, self.small = nn.Linear(WIDE, 1, bias=False), nn.Linear(20, 1, bias=False)
        cases.refill(self, 0)


def make(comm, how):
    name, compressed, way = how
    model = Wide()
    compressor = cases.compressor(compressed)
    algorithm = AllReduce(compressor, way) if name == "allreduce" else IntDIANA(compressor)
    inner = torch.optim.SGD(model.parameters(), 0.01)
    return model, distributed(model, comm, algorithm, inner, bucket_cap_mb=4 * WIDE / 2**20)


def backward(model, opt, step, spoil=()):
    """Fill in gradients of this rank and step; `spoil` is (parameter, coordinate, value)."""
    opt.zero_grad()
    rng = torch.Generator().manual_seed(1000 * step + opt.communicator.rank)
    loss = sum((p * torch.randn(p.shape, generator=rng)).sum() for p in model.parameters())
    handles = [
        model.get_parameter(f"{name}.weight").register_hook(put(value, where))
        for name, where, value in spoil
    ]
    loss.backward()
    for handle in handles:
        handle.remove()


def put(value, where):
    def hook(gradient):
        spoilt = gradient.clone()
        spoilt[0, where] = value
        return spoilt

    return hook


def complaint(opt):
    try:
        opt.step()
    except NotFiniteError as error:
        return str(error), error.index
    return None


def everything(model, opt):
    state = opt.state_dict()["decentral"]["state"]
    return cases.parameters(model) + tensors_in(state)


def tensors_in(state):
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    if isinstance(state, dict):  # in an order that does not depend on which bucket came first
        return [t for key in sorted(state, key=str) for t in tensors_in(state[key])]
    return [t for part in state for t in tensors_in(part)] if isinstance(state, list) else []


def run(how, wrong, steps=5, bad=2):
    """Train; in step number `bad` rank r has what wrong[r] says. Without `wrong` there is no such.

    Returns each rank's complaint, and all that it has at the end.
    """

    def rank(comm):
        model, opt = make(comm, how)
        said = None
        for step in range(steps):
            if step == bad and not wrong:
                continue
            spoil = wrong.get(comm.rank, ()) if step == bad else ()
            before = cases.parameters(model)
            backward(model, opt, step, spoil)
            answer = complaint(opt)
            assert (answer is not None) == (step == bad)
            said = said or answer
            assert (step == bad) == torch.equal(before[0], model.wide.weight)
        return said, everything(model, opt), opt.stats()["steps"]

    return run_local(SIZE, rank, hosts=HOSTS)


def assert_all_say(results, who, where):
    text, index = results[0][0]
    assert [said for said, _, _ in results] == [(text, index)] * SIZE
    assert text.startswith(f"rank {who}, step 2, bucket 0: ") and "at coordinate" in text
    assert "which belongs to parameter 'wide.weight'" in text
    assert index == where


@pytest.mark.parametrize("how", HOW, ids=" ".join)
def test_all_ranks_raise_what_the_one_that_knows_says(how):
    results = run(how, {3: [("wide", WIDE - 1, float("nan"))]}, steps=2, bad=1)
    assert_all_say(results, 3, WIDE - 1)


# In the rank's own shard or in another's, in both exchanges.
@pytest.mark.parametrize("who, where", [(0, 5), (1, 3000), (2, 2047), (3, 0), (1, 2 * SHARD)])
@pytest.mark.parametrize("how", SOME, ids=" ".join)
def test_wherever_it_is(how, who, where):
    assert_all_say(run(how, {who: [("wide", where, float("inf"))]}, steps=2, bad=1), who, where)


@pytest.mark.parametrize("how", HOW, ids=" ".join)
def test_what_was_refused_leaves_no_trace(how):
    """Parameters, shifts, residuals, r and the number of steps: as if the step had never been."""
    wrong = {2: [("wide", 3000, float("inf")), ("small", 7, float("nan"))]}
    refused, never = run(how, wrong), run(how, {})
    for (_, tensors, steps), (_, expected, same) in zip(refused, never, strict=True):
        assert steps == same == 4
        assert all(t.isfinite().all() for t in tensors)
        equal(tensors, expected)
        equal(tensors[:2], refused[0][1][:2])


@pytest.mark.parametrize("how", SOME, ids=" ".join)
def test_of_several_ranks_one_is_named(how):
    """The first; the others' are found when that one is mended."""
    wrong = {
        1: [("wide", 100, float("nan"))],
        3: [("wide", 7000, float("inf")), ("small", 3, float("nan"))],
    }
    results = run(how, wrong, steps=2, bad=1)
    assert_all_say(results, 1, 100)


@pytest.mark.parametrize("how", SOME, ids=" ".join)
def test_all_ranks_at_once(how):
    """Each at a place of its own, so that what is said tells whose it is."""
    wrong = {r: [("wide", 10 + r, float("nan"))] for r in range(SIZE)}
    results = run(how, wrong, steps=2, bad=1)
    who = results[0][0][1] - 10
    assert who in range(SIZE)
    assert_all_say(results, who, 10 + who)


@pytest.mark.parametrize("how", SOME, ids=" ".join)
def test_backward_does_not_raise_and_all_have_nan(how):
    """What GradScaler looks for; the other bucket's mean is whole."""

    def rank(comm):
        model, opt = make(comm, how)
        backward(model, opt, 0, [("small", 0, float("inf"))] if comm.rank == 2 else [])
        return [p.grad.clone() for p in (model.small.weight, model.wide.weight)]

    for small, wide in run_local(SIZE, rank, hosts=HOSTS):
        assert small.isnan().all() and wide.isfinite().all()


def test_a_gradient_may_be_mended_instead_of_dropped():
    """Cleared by hand, as scripts do that look at the mean before step()."""

    def rank(comm):
        model, opt = make(comm, ("allreduce", "nuqsgd", "all-gather"))
        backward(model, opt, 0, [("small", 0, float("nan"))] if comm.rank == 0 else [])
        opt.zero_grad()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
        return cases.parameters(model)

    results = run_local(SIZE, rank, hosts=HOSTS)
    for parameters in results:
        assert all(p.isfinite().all() for p in parameters)
        equal(parameters, results[0])
