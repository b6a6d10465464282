"""check_every: what ranks have in common, compared; who differs is named on all ranks."""

import numpy as np
import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, mlp

from decentral import InconsistentError, consistency
from decentral.communicators import run_local

SIZE, ODD = 5, 3
ESTIMATES = {"ecd-psgd": "xt", "choco-sgd": "xh", "dcd-psgd": None}  # None: x itself
SHARING = list(ESTIMATES)


def make(comm, name="allreduce", compressed="none", topology="ring", **options):
    model = mlp()
    how = cases.algorithm(name, compressed, topology)
    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.5)
    options = {"bucket_cap_mb": cases.TINY_MB, "check_every": 1} | options
    return model, how, distributed(model, comm, how, sgd, **options)


def complaints(size, function):
    """Return what each rank's function(comm) raises as InconsistentError; None for nothing."""

    def rank(comm):
        try:
            function(comm)
        except InconsistentError as error:
            return str(error)
        return None

    return run_local(size, rank)


def flip(vector, index, bit):
    """Flip a bit of one float32."""
    array = vector.detach().numpy().reshape(-1).view(np.uint32)
    array[index] ^= np.uint32(1 << bit)


# ---- replicas ---------------------------------------------------------------------------------


def corrupted_replicas(comm, wrong, **options):
    """`wrong` is {rank: (parameter, by how much)}, after two steps of which nobody complains."""
    model, _, opt = make(comm, **options)
    cases.train(opt, model, steps=2)
    for name, much in wrong.get(comm.rank, ()):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[1] += much
    cases.train(opt, model, steps=1, first=2)


@pytest.mark.parametrize("parameter", cases.BUCKETS)
@pytest.mark.parametrize("compressed", ("none", "nuqsgd", "intsgd"))
def test_a_replica_that_differs_is_named_on_all_ranks(compressed, parameter):
    wrong = {ODD: [(parameter, 1e-3)]}
    said = complaints(SIZE, lambda comm: corrupted_replicas(comm, wrong, compressed=compressed))
    assert said == [said[0]] * SIZE
    assert said[0].startswith(f"after step 3 the parameters of rank {ODD} differ from those of ran")
    assert f"the first that does is {parameter!r}" in said[0]


WRONG = {
    "two of five": ({0: [("2.bias", 1e-3)], 2: [("0.bias", 1e-3)]}, 5, "ranks 0, 2", 1, "0.bias"),
    "two alike": ({0: [("2.bias", 1e-3)], 2: [("2.bias", 1e-3)]}, 5, "ranks 0, 2", 1, "2.bias"),
    "a tie": ({0: [("2.bias", 1e-3)]}, 2, "rank 1", 0, "2.bias"),
    "all": ({r: [("2.bias", r * 1e-3)] for r in range(3)}, 3, "ranks 1, 2", 0, "2.bias"),
}


@pytest.mark.parametrize("what", WRONG)
def test_who_is_right(what):
    """Most are; with a tie, rank 0."""
    wrong, size, odd, model, parameter = WRONG[what]
    said = complaints(size, lambda comm: corrupted_replicas(comm, wrong))
    assert said == [said[0]] * size
    assert f"the parameters of {odd} differ from those of rank {model}, expected" in said[0]
    assert f"{parameter!r}" in said[0]


@pytest.mark.parametrize("every, local_steps, expected", [(3, 1, 3), (2, 3, 3), (4, 3, 6)])
def test_it_is_found_at_the_first_exchange_after_so_many_steps(every, local_steps, expected):
    taken = {}

    def rank(comm):
        model, _, opt = make(comm, check_every=every, local_steps=local_steps)
        if comm.rank == ODD:
            flip(model[0].weight, 2, bit=20)
        for step in range(7):
            taken[comm.rank] = step + 1
            cases.train(opt, model, steps=1, first=step)

    said = complaints(SIZE, rank)
    assert all(f"after step {expected} the parameters of rank {ODD}" in text for text in said)
    assert taken == dict.fromkeys(range(SIZE), expected)


@pytest.mark.parametrize("local_steps", (1, 3))
@pytest.mark.parametrize("name, compressed", cases.accepted_pairs())
def test_without_a_difference_nobody_complains(name, compressed, local_steps):
    def rank(comm):
        model, _, opt = make(comm, name, compressed, local_steps=local_steps)
        cases.train(opt, model, steps=7)

    assert complaints(3, rank) == [None] * 3


@pytest.mark.parametrize("name, compressed", [("allreduce", "none"), ("ecd-psgd", "nuqsgd")])
def test_bytes_are_not_those_of_steps(name, compressed):
    def rank(comm, every):
        model, _, opt = make(comm, name, compressed, check_every=every, consensus_every=0)
        cases.train(opt, model, steps=4)
        return opt.stats()["bytes_sent"], opt.stats()["bytes_sent_averaging"]

    for (sent, apart), (same, nothing) in zip(
        run_local(SIZE, lambda c: rank(c, 2)), run_local(SIZE, lambda c: rank(c, 0)), strict=True
    ):
        assert sent == same and nothing == 0
        if name == "ecd-psgd":  # the estimates, to both neighbors, twice
            numel = sum(p.numel() for p in mlp().parameters())
            assert 2 * 2 * (4 * numel + 4 * 32) <= apart < 2 * 2 * (4 * numel + 4 * 32) + 200


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_a_rank_alone_has_nobody_to_differ_from(name):
    def rank(comm):
        model, _, opt = make(comm, name)
        cases.train(opt, model, steps=2)

    assert complaints(1, rank) == [None]


