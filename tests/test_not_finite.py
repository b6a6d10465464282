"""not_finite="skip": all ranks leave out the same step, and nothing of it stays."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, loss_on, mlp, shard

import decentral
from decentral import MismatchError, NotFiniteError
from decentral.communicators import run_local
from decentral.communicators.base import all_reduce_nbytes

SIZE, ODD = 4, 2
STEPS, BAD = 5, 2
PAIRS = cases.accepted_pairs()
SOME = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce", "ef-signsgd"),
    ("allreduce", "intsgd"),
    ("intdiana", "intsgd"),
    ("d-psgd", "none"),
    ("ecd-psgd", "nuqsgd"),
    ("choco-sgd", "natural"),
]


def make(comm, name, compressed, inner=None, **options):
    model = mlp()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    inner = adam if inner is None else inner(model.parameters())
    how = cases.algorithm(name, compressed)
    return model, distributed(model, comm, how, inner, **{"not_finite": "skip"} | options)


def put(value, where):
    def hook(gradient):
        spoilt = gradient.clone()
        spoilt.view(-1)[where] = value
        return spoilt

    return hook


def backward(model, comm, step, spoil=None):
    """`spoil` is (parameter, coordinate, value)."""
    handle = None
    if spoil is not None:
        name, where, value = spoil
        handle = model.get_parameter(name).register_hook(put(value, where))
    loss_on(model, shard(comm.rank, comm.size, step)).backward()
    if handle is not None:
        handle.remove()


def everything(model, opt):
    """Return parameters, the optimizer's state, and the algorithm's and compressor's."""
    return cases.parameters(model), tensors_in(opt.state_dict())


def tensors_in(state):
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    if isinstance(state, dict):  # in an order that does not depend on which bucket came first
        return [t for key in sorted(state, key=str) for t in tensors_in(state[key])]
    return [t for part in state for t in tensors_in(part)] if isinstance(state, list) else []


def run(name, compressed, spoil, who=(ODD,), leave_out=False, size=SIZE, **options):
    """Train; in step number BAD the ranks `who` are spoilt, or that step is left out by hand."""

    def rank(comm):
        model, opt = make(comm, name, compressed, **options)
        for step in range(STEPS):
            if step == BAD and leave_out:
                continue
            opt.zero_grad()
            backward(model, comm, step, spoil if step == BAD and comm.rank in who else None)
            opt.step()
        return *everything(model, opt), opt.stats()["steps"], opt.stats()["skipped"]

    return run_local(size, rank)


@pytest.mark.parametrize("value", ("nan", "inf", "-inf"))
@pytest.mark.parametrize("name, compressed", PAIRS)
def test_a_skipped_step_is_a_step_that_never_was(name, compressed, value):
    """On all ranks: parameters, Adam's moments, residuals, shifts, estimates, r."""
    skipped = run(name, compressed, ("0.bias", 4, float(value)))
    never = run(name, compressed, None, leave_out=True)
    for (parameters, state, *counts), (expected, kept, *_) in zip(skipped, never, strict=True):
        assert counts == [STEPS - 1, 1]
        cases.equal(parameters, expected)
        cases.equal(state, kept)
        assert all(t.isfinite().all() for t in parameters + state)
        if cases.averages_gradients(name):
            cases.equal(parameters, skipped[0][0])


@pytest.mark.parametrize("name, compressed", SOME)
def test_one_bucket_of_several(name, compressed):
    """The others' means were whole, and what they have taught stays harmless."""
    results = run(name, compressed, ("0.bias", 4, float("nan")), bucket_cap_mb=cases.TINY_MB)
    for parameters, state, *counts in results:
        assert counts == [STEPS - 1, 1]
        assert all(t.isfinite().all() for t in parameters + state)
        if cases.averages_gradients(name):
            cases.equal(parameters, results[0][0])


@pytest.mark.parametrize("who", [(ODD,), range(SIZE)], ids=("one", "all"))
@pytest.mark.parametrize("name, compressed", PAIRS)
def test_very_large_ones_are_decided_on_alike(name, compressed, who):
    """Four times 1e38 is more than float32 holds, and so is the square of one."""
    results = run(name, compressed, ("2.weight", 3, 1e38), who)
    for parameters, _, *counts in results:
        assert tuple(counts) == results[0][2:] and sum(counts) == STEPS
        assert all(p.isfinite().all() for p in parameters)
        if cases.averages_gradients(name):
            cases.equal(parameters, results[0][0])
        else:
            assert counts == [STEPS - 1, 1]


@pytest.mark.parametrize("where", (0, 7))
@pytest.mark.parametrize("not_finite", ("stop", "skip"))
def test_a_sum_over_ranks_that_overflows(not_finite, where):
    """Every gradient is finite; the sum is inf on all ranks, and all find it, wherever it is."""

    def rank(comm):
        model, opt = make(comm, "allreduce", "none", not_finite=not_finite)
        backward(model, comm, 0, ("2.bias" if where == 0 else "2.weight", where, 1e38))
        said = None
        try:
            opt.step()
        except NotFiniteError as error:
            said = str(error)
        return said, cases.parameters(model), opt.stats()["skipped"]

    before = cases.parameters(mlp())
    results = run_local(SIZE, rank)
    for said, parameters, skipped in results:
        cases.equal(parameters, before)
        assert said == results[0][0] and skipped == (not_finite == "skip")
        if not_finite == "stop":
            assert "the sum over ranks: expected finite values, got inf at coordinate" in said


