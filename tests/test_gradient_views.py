"""Where gradients lie after backward(), whatever clears them."""

import copy
import io

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import close, distributed, equal, loss_on, mlp, on_ranks, shard
from torch import nn

SIZE = 2


def storages(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


def placed_by_autograd(model):
    """Return where autograd puts gradients: a dictionary that backward() fills in."""
    places = {}

    def hook(p):
        places[p] = p.grad.data_ptr()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)  # before the optimizer's, so that it runs first
    return places


@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "intsgd"))
def test_in_a_common_bucket_gradients_lie_end_to_end(compressed):
    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("allreduce", compressed), bucket_cap_mb=25.0)
        places = []
        for step in range(3):
            opt.zero_grad()
            loss_on(model, shard(comm.rank, SIZE, step)).backward()
            gradients = [p.grad for p in reversed(list(model.parameters()))]
            assert len(storages(gradients)) == 1
            places.append([g.data_ptr() for g in gradients])
            opt.step()
        assert places == [places[0]] * 3  # in every step the same
        starts = [0]
        for p in reversed(list(model.parameters())):
            starts.append(starts[-1] + 4 * p.numel())
        assert [place - places[0][0] for place in places[0]] == starts[:-1]

    on_ranks(SIZE, rank)


@pytest.mark.parametrize("to_none", (True, False))
@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "intsgd"))
def test_alone_in_its_buckets_a_gradient_stays_where_it_is(compressed, to_none):
    def rank(comm):
        model = mlp()
        places = placed_by_autograd(model)
        how = cases.algorithm("allreduce", compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
        before = {}
        for step in range(3):
            opt.zero_grad(set_to_none=to_none)
            loss_on(model, shard(comm.rank, SIZE, step)).backward()
            assert places == {p: p.grad.data_ptr() for p in model.parameters()}
            if step:  # what was there is let go only now
                assert all((places[p] != before[p]) == to_none for p in places)
            before = dict(places)
            opt.step()

    on_ranks(SIZE, rank)


class Added(nn.Module):
    """Autograd hands both parameters the same memory for their gradients."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2, 6)), nn.Parameter(torch.ones(3, 4))

    def forward(self, x):
        return (self.a.view(12) + self.b.view(12)) * x


@pytest.mark.parametrize("compressed", ("none", "nuqsgd"))
def test_gradients_in_the_same_memory_get_one_each(compressed):
    x = torch.arange(12.0)
    alone = Added()
    alone(x).sum().backward()
    assert alone.a.grad.data_ptr() == alone.b.grad.data_ptr()  # else this tests nothing

    def rank(comm):
        model = Added()
        how = cases.algorithm("allreduce", compressed)
        opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
        model(x * (1 + 2 * comm.rank)).sum().backward()
        assert model.a.grad.data_ptr() != model.b.grad.data_ptr()
        means = [p.grad.clone() for p in (model.a, model.b)]
        opt.step()
        return means

    for a, b in on_ranks(SIZE, rank):
        if compressed == "none":
            assert torch.equal(a.flatten(), 2 * x) and torch.equal(b.flatten(), 2 * x)
        assert a.isfinite().all() and b.isfinite().all()


def test_with_gossip_the_parameters_do():
    def rank(comm):
        model = mlp()
        cases.train(distributed(model, comm, cases.algorithm("ecd-psgd")), model, steps=2)
        assert len(storages(p.data for p in model.parameters())) == 1
        assert len(storages(p.grad for p in model.parameters())) > 1
        assert all(p.is_leaf for p in model.parameters())

    on_ranks(SIZE, rank)


def test_gradients_of_other_dtypes_are_their_own():
    def rank(comm):
        model = mlp().double()
        opt = distributed(model, comm)
        x, y = shard(comm.rank, SIZE)
        loss_on(model, (x.double(), y.double())).backward()
        assert {p.grad.dtype for p in model.parameters()} == {torch.float64}
        assert len(storages(p.grad for p in model.parameters())) == 4
        opt.step()

    on_ranks(SIZE, rank)


@pytest.mark.parametrize("name", ("allreduce", "d-psgd"))
def test_a_wrapped_model_may_be_copied_and_saved_whole(name):
    """As for a moving average of the weights, or with torch.save(model)."""

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm(name))
        cases.train(opt, model, steps=2)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
        expected = cases.parameters(model)
        cases.train(opt, model, steps=1, first=2)
        for other in copies:
            equal(cases.parameters(other), expected)
            loss_on(other, shard(comm.rank, SIZE)).backward()  # sends nothing
        return True

    assert on_ranks(SIZE, rank) == [True] * SIZE


CLEARINGS = {
    "opt, to None": lambda opt, model: opt.zero_grad(),
    "opt, to zeros": lambda opt, model: opt.zero_grad(set_to_none=False),
    "model, to zeros": lambda opt, model: model.zero_grad(set_to_none=False),
    "inner, to None": lambda opt, model: opt.optimizer.zero_grad(),
    "by hand": lambda opt, model: [
        p.grad.zero_() for p in model.parameters() if p.grad is not None
    ],
}


@pytest.mark.parametrize("clearing", CLEARINGS)
@pytest.mark.parametrize("compressed", ("none", "ef-signsgd"))
def test_whoever_clears_the_gradients_the_training_is_the_same(compressed, clearing):
    def run(clear):
        def rank(comm):
            model = mlp()
            how = cases.algorithm("allreduce", compressed)
            opt = distributed(model, comm, how, bucket_cap_mb=cases.TINY_MB)
            for step in range(4):
                clear(opt, model)
                loss_on(model, shard(comm.rank, SIZE, step)).backward()
                opt.step()
            return cases.parameters(model)

        return on_ranks(SIZE, rank)

    equal(run(CLEARINGS[clearing]), run(lambda opt, model: model.zero_grad()))


class Images(nn.Module):
    """Convolutions, one of them of single pixels, and a bias that is no image."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(72, 3)
        )
        cases.refill(self, 0)

    def forward(self, x):
        return self.layers(x)


