"""A run that was saved and resumed is the unbroken run, bit for bit, on every rank."""

import copy
import functools
import io

import optimizer_cases as cases
import pytest
import torch
from optimizer_cases import distributed, equal, mlp, mlp_with_batch_norm, on_ranks

SIZE = 3
PAIRS = cases.accepted_pairs()


def start(comm, name, compressed, model_seed=0, cap=cases.TINY_MB):
    model = mlp_with_batch_norm(model_seed)
    inner = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    how = cases.algorithm(name, compressed)
    return model, distributed(model, comm, how, inner, seed=11, bucket_cap_mb=cap)


def saved(model, opt):
    """Return what a checkpoint file of this rank would hold."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, file)
    return file.getvalue()


def load(model, opt, data):
    checkpoint = torch.load(io.BytesIO(data), weights_only=True)
    model.load_state_dict(checkpoint["model"])
    opt.load_state_dict(checkpoint["optimizer"])


def everything(model, opt):
    """Return all that a later step depends on, and how much has been done and sent."""
    state = opt.state_dict()
    momenta = [state["state"][k]["momentum_buffer"] for k in sorted(state["state"])]
    tensors = [*model.state_dict().values(), *momenta, *tensors_in(state["decentral"]["state"])]
    figures = opt.stats()
    return [t.clone() for t in tensors], (figures["steps"], figures["bytes_sent"])


def tensors_in(state):
    """Return the tensors, and numbers as tensors, of nested dicts and lists, in a fixed order."""
    if isinstance(state, dict):
        state = [state[name] for name in sorted(state)]
    if isinstance(state, list):
        return [t for part in state for t in tensors_in(part)]
    return [torch.as_tensor(state)]


@functools.cache
def unbroken(name, compressed, size=SIZE, steps=10):
    def rank(comm):
        model, opt = start(comm, name, compressed)
        cases.train(opt, model, steps)
        return everything(model, opt)

    return on_ranks(size, rank)


def test_the_registries_are_all_here():
    names, compressed = map(set, zip(*PAIRS, strict=True))
    assert names == set(cases.decentral.algorithms.available())
    assert compressed == set(cases.decentral.compressors.available())


@pytest.mark.parametrize("size", (1, SIZE))
@pytest.mark.parametrize("name, compressed", PAIRS)
def test_resuming_is_going_on(name, compressed, size):
    def first_half(comm):
        model, opt = start(comm, name, compressed)
        cases.train(opt, model, steps=5)
        return saved(model, opt)

    files = on_ranks(size, first_half)

    def second_half(comm):
        # Another job: nothing is left of the first, and the model starts from other numbers.
        model, opt = start(comm, name, compressed, model_seed=99)
        load(model, opt, files[comm.rank])
        cases.train(opt, model, steps=5, first=5)
        return everything(model, opt)

    resumed, expected = on_ranks(size, second_half), unbroken(name, compressed, size)
    for (tensors, done), (wanted, sent) in zip(resumed, expected, strict=True):
        equal(tensors, wanted)
        assert done == sent and done[0] == 10
    if (
        not cases.averages_gradients(name) and size > 1
    ):  # then ranks differ, and each must have had its own file
        assert not torch.equal(expected[0][0][0], expected[1][0][0])


@pytest.mark.parametrize("name, compressed", PAIRS)
def test_loading_into_an_optimizer_that_has_stepped(name, compressed):
    """What it had under way is completed and thrown away; the ranks stay in step."""

    def rank(comm):
        model, opt = start(comm, name, compressed)
        cases.train(opt, model, steps=3)
        data = saved(model, opt)
        cases.train(
            opt, model, steps=4, first=50
        )  # a detour, with an exchange under way at its end
        load(model, opt, data)
        cases.train(opt, model, steps=2, first=3)
        return everything(model, opt)

    for (tensors, done), (expected, sent) in zip(
        on_ranks(SIZE, rank), unbroken(name, compressed, steps=5), strict=True
    ):
        equal(tensors, expected)
        assert done == sent and done[0] == 5


@pytest.mark.parametrize("who", (range(SIZE), (1,)), ids=("all ranks", "rank 1"))
@pytest.mark.parametrize("name, compressed", PAIRS)
def test_state_dict_does_not_disturb_training(name, compressed, who):
    """It collects the exchange under way, which the next step must then not wait for again."""

    def rank(comm):
        model, opt = start(comm, name, compressed)
        for step in range(10):
            cases.train(opt, model, steps=1, first=step)
            if comm.rank in who:
                opt.state_dict()
                opt.state_dict()
        return everything(model, opt)

    for (tensors, _), (expected, _) in zip(
        on_ranks(SIZE, rank), unbroken(name, compressed), strict=True
    ):
        equal(tensors, expected)


@pytest.mark.parametrize("name, compressed", PAIRS)
def test_what_was_saved_stays_as_it_was(name, compressed):
    """The state of the algorithm is a copy: later steps, before it is written, must not show."""

    def rank(comm):
        model, opt = start(comm, name, compressed)
        cases.train(opt, model, steps=2)
        state = opt.state_dict()["decentral"]
        before = copy.deepcopy(state)
        cases.train(opt, model, steps=2, first=2)
        return before, state

    for before, after in on_ranks(SIZE, rank):
        assert before["steps"] == after["steps"] == 2
        assert before["state"].keys() == after["state"].keys()
        for key in before["state"]:
            equal(after["state"][key], before["state"][key])


def test_what_was_loaded_is_a_copy_too():
    def rank(comm):
        model, opt = start(comm, "ecd-psgd", "nuqsgd")
        cases.train(opt, model, steps=2)
        state = copy.deepcopy(opt.state_dict())
        kept = copy.deepcopy(state["decentral"])
        opt.load_state_dict(state)
        assert "decentral" in state  # the caller's dict is not taken apart
        cases.train(opt, model, steps=2, first=2)
        for key in ("S", "xt"):
            equal(state["decentral"]["state"][key], kept["state"][key])

    on_ranks(SIZE, rank)


def test_the_inner_optimizer_s_state_is_where_torch_has_it():
    def rank(comm):
        model, opt = start(comm, "ecd-psgd", "nuqsgd")
        cases.train(opt, model, steps=1)
        state = opt.state_dict()
        inner = opt.optimizer.state_dict()
        assert set(state) == {"state", "param_groups", "decentral"}
        assert state["param_groups"] == inner["param_groups"]
        assert state["state"].keys() == inner["state"].keys()
        ours = state["decentral"]
        assert (ours["rank"], ours["size"], ours["steps"]) == (comm.rank, comm.size, 1)

    on_ranks(2, rank)


def refused(state, size=2, name="ecd-psgd", compressed="nuqsgd"):
    """Return what load_state_dict says on each rank; it must leave the optimizer as it was."""

    def rank(comm):
        model, opt = start(comm, name, compressed)
        cases.train(opt, model, steps=1)
        before = copy.deepcopy(opt.state_dict())
        try:
            opt.load_state_dict(state)
        except ValueError as error:
            after = opt.state_dict()
            assert after["param_groups"] == before["param_groups"]
            assert after["decentral"]["steps"] == 1
            for key, tensors in before["decentral"]["state"].items():
                equal(after["decentral"]["state"][key], tensors)
            return str(error)
        return None

    return on_ranks(size, rank)


def states(size, name="ecd-psgd", compressed="nuqsgd"):
    def rank(comm):
        model, opt = start(comm, name, compressed)
        cases.train(opt, model, steps=2)
        opt.param_groups[0]["lr"] = 0.77  # to see whether it is taken over
        return copy.deepcopy(opt.state_dict())

    return on_ranks(size, rank)


def test_a_plain_optimizer_s_state_is_refused():
    model = mlp()
    plain = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict()
    for said in refused(plain):
        assert said.startswith('state_dict has no entry "decentral": expected one of Distributed')
        assert said.endswith("Load a plain optimizer's into the optimizer before wrapping it")


def test_another_rank_s_state_is_refused():
    of_rank_1 = states(2)[1]
    for said in refused(of_rank_1):  # on rank 1 too, which would otherwise go on alone
        assert said.startswith("rank 0: state_dict: rank is 1, expected 0; resume with the same")


def test_another_size_s_state_is_refused():
    for said in refused(states(3)[0]):
        assert said.startswith("rank 0: state_dict: algorithm is ECDPSGD(topology=Ring(3)")
        assert "expected ECDPSGD(topology=Ring(2)" in said


@pytest.mark.parametrize(
    "name, compressed, got",
    [
        ("allreduce", "nuqsgd", "algorithm is AllReduce(compressor=NUQSGD("),
        ("ecd-psgd", "qsgd", "algorithm is ECDPSGD(topology=Ring(2), compressor=QSGD("),
    ],
)
def test_another_algorithm_s_state_is_refused(name, compressed, got):
    expected = "expected ECDPSGD(topology=Ring(2), compressor=NUQSGD("
    for said in refused(states(2, name, compressed)[0]):
        assert got in said and expected in said and "resume with the same model" in said


@pytest.mark.parametrize("changed", ({"seed": 12}, {"buckets": [1, 2]}))
def test_another_seed_or_other_buckets_are_refused(changed):
    state = states(2)[0]
    state["decentral"] |= changed
    for said in refused(state):
        assert f"{next(iter(changed))} is" in said


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_files_of_different_steps_are_found_out(name):
    """As a job leaves them that was killed while it saved."""

    def save(comm):
        model, opt = start(comm, name, "nuqsgd")
        files = []
        for step in range(0, 4, 2):
            cases.train(opt, model, steps=2, first=step)
            files.append(copy.deepcopy(opt.state_dict()))
        return files

    files = on_ranks(2, save)

    def resume(comm):
        model, opt = start(comm, name, "nuqsgd")
        opt.load_state_dict(files[comm.rank][comm.rank])  # rank 0's older, rank 1's newer one
        cases.train(opt, model, steps=2)

    expected = "the step to resume from: rank 1 got 4, rank 0 has 2"
    with pytest.raises(ValueError, match=expected):
        on_ranks(2, resume)


def test_a_state_of_the_same_kind_is_taken():
    """So that the refusals above refuse for their reason."""

    def rank(comm):
        _, opt = start(comm, "ecd-psgd", "nuqsgd")
        opt.load_state_dict(mine[comm.rank])
        return opt.param_groups[0]["lr"], opt.stats()["steps"]

    mine = states(2)
    assert on_ranks(2, rank) == [(0.77, 2)] * 2