@pytest.mark.parametrize("name, compressed", PAIRS)
def test_denormals_are_ordinary_values(name, compressed):
    results = run(name, compressed, ("0.weight", slice(None), 1e-41))
    for parameters, _, *counts in results:
        assert counts == [STEPS, 0]
        assert all(p.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name, compressed", SOME)
def test_a_closure_is_called_once(name, compressed):
    def rank(comm):
        model, opt = make(comm, name, compressed, inner=lambda ps: torch.optim.SGD(ps, 0.1))
        calls, losses = [], []
        for step in range(STEPS):

            def closure(step=step):
                calls.append(step)
                opt.zero_grad()
                bad = ("0.bias", 0, float("nan")) if (step, comm.rank) == (BAD, ODD) else None
                backward(model, comm, step, bad)
                return float(step)

            losses.append(opt.step(closure))
        return calls, losses, opt.stats()["skipped"]

    losses = [float(step) if step != BAD else None for step in range(STEPS)]
    assert run_local(SIZE, rank) == [([*range(STEPS)], losses, 1)] * SIZE


def test_a_closure_that_is_called_again_with_gossip():
    def rank(comm):
        lbfgs = lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=3)  # noqa: E731
        model, opt = make(comm, "d-psgd", "none", inner=lbfgs)
        calls = []

        def closure():
            calls.append(1)
            opt.zero_grad()
            loss = loss_on(model, shard(comm.rank, comm.size))
            loss.backward()
            return loss

        first = loss_on(model, shard(comm.rank, comm.size)).item()
        assert opt.step(closure).item() == first
        return len(calls), loss_on(model, shard(comm.rank, comm.size)).item() < first

    assert run_local(2, rank) == [(3, True)] * 2


@pytest.mark.parametrize("name", ("allreduce", "d-psgd"))
def test_local_steps(name):
    """Ranks ask each other before every one, so that the others wait with theirs."""
    results = run(name, "none", ("0.bias", 0, float("nan")), local_steps=2)
    never = run(name, "none", None, leave_out=True, local_steps=2)
    for (parameters, _, *counts), (expected, *_) in zip(results, never, strict=True):
        assert counts == [STEPS - 1, 1]
        cases.equal(parameters, expected)


@pytest.mark.parametrize("name, compressed", SOME)
@pytest.mark.parametrize("not_finite", ("stop", "skip"))
def test_with_grad_scaler(name, compressed, not_finite):
    """Overflows count; with gossip and "stop" it is that rank's own affair, as without."""

    def rank(comm):
        model, opt = make(comm, name, compressed, not_finite=not_finite)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(STEPS):
            opt.zero_grad()
            loss = scaler.scale(loss_on(model, shard(comm.rank, SIZE, step)))
            (loss * float("inf") if (step, comm.rank) == (BAD, ODD) else loss).backward()
            scaler.step(opt)
            scaler.update()
        finite = all(bool(p.isfinite().all()) for p in model.parameters())
        return finite, opt.stats()["steps"], opt.stats()["skipped"]

    results = run_local(SIZE, rank)
    if not_finite == "stop" and not cases.averages_gradients(name):
        assert results == [(True, STEPS, int(r == ODD)) for r in range(SIZE)]
    else:
        assert results == [(True, STEPS - 1, 1)] * SIZE


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_a_rank_alone(name):
    [(parameters, state, *counts)] = run(name, "none", ("0.bias", 0, float("nan")), (0,), size=1)
    assert counts == [STEPS - 1, 1]
    assert all(t.isfinite().all() for t in parameters + state)


def test_sparse_gradients_and_none():
    def rank(comm):
        embedding = torch.nn.Embedding(6, 2, sparse=True)
        model = torch.nn.ModuleDict({"used": embedding, "unused": torch.nn.Linear(2, 2)})
        sgd = torch.optim.SGD(model.parameters(), 0.1)
        how = cases.algorithm("d-psgd")
        opt = distributed(model, comm, how, sgd, not_finite="skip")
        for step in range(3):
            opt.zero_grad()
            out = embedding(torch.tensor([step, comm.rank]))
            (out.sum() * (float("nan") if (step, comm.rank) == (1, 1) else 1.0)).backward()
            opt.step()
        return opt.stats()["steps"], opt.stats()["skipped"]

    assert run_local(2, rank) == [(2, 1)] * 2


@pytest.mark.parametrize("name", ("allreduce", "d-psgd"))
def test_with_gossip_it_costs_four_bytes_all_reduced_per_step(name):
    def rank(comm, not_finite):
        model, opt = make(comm, name, "none", not_finite=not_finite)
        cases.train(opt, model, STEPS)
        return opt.stats()["bytes_sent"]

    for skip, stop in zip(
        *(run_local(SIZE, lambda comm, how=how: rank(comm, how)) for how in ("skip", "stop")),
        strict=True,
    ):
        asked = 0 if cases.averages_gradients(name) else STEPS * all_reduce_nbytes(4, SIZE)
        assert skip - stop == asked


def test_the_choices():
    said = cases.messages(2, lambda comm: make(comm, "allreduce", "none", not_finite="ignore"))
    assert said == [(ValueError, "not_finite must be one of stop, skip, got 'ignore'")] * 2
    assert decentral.DistributedOptimizer.__init__.__kwdefaults__["not_finite"] == "stop"


def test_the_ranks_must_agree():
    def rank(comm):
        make(comm, "allreduce", "none", not_finite=("stop", "skip")[comm.rank])

    for kind, text in cases.messages(2, rank):
        assert kind is MismatchError and "not_finite: rank 1 got 'skip', rank 0 has 'stop'" in text