# ---- estimates that neighbors share -----------------------------------------------------------


def estimate_of(opt, how, b):
    """Return bucket b's estimate: what its neighbors know a rank by."""
    name = ESTIMATES[how.name]
    return opt._rounds.iterate()[b] if name is None else getattr(how, name)[b]


def compared(name, spoil, topology="ring", compressed="nuqsgd", size=SIZE):
    """Let spoil(optimizer, algorithm) loose on rank ODD after some steps, and compare."""

    def rank(comm):
        model, how, opt = make(comm, name, compressed, topology, check_every=4)
        cases.train(opt, model, steps=4)
        if comm.rank == ODD:
            spoil(opt, how)
        opt._upkeep.after(4)

    said = complaints(size, rank)
    assert said == [said[0]] * size
    return said[0]


def assert_named(text, b, ranks=f"rank {ODD}"):
    assert text.startswith(f"after exchange 4 the estimate of {ranks} that its neighbors share")
    assert f"in parameter {cases.BUCKETS[b]!r} (bucket {b})" in text


@pytest.mark.parametrize("bit", (23, 26, 29, 30))  # the exponent's: half or twice as large, or huge
@pytest.mark.parametrize("topology", ("ring", "complete"))
@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("b", (0, 3))
def test_a_flipped_bit_of_an_estimate(name, b, topology, bit):
    def spoil(opt, how):
        estimate = estimate_of(opt, how, b)
        flip(estimate, int(estimate.abs().argmax()), bit)

    assert_named(compared(name, spoil, topology), b)


@pytest.mark.parametrize("bit", (23, 26, 29, 30))
@pytest.mark.parametrize("name", SHARING)
def test_a_flipped_bit_of_a_sum(name, bit):
    def spoil(opt, how):
        flip(how.S[1], int(how.S[1].abs().argmax()), bit)

    assert_named(compared(name, spoil), 1)


@pytest.mark.parametrize("value", ("inf", "nan"))
@pytest.mark.parametrize("what", ("estimate", "sum"))
@pytest.mark.parametrize("name", SHARING)
def test_what_is_not_finite(name, what, value):
    def spoil(opt, how):
        (estimate_of(opt, how, 2) if what == "estimate" else how.S[2])[3] = float(value)

    assert_named(compared(name, spoil), 2)


def test_of_two_ranks_nobody_can_tell_which():
    def spoil(opt, how):
        estimate_of(opt, how, 0)[0] += 0.1

    def rank(comm):
        model, how, opt = make(comm, "ecd-psgd", "nuqsgd", check_every=4)
        cases.train(opt, model, steps=4)
        if comm.rank == 1:
            spoil(opt, how)
        opt._upkeep.after(4)

    for text in complaints(2, rank):
        assert_named(text, 0, "ranks 0, 1")


@pytest.mark.parametrize("name", SHARING)
def test_lost_messages(name):
    """Of one step, of one bucket, on one rank: S goes on as if they had never come."""

    def rank(comm):
        model, how, opt = make(comm, name, "nuqsgd", check_every=8, average_every=0)
        cases.train(opt, model, steps=3)
        opt.state_dict()  # returns when all messages are here
        before = how.S[2].clone()
        cases.train(opt, model, steps=1, first=3)
        opt.state_dict()
        if comm.rank == ODD:
            how.S[2].copy_(before)
        cases.train(opt, model, steps=4, first=4)

    said = complaints(SIZE, rank)
    assert said == [said[0]] * SIZE
    assert f"after exchange 8 the estimate of rank {ODD} that" in said[0]
    assert "(bucket 2)" in said[0]


@pytest.mark.parametrize("name", SHARING)
def test_honest_steps_are_not_told_apart(name, monkeypatch):
    """2,000, in which parameters shrink; not with a quarter of the tolerance either."""
    monkeypatch.setattr(consistency, "_DRIFT", consistency._DRIFT / 4)

    def rank(comm):
        model = torch.nn.Linear(30, 40)
        cases.refill(model, 0)
        rng = torch.Generator().manual_seed(comm.rank)
        sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        how = cases.algorithm(name, "nuqsgd")
        opt = distributed(model, comm, how, sgd, check_every=100, consensus_every=0)
        for _ in range(2000):
            for p in model.parameters():
                p.grad = p.detach() + 1e-3 * torch.randn(p.shape, generator=rng)
            opt.step()

    assert complaints(2, rank) == [None] * 2


@pytest.mark.parametrize("name", SHARING)
def test_parameters_that_are_rounded_to_bfloat16(name):
    """What dcd-psgd shares with its neighbors is not rounded."""

    def rank(comm):
        model = mlp().bfloat16()
        sgd = torch.optim.SGD(model.parameters(), 0.05)
        how = cases.algorithm(name, "nuqsgd")
        opt = distributed(model, comm, how, sgd, check_every=1)
        rng = torch.Generator().manual_seed(comm.rank)
        for _ in range(30):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=rng).bfloat16()
            opt.step()

    assert complaints(3, rank) == [None] * 3


@pytest.mark.parametrize("name", [n for n in cases.gossip() if n not in SHARING])
def test_without_estimates_there_is_nothing_to_compare(name):
    """What is sent is whole, so a mistake does not stay."""

    def rank(comm):
        model, _, opt = make(comm, name, consensus_every=0)
        cases.train(opt, model, steps=3)
        return opt.stats()["bytes_sent_averaging"]

    assert run_local(3, rank) == [0] * 3
