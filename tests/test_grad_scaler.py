"""GradScaler: the scale does not change the training, and an overflow is skipped by all alike.

Scales are powers of two, so what is scaled and unscaled again is the same, bit for bit.
"""

import copy

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, shard

import decentral
from decentral.communicators import run_local

SIZE, ODD = 3, 1
STEPS, OVERFLOW = 6, 3  # of the data; OVERFLOW is the step at which one rank's gradient is inf
SCALE = 1024.0


@pytest.fixture(scope="module", autouse=True)
def _torch_patches_the_class_once():
    """Torch wraps step() of a class when the first object is made, which threads may do twice."""
    run_local(1, lambda comm: distributed(mlp(), comm))


def new_scaler():
    return torch.amp.GradScaler("cpu", init_scale=SCALE)


def make(comm, name, compressed):
    model = mlp()
    how = cases.algorithm(name, compressed)
    inner = torch.optim.SGD(model.parameters(), 0.05)
    return model, distributed(model, comm, how, inner, bucket_cap_mb=cases.TINY_MB)


def backward(model, comm, step, scaler=None, overflow=False):
    loss = loss_on(model, shard(comm.rank, comm.size, step))
    if overflow:
        loss = loss * float("inf")
    (loss if scaler is None else scaler.scale(loss)).backward()


def finish(model, opt, scaler, unscale=False):
    """Clip, if gradients are unscaled, step and update; without a scaler as well."""
    if unscale:
        if scaler is not None:
            scaler.unscale_(opt)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    if scaler is None:
        opt.step()
    else:
        scaler.step(opt)
        scaler.update()


def result(model, opt, scaler=None):
    state = [t for t in tensors_in(opt.state_dict()["decentral"]["state"])]
    scale = None if scaler is None else scaler.get_scale()
    return cases.parameters(model), state, scale, opt.stats()["steps"]


def tensors_in(state):
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    if isinstance(state, dict):  # in an order that does not depend on which bucket came first
        return [t for key in sorted(state, key=str) for t in tensors_in(state[key])]
    return [t for part in state for t in tensors_in(part)] if isinstance(state, list) else []


AVERAGING = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce", "ef-signsgd"),
    ("allreduce", "intsgd"),
    ("allreduce", "heuristic-intsgd"),
    ("intdiana", "intsgd"),
]
GOSSIP = [("d-psgd", "none"), ("ecd-psgd", "nuqsgd")]


@pytest.mark.parametrize("unscale", (False, True))
@pytest.mark.parametrize(
    "name, compressed", [p for p in AVERAGING if p[1] != "intsgd"] + GOSSIP
)  # intsgd's eps counts in the gradients' unit
def test_the_scale_does_not_change_the_training(name, compressed, unscale):
    def run(with_scaler):
        def rank(comm):
            model, opt = make(comm, name, compressed)
            scaler = new_scaler() if with_scaler else None
            for step in range(STEPS):
                opt.zero_grad()
                backward(model, comm, step, scaler)
                finish(model, opt, scaler, unscale)
            return cases.parameters(model)

        return run_local(SIZE, rank)

    equal(run(True), run(False))


def averaged_run(name, compressed, unscale, overflow):
    """Train with one rank's overflow at a step, or without that step, the scale being halved."""

    def rank(comm):
        model, opt = make(comm, name, compressed)
        scaler = new_scaler()
        before = None
        for step in range(STEPS):
            if step == OVERFLOW and not overflow:
                scaler.update(scaler.get_scale() / 2)
                continue
            bad = step == OVERFLOW
            before = cases.parameters(model)
            opt.zero_grad()
            backward(model, comm, step, scaler, bad and comm.rank == ODD)
            finish(model, opt, scaler, unscale)
            moved = not torch.equal(before[0], model[0].weight)
            assert moved != bad, f"step {step}: moved {moved}"
        return result(model, opt, scaler)

    return run_local(SIZE, rank)


@pytest.mark.parametrize("unscale", (False, True))
@pytest.mark.parametrize("name, compressed", AVERAGING)
def test_one_rank_s_overflow_is_a_step_that_never_was(name, compressed, unscale):
    """On all ranks: parameters, scales, steps, and what algorithm and compressor keep."""
    skipped = averaged_run(name, compressed, unscale, overflow=True)
    assert [(scale, steps) for _, _, scale, steps in skipped] == [(SCALE / 2, STEPS - 1)] * SIZE
    for parameters, state, _, _ in skipped:
        equal(parameters, skipped[0][0])
        assert all(t.isfinite().all() for t in parameters + state)
    never = averaged_run(name, compressed, unscale, overflow=False)
    for (parameters, state, _, _), (expected, kept, _, _) in zip(skipped, never, strict=True):
        equal(parameters, expected)
        equal(state, kept)


@pytest.mark.parametrize("name, compressed", AVERAGING)
def test_a_checkpoint_after_a_skipped_step_resumes_the_unbroken_run(name, compressed):
    def run(resume):
        def rank(comm):
            model, opt = make(comm, name, compressed)
            scaler = new_scaler()
            for step in range(STEPS):
                bad = step == OVERFLOW and comm.rank == ODD
                opt.zero_grad()
                backward(model, comm, step, scaler, bad)
                finish(model, opt, scaler)
                if step == OVERFLOW and resume:
                    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
                    model, opt = make(comm, name, compressed)
                    model.load_state_dict(saved[0])
                    opt.load_state_dict(saved[1])
            return result(model, opt, scaler)

        return run_local(SIZE, rank)

    equal([r[0] + r[1] for r in run(resume=True)], [r[0] + r[1] for r in run(resume=False)])


