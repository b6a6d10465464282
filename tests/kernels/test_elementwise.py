"""A formula's loop does what the formula does to arrays, bit for bit, and says what is finite."""

import numpy as np
import pytest
import torch

from decentral_kernels import set_num_threads
from decentral_kernels.elementwise import Elementwise, fma, in_turn
from decentral_kernels.threads import GRAIN


@Elementwise
def mixed(a, b, c, weight: float, other: float):
    a = a + ((c - b) * weight)
    return a, b * other - a


@Elementwise
def scaled(a, factor: float):
    return (factor * a,)


def vectors(numel, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(numel).astype(np.float32) for _ in range(3)]


@pytest.fixture(params=(1, 2))
def threads(request):
    set_num_threads(request.param)
    yield request.param
    set_num_threads(1)


@pytest.mark.parametrize("numel", (0, 1, 17, 1000, GRAIN, 2 * GRAIN, 2 * GRAIN + 1, 5 * GRAIN - 3))
def test_equals_the_formula(numel, threads):
    a, b, c = vectors(numel)
    expected = mixed.function(a, b, c, np.float32(0.3), np.float32(-2.7))
    unchanged = c.copy()
    assert mixed(a, b, c, 0.3, -2.7) is True
    assert a.tobytes() == expected[0].tobytes() and b.tobytes() == expected[1].tobytes()
    assert c.tobytes() == unchanged.tobytes()


def test_tensors_go_through_the_formula_themselves():
    """As on a GPU; what kind of tensor it is does not matter."""
    arrays = vectors(1000)
    tensors = [torch.from_numpy(v.copy()) for v in arrays]
    assert mixed(*tensors, 0.5, 2.0) and mixed(*arrays, 0.5, 2.0)
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.numpy().tobytes() == array.tobytes()
    tensors[0][7] = torch.nan
    assert not mixed(*tensors, 0.5, 2.0)


@pytest.mark.parametrize("kind", (np.asarray, torch.from_numpy), ids=("array", "tensor"))
def test_applied_again_and_again(kind, threads):
    a, b, c = vectors(3 * GRAIN)
    once = mixed.function(a, b, c, *np.float32([0.3, 2]))
    twice = mixed.function(*once, c, *np.float32([0.3, 2]))
    apply = mixed.on(*map(kind, (a, b, c)), 0.3, 2.0)
    assert apply() is True and apply() is True
    assert a.tobytes() == twice[0].tobytes() and b.tobytes() == twice[1].tobytes()
    c[-1] = np.inf
    assert apply() is False


@pytest.mark.parametrize("bad", (np.nan, -np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("where", (0, 3 * GRAIN - 1))
def test_says_when_what_it_wrote_is_not_finite(bad, where, threads):
    a, b, c = vectors(3 * GRAIN)
    b[where] = bad
    assert mixed(a, b, c, 1.0, 1.0) is False
    assert np.isfinite(np.delete(a, where)).all()


def test_a_result_that_overflows_is_not_finite_and_the_largest_number_is():
    top = np.full(40, np.finfo(np.float32).max)
    assert scaled(top.copy(), -1.0) is True
    assert scaled(top.copy(), 1.0001) is False


def test_numbers_are_rounded_to_float32_before_they_are_used():
    a = np.full(3, 3.0, np.float32)
    scaled(a, 0.1)
    assert (a == np.float32(3) * np.float32(0.1)).all()


@Elementwise
def stepped(x, buf, g, rate: float, momentum: float):
    buf = momentum * buf + g
    return x - rate * buf, buf


@Elementwise
def difference(out, x, y):
    return (out - (x - y),)


# What the second formula finds made is its first vector, one it writes, or another one.
@pytest.mark.parametrize("second, at", [(mixed, 0), (mixed, 1), (mixed, 2), (difference, 1)])
@pytest.mark.parametrize("numel", (0, 17, 1000, 2 * GRAIN + 1))
def test_two_formulas_in_turn_are_one_after_the_other(second, at, numel, threads):
    numbers = (0.3, -2.7)[: second.num_numbers]
    one, other = ([*vectors(numel), *vectors(numel, seed=1)[:2]] for _ in range(2))
    shared, buf, g = one[at], one[3], one[4]
    assert stepped(shared, buf, g, 0.1, 0.9) and second(*one[:3], *numbers)
    first = stepped.on(other[at], other[3], other[4], 0.1, 0.9)
    both = second.on(*other[:3], *numbers).after(first, at)
    assert both() is True
    for got, expected in zip(other, one, strict=True):
        assert got.tobytes() == expected.tobytes()
    assert in_turn(stepped, second, at) is both.formula


@pytest.mark.parametrize("bad", (np.nan, np.inf))
@pytest.mark.parametrize("which", range(5))
def test_in_turn_what_is_not_finite_is_seen(which, bad):
    arrays = [*vectors(1000), *vectors(1000, seed=1)[:2]]
    arrays[which][7] = bad
    first = stepped.on(arrays[0], arrays[3], arrays[4], 0.1, 0.9)
    assert mixed.on(*arrays[:3], 1.0, 1.0).after(first, 0)() is False


def test_fma_is_as_exact_as_torch_s():
    """Which rounds once where the processor can."""

    @Elementwise
    def added(x, y, factor: float):
        return (fma(y, factor, x),)

    x, y, _ = vectors(10_001)
    expected = torch.from_numpy(x.copy()).add_(torch.from_numpy(y), alpha=0.3).numpy()
    assert added(x, y, 0.3)
    assert x.tobytes() == expected.tobytes()
