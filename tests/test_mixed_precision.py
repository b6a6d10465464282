"""Half-precision parameters: gradients travel as float32 and come back in their dtype."""

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, on_ranks, shard
from torch import nn

SIZE = 3
HALF = (torch.bfloat16, torch.float16)
HOW = [
    ("allreduce", "none"),
    ("allreduce", "nuqsgd"),
    ("allreduce", "intsgd"),
    ("ecd-psgd", "nuqsgd"),
    ("d-psgd", "none"),
]


def data(rank, dtype, step=0):
    return tuple(t.to(dtype) for t in shard(rank, SIZE, step))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name, compressed", HOW)
def test_it_learns_and_stays_half(name, compressed, dtype):
    def rank(comm):
        model = mlp().to(dtype)
        opt = distributed(model, comm, cases.algorithm(name, compressed))
        for _ in range(60):
            opt.zero_grad()
            loss_on(model, data(comm.rank, dtype)).backward()
            opt.step()
        assert {t.dtype for p in model.parameters() for t in (p, p.grad)} == {dtype}
        with opt.averaged(), torch.no_grad():
            return float(loss_on(model.float(), cases.batch(SIZE)))

    with torch.no_grad():
        before = float(loss_on(mlp(), cases.batch(SIZE)))
    for loss in on_ranks(SIZE, rank):
        assert loss < 0.6 * before


@pytest.mark.parametrize("cap", (25.0, cases.TINY_MB))
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_mean_is_taken_in_float32_and_rounded_once(dtype, cap):
    def local(rank):
        model = mlp().to(dtype)
        loss_on(model, data(rank, dtype)).backward()
        return cases.gradients(model)

    def rank(comm):
        model = mlp().to(dtype)
        _opt = distributed(model, comm, bucket_cap_mb=cap)
        loss_on(model, data(comm.rank, dtype)).backward()
        return cases.gradients(model)

    gradients = list(zip(*map(local, range(SIZE)), strict=True))
    expected = [((a.float() + b.float() + c.float()) / SIZE).to(dtype) for a, b, c in gradients]
    in_half = [(a + b + c) / SIZE for a, b, c in gradients]
    assert not all(map(torch.equal, in_half, expected))  # or the test would show nothing
    for means in on_ranks(SIZE, rank):
        equal(means, expected)


def test_a_model_of_several_dtypes():
    """Layers that are kept in float32, as norms often are, share buckets with the others."""

    def make():
        model = mlp()
        model[0].to(torch.bfloat16)
        return model

    def forward(model, x):
        return model[2](model[1](model[0](x.to(torch.bfloat16))).float())

    def rank(comm):
        model = make()
        _opt = distributed(model, comm)
        x, y = shard(comm.rank, SIZE)
        nn.functional.mse_loss(forward(model, x), y).backward()
        return cases.gradients(model)

    def local(r):
        model = make()
        x, y = shard(r, SIZE)
        nn.functional.mse_loss(forward(model, x), y).backward()
        return cases.gradients(model)

    gradients = zip(*map(local, range(SIZE)), strict=True)
    expected = [sum(g.float() for g in gs) / SIZE for gs in gradients]
    for means in on_ranks(SIZE, rank):
        assert [g.dtype for g in means] == [torch.bfloat16] * 2 + [torch.float32] * 2
        for mean, exact in zip(means, expected, strict=True):
            close(mean, exact.to(mean.dtype))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_leaves_float32_gradients_to_average(dtype):
    """The usual way to train in half precision: the parameters stay float32."""

    def gradients(model, batch):
        x, y = batch
        with torch.autocast("cpu", dtype):
            loss = nn.functional.mse_loss(model(x).float(), y)
        loss.backward()
        return cases.gradients(model)

    def rank(comm):
        model = mlp()
        _opt = distributed(model, comm)
        return gradients(model, shard(comm.rank, SIZE))

    own = [gradients(mlp(), shard(r, SIZE)) for r in range(SIZE)]
    expected = [sum(gs) / SIZE for gs in zip(*own, strict=True)]
    for means in on_ranks(SIZE, rank):
        assert {g.dtype for g in means} == {torch.float32}
        close(means, expected)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", (2, 3))
def test_clipping_sees_the_mean(dtype, size):
    limit = 0.05

    def rank(comm):
        model = mlp().to(dtype)
        _opt = distributed(model, comm)
        x, y = (t.to(dtype) for t in shard(comm.rank, size))
        loss_on(model, (x, y)).backward()
        mean = [g.float() for g in cases.gradients(model)]
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        return mean, float(norm), [g.float() for g in cases.gradients(model)]

    for mean, norm, clipped in on_ranks(size, rank):
        true = float(torch.cat([g.flatten() for g in mean]).norm())
        assert norm == pytest.approx(true, rel=0.02) and norm > 2 * limit
        for before, after in zip(mean, clipped, strict=True):
            torch.testing.assert_close(after, before * limit / true, rtol=0.03, atol=1e-3)