@pytest.mark.parametrize("unscale", (False, True))
@pytest.mark.parametrize("name, compressed", GOSSIP)
def test_with_gossip_only_the_rank_of_the_overflow_skips_its_update(name, compressed, unscale):
    """It mixes and sends all the same, as with a gradient of zero."""

    def run(with_scaler):
        def rank(comm):
            model, opt = make(comm, name, compressed)
            scaler = new_scaler() if with_scaler else None
            for step in range(STEPS):
                bad = step == OVERFLOW and comm.rank == ODD
                opt.zero_grad()
                if with_scaler or not bad:
                    backward(model, comm, step, scaler, bad)
                else:
                    for p in model.parameters():
                        p.grad = torch.zeros_like(p)
                finish(model, opt, scaler, unscale)
            return result(model, opt, scaler)

        return run_local(SIZE, rank)

    for r, (skipped, zero) in enumerate(zip(run(True), run(False), strict=True)):
        equal(skipped[0], zero[0])
        equal(skipped[1], zero[1])
        assert skipped[2] == (SCALE / 2 if r == ODD else SCALE)
        assert skipped[3] == zero[3] == STEPS


@pytest.mark.parametrize("unscale", (False, True))
@pytest.mark.parametrize("name, compressed", [("allreduce", "none"), ("ecd-psgd", "none")])
def test_accumulation(name, compressed, unscale):
    """Two batches inside no_sync() and one outside are three batches, scaled or not."""

    def run(with_scaler):
        def rank(comm):
            model, opt = make(comm, name, compressed)
            scaler = new_scaler() if with_scaler else None
            for step in range(0, STEPS, 3):
                opt.zero_grad()
                with opt.no_sync():
                    backward(model, comm, step, scaler)
                    backward(model, comm, step + 1, scaler)
                backward(model, comm, step + 2, scaler)
                finish(model, opt, scaler, unscale)
            return cases.parameters(model)

        return run_local(SIZE, rank)

    equal(run(True), run(False))


@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "intsgd"))
def test_an_overflow_while_accumulating(compressed):
    """Inside no_sync() only its rank knows; when the sum is averaged all do, and skip."""

    def rank(comm):
        model, opt = make(comm, "allreduce", compressed)
        scaler = new_scaler()
        before = cases.parameters(model)
        for bad in (True, False):
            opt.zero_grad()
            with opt.no_sync():
                backward(model, comm, 0, scaler, bad and comm.rank == ODD)
            backward(model, comm, 1, scaler)
            finish(model, opt, scaler)
            assert torch.equal(before[0], model[0].weight) == bad
        return cases.parameters(model), scaler.get_scale()

    for parameters, scale in (results := run_local(SIZE, rank)):
        equal(parameters, results[0][0])
        assert scale == SCALE / 2


@pytest.mark.parametrize("unscale", (False, True))
def test_every_backward_inside_no_sync_is_refused(unscale):
    """GradScaler looks before step() averages: ranks would skip, and scale, each on its own."""

    def rank(comm):
        model, opt = make(comm, "allreduce", "none")
        scaler = new_scaler()
        with opt.no_sync():
            backward(model, comm, 0, scaler)
        with pytest.raises(RuntimeError, match=r"last backward\(\) of a step outside no_sync\(\)"):
            finish(model, opt, scaler, unscale)
        return True

    assert run_local(SIZE, rank) == [True] * SIZE


def test_alone_an_overflow_is_skipped_too():
    def rank(comm):
        model, opt = make(comm, "allreduce", "none")
        scaler = new_scaler()
        backward(model, comm, 0, scaler, overflow=True)
        finish(model, opt, scaler)
        return cases.parameters(model), scaler.get_scale(), opt.stats()["steps"]

    [(parameters, scale, steps)] = run_local(1, rank)
    equal(parameters, cases.parameters(mlp()))
    assert scale == SCALE / 2 and steps == 0


@pytest.mark.parametrize("name", decentral.algorithms.available())
def test_grad_scaler_round(name):
    """Scaled backward, unscale, clip, step, update; finite, so the step is taken."""

    def step(model, opt, data):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(loss_on(model, data)).backward()
        scaler.unscale_(opt)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scaler.step(opt)
        scaler.update()
        return float(norm), scaler.get_scale(), cases.parameters(model)

    def rank(comm):
        opt = distributed(model := mlp(), comm, cases.algorithm(name))
        return step(model, opt, shard(comm.rank, SIZE))

    results = run_local(SIZE, rank)
    at_once = cases.MIXED_AFTER.get(name, 0.0)
    local = []
    for r, (norm, scale, _) in enumerate(results):
        model = mlp()
        data = cases.batch(SIZE) if cases.averages_gradients(name) else shard(r, SIZE)
        expected = step(model, torch.optim.SGD(model.parameters(), 0.1), data)
        assert norm == pytest.approx(expected[0], rel=1e-4) and norm > 0.05 and scale == SCALE
        local.append(expected[2])
    means = [
        sum(parts) / SIZE for parts in zip(*local, strict=True)
    ]  # as W of a ring of three has it
    for (_, _, after), own in zip(results, local, strict=True):
        close(after, [x + at_once * (m - x) for x, m in zip(own, means, strict=True)])
