"""States as files: everything comes back as it was, and what is damaged is an error."""

import random
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path
from pickle import dumps

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from checkpoint_cases import same
from hypothesis import given, settings
from safetensors.torch import save_file

from decentral import states

DTYPES = sorted(states._DTYPES, key=str)
NUMPY = ("bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8")


def _some(dtype):
    """Return a vector of every value of a byte, as long as that makes it."""
    byte = torch.arange(256, dtype=torch.uint8)
    return byte % 2 == 1 if dtype is torch.bool else byte.view(dtype)


numbers = st.one_of(st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.booleans())
leaves = st.one_of(
    st.none(),
    numbers,
    st.text(),
    st.text(st.characters(categories=["Cs"])),  # halves of pairs, which no file could hold
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: st.sampled_from([(), (0,), (3,), (2, 0, 3), (2, 3)]).map(
            lambda shape: _some(dtype)[: int(np.prod(shape))].reshape(shape)
        )
    ),
    st.sampled_from(NUMPY).map(lambda kind: np.arange(6).astype(kind).reshape(2, 3)),
    st.sampled_from(NUMPY).map(lambda kind: np.arange(2).astype(kind)[1]),
)
keys = st.recursive(
    st.one_of(st.integers(), st.text(), st.none(), st.booleans()),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=3,
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


def through_a_file(tmp_path, state):
    path = tmp_path / "state.safetensors"
    states.write(path, state)
    return states.read(path)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_what_is_read_is_what_was_written(tmp_path_factory, state):
    assert same(through_a_file(tmp_path_factory.mktemp("state"), state), state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_bits_of_a_tensor(tmp_path, dtype):
    assert same(through_a_file(tmp_path, _some(dtype)), _some(dtype))


def test_integers_of_any_size_and_floats_bit_by_bit(tmp_path):
    nans = [float("nan"), -float("nan"), np.frombuffer(b"\1\2\3\0\0\0\xf8\x7f", "f8")[0].item()]
    state = [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**5000, -0.0, 5e-324, float("inf"), *nans]
    assert same(through_a_file(tmp_path, state), state)


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = [base, base, base[1], base.T, base[::2, 1::3], base.to(torch.complex64).conj()]
    state.append(state[-1].imag)  # a negative view
    found = through_a_file(tmp_path, state)
    assert same(found, [t.resolve_conj().resolve_neg() for t in state])
    found[0].zero_()
    assert found[1].count_nonzero()  # copies


def test_a_parameter_comes_back_as_a_tensor_that_needs_no_gradient(tmp_path):
    found = through_a_file(tmp_path, torch.nn.Parameter(torch.ones(3)))
    assert type(found) is torch.Tensor and not found.requires_grad


def test_the_state_outlives_its_file(tmp_path):
    found = through_a_file(tmp_path, torch.arange(5000))
    (tmp_path / "state.safetensors").write_bytes(b"")
    assert torch.equal(found, torch.arange(5000))


def test_modules_optimizers_schedules_and_generators(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    schedules = torch.optim.lr_scheduler
    generator = np.random.default_rng(1)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "steps": schedules.MultiStepLR(optimizer, [2, 2, 5]).state_dict(),
        "cycle": schedules.OneCycleLR(optimizer, 0.1, 10).state_dict(),
        "plateau": schedules.ReduceLROnPlateau(optimizer).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "generators": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
        "bits": generator.bit_generator.state,
    }
    found = through_a_file(tmp_path, state)
    assert same(found, state)
    assert type(found["steps"]["milestones"]) is Counter
    assert found["model"]._metadata["1"] == {"version": 2}
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (object(), "builtins.object"),
        (b"bytes", "builtins.bytes"),
        ({1, 2}, "builtins.set"),
        (1j, "builtins.complex"),
        (Pair(1, 2), r"\.Pair"),
        (torch.float32, "torch.dtype"),
        (torch.ones(2, dtype=torch.complex128), "tensor of torch.complex128"),
        (torch.eye(2).to_sparse(), "sparse_coo tensor"),
        (torch.ones(2, device="meta"), "on meta"),
        (np.array(["text"]), "NumPy array of another dtype"),
        (np.ones(2, ">f4"), "NumPy array of another dtype"),
        (np.longdouble(1), "NumPy array of another dtype"),
    ],
)
def test_anything_else_is_named_with_its_path(tmp_path, value, got):
    state = {"optimizer": {"state": [{3: (value,)}]}}
    with pytest.raises(
        TypeError, match=rf"^state\['optimizer'\]\['state'\]\[0\]\[3\]\[0\]: .*{got}"
    ):
        states.write(tmp_path / "file", state)


@pytest.mark.parametrize("key", [1.5, (1, 2.0), b"k"])
def test_keys_of_another_type_are_named(tmp_path, key):
    with pytest.raises(TypeError, match=r"^state\['a'\].*expected a dict key.*got (float|bytes)"):
        states.write(tmp_path / "file", {"a": {key: 1}})


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "file"
    states.write(path, {"a": [torch.arange(4), 1 << 70, 0.5], "b": (None, float("nan"))})
    whole = path.read_bytes()
    random.seed(0)
    for _ in range(300):
        data = bytearray(whole[: random.choice([len(whole), random.randrange(len(whole))])])
        for _ in range(random.randrange(3)):
            if data:
                data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(data)
        try:
            states.read(path)  # what is altered may still be a state; the checksum sees it
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "structure",
    [
        *("[[", '{"what": 1}', '{"tensor": "no"}', '{"dict": [1]}'),
        *('{"builtins.dict": []}', '{"int": "len([])"}'),  # would be code
    ],
)
def test_a_damaged_structure_is_an_error(tmp_path, structure, monkeypatch):
    monkeypatch.setattr(states.json, "dumps", lambda *_, **__: structure)
    states.write(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="file: damaged: "):
        states.read(tmp_path / "file")


class Intruder:
    """What touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickle_alone(value, path):
    path.write_bytes(dumps(value))


def pickle_as_the_structure(value, path):
    save_file({"structure": torch.frombuffer(bytearray(dumps(value)), dtype=torch.uint8)}, path)


@pytest.mark.parametrize("write", [torch.save, pickle_alone, pickle_as_the_structure])
def test_reading_a_file_that_holds_a_program_does_not_run_it(tmp_path, write):
    path, touched = tmp_path / "file", tmp_path / "touched"
    write({"a": Intruder(touched)}, path)
    with pytest.raises(ValueError, match="file: damaged: "):
        states.read(path)
    assert not touched.exists()