def images(rank):
    rng = torch.Generator().manual_seed(rank)
    return torch.randn(4, 3, 5, 5, generator=rng), torch.randn(4, 3, generator=rng)


def trained_on_images(name, compressed, memory_format):
    def rank(comm):
        model = Images().to(memory_format=memory_format)
        strides = [p.stride() for p in model.parameters()]
        how = cases.algorithm(name, compressed)
        sgd = torch.optim.SGD(model.parameters(), 0.01)
        opt = distributed(model, comm, how, sgd, bucket_cap_mb=cases.TINY_MB)
        x, y = images(comm.rank)
        for _ in range(3):
            opt.zero_grad()
            loss_on(model, (x.contiguous(memory_format=memory_format), y)).backward()
            opt.step()
        assert [p.stride() for p in model.parameters()] == strides
        if cases.averages_gradients(name):
            assert [p.grad.stride() for p in model.parameters()] == strides
        return cases.parameters(model)

    return on_ranks(SIZE, rank)


@pytest.mark.parametrize(
    "name, compressed", [("allreduce", "none"), ("d-psgd", "none"), ("ecd-psgd", "none")]
)
def test_channels_last_gives_the_same(name, compressed):
    first, last = (
        trained_on_images(name, compressed, f)
        for f in (torch.contiguous_format, torch.channels_last)
    )
    for rank_first, rank_last in zip(first, last, strict=True):
        close(rank_last, rank_first, tolerance=1e-5)
    assert (first[0][0] - Images().layers[0].weight).abs().max() > 1e-3


def test_ranks_must_have_one_layout():
    def rank(comm):
        model = Images()
        distributed(model.to(memory_format=torch.channels_last) if comm.rank else model, comm)

    said = cases.messages(SIZE, rank)
    expected = "the memory layout of 'layers.0.weight': rank 1 got (27, 1, 9, 3), rank 0 has (27, 9"
    assert [kind for kind, _ in said] == [cases.decentral.MismatchError] * SIZE
    assert all(expected in text for _, text in said)
