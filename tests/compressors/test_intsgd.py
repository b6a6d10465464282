"""IntSGD: alpha by the formula, sums that cannot overflow, clips that are counted."""

import numpy as np
import pytest
from compressor_cases import gaussian

from decentral.compressors import HeuristicIntSGD, IntSGD
from decentral.compressors.integers import sum_limits

ETA, PARTS = 0.1, [[600, 400], [24]]  # two buckets, three tensors
D = 1024


def attached(n=8, compressor=None, parts=PARTS):
    c = IntSGD(bits=32) if compressor is None else compressor
    c.attach(n, parts)
    return c


def rates(eta, parts=PARTS):
    return [[eta] * len(p) for p in parts]


def observe(c, step, estimates, eta=ETA):
    c.begin_step(step, rates(eta))
    for bucket, g in enumerate(estimates):
        c.observe(bucket, g)


def estimates(seed):
    return [gaussian(sum(p), seed) for p in PARTS]


def squares(vectors):
    return sum(float(np.dot(v.astype(np.float64), v)) for v in vectors)


def test_the_first_step_is_exact_and_only_the_first():
    c = attached()
    c.begin_step(1, rates(ETA))
    for bucket, g in enumerate(estimates(1)):
        assert c.round(bucket, g, (0, 1, 0, bucket), None) is None
        c.observe(bucket, g)
    c.begin_step(2, rates(ETA))
    for bucket, g in enumerate(estimates(2)):
        assert c.round(bucket, g, (0, 2, 0, bucket), None).dtype == np.int32


def test_alpha_is_the_formula_and_the_variance_identity_holds():
    n, c, r, moved = 8, attached(8), None, None
    for step in range(1, 6):
        eta = ETA / step  # a rate that changes
        c.begin_step(step, rates(eta))
        if step > 1:
            r = moved if r is None else 0.9 * r + 0.1 * moved
            (alpha,) = c.alphas(0, None)
            below = np.sqrt(2 * n * r + eta**2 * 1e-16)
            assert alpha == pytest.approx(eta * np.sqrt(D) / below, rel=1e-12)
            assert c.alphas(1, None) == [alpha]
            identity = r / (2 * eta**2) + 1e-16 / (4 * n)
            assert D / (4 * n * alpha**2) == pytest.approx(identity, rel=1e-12)
        g = estimates(step)
        for bucket, part in enumerate(g):
            c.observe(bucket, part)
        moved = eta**2 * squares(g)


def test_blockwise_alpha_is_the_formula():
    n, c = 4, attached(4, IntSGD(bits=32, blockwise=True))
    g = estimates(1)
    observe(c, 1, g)
    c.begin_step(2, rates(ETA))
    tensors = [[g[0][:600], g[0][600:]], [g[1]]]
    for bucket, parts in enumerate(tensors):
        for alpha, part in zip(c.alphas(bucket, None), parts, strict=True):
            r, dl = ETA**2 * squares([part]), len(part)
            below = np.sqrt(2 * n * r + ETA**2 * dl / D * 1e-16)
            assert alpha == pytest.approx(ETA * np.sqrt(dl) / below, rel=1e-12)


def test_each_tensor_may_have_a_rate_of_its_own():
    c = attached(2)
    own = [[0.1, 0.2], [0.4]]
    g = estimates(1)
    c.begin_step(1, own)
    for bucket, part in enumerate(g):
        c.observe(bucket, part)
    c.begin_step(2, own)
    moved = [0.01 * squares([g[0][:600]]), 0.04 * squares([g[0][600:]]), 0.16 * squares([g[1]])]
    eta2 = (600 * 0.01 + 400 * 0.04 + 24 * 0.16) / D
    expected = np.sqrt(eta2 * D / (2 * 2 * sum(moved) + eta2 * 1e-16))
    assert c.alphas(0, None)[0] == pytest.approx(expected, rel=1e-12)


def test_averaging_twice_in_a_step_counts_once():
    c, other = attached(), attached()
    observe(c, 1, estimates(1))
    observe(other, 1, estimates(7))  # the first of two averages
    observe(other, 1, estimates(1))
    for compressor in (c, other):
        compressor.begin_step(2, rates(ETA))
    assert c.alphas(0, None) == other.alphas(0, None)


def test_a_rate_of_zero_makes_an_exact_step():
    c = attached()
    observe(c, 1, estimates(1))
    c.begin_step(2, rates(0.0))
    assert c.round(0, estimates(2)[0], (0, 2, 0, 0), None) is None


def test_where_nothing_moved_alpha_is_finite_and_integers_are_clipped():
    c = attached(8, IntSGD(bits=8))
    observe(c, 1, [np.zeros(1000, np.float32), np.zeros(24, np.float32)])
    c.begin_step(2, rates(ETA))
    q = c.round(0, gaussian(1000), (0, 2, 0, 0), None)
    assert set(q.tolist()) == {-16, 15}
    assert c.stats()["clipped"] == 1000 and c.stats()["largest_integer"] > 1e8


@pytest.mark.parametrize("bits", (8, 32))
@pytest.mark.parametrize("n", [*range(1, 128)])
def test_sums_of_clipped_extremes_do_not_overflow(bits, n):
    low, high = sum_limits(bits, n)
    exact = -(2 ** (bits - 1) // n), (2 ** (bits - 1) - 1) // n
    assert exact[0] <= low <= 0 < high <= exact[1]
    assert bits == 32 or (low, high) == exact
    assert np.float32(low) == low and np.float32(high) == high
    c = HeuristicIntSGD(bits=bits)
    c.attach(n, [[4]])
    c.begin_step(1, [[ETA]])
    x = np.array([3e38, -3e38, 1.0, 0.0], np.float32)
    q = c.round(0, x, (0, 1, 0, 0), 2.0**-20)  # everything but 0 is clipped
    total = q.astype(np.int64) * n
    assert (total.astype(q.dtype) == total).all()
    assert q.tolist() == [int(high), int(low), int(high), 0]
    assert c.stats()["clipped"] == 3


@pytest.mark.parametrize("compressor", (IntSGD, HeuristicIntSGD))
def test_more_ranks_than_int8_can_add_are_refused_with_the_remedy(compressor):
    match = "int8 cannot hold the sum of 128 ranks, expected at most 127; use bits=32"
    with pytest.raises(ValueError, match=match):
        compressor(bits=8).attach(128, PARTS)
    compressor(bits=32).attach(128, PARTS)


def test_the_heuristic_is_the_formula():
    for top, exponent in ((1.0, 0), (1.99, 0), (2.0, 1), (0.3, -2), (1e-30, -100)):
        c = HeuristicIntSGD(bits=8)
        c.attach(8, [[3]])
        x = np.array([0.1 * top, -top, 0], np.float32)
        (alpha,) = c.alphas(0, c.own_top(x))
        assert alpha == 127 / (8 * 2.0**exponent)
        (alpha,) = c.alphas(0, 8 * c.own_top(x))  # another rank has larger ones
        assert alpha == 127 / (8 * 2.0 ** (exponent + 3))
    assert c.alphas(0, c.own_top(np.zeros(3, np.float32)))[0] > 0


def test_saved_state_goes_on():
    one = attached()
    for step in range(1, 4):
        observe(one, step, estimates(step))
    other = one.fresh()
    other.attach(8, PARTS)
    other.load_state_dict(one.state_dict())
    for c in (one, other):
        c.begin_step(4, rates(ETA))
    assert other.alphas(0, None) == one.alphas(0, None) is not None


def test_options():
    for options, match in (
        ({"rounding": "up"}, "rounding must be one of random, deterministic, got 'up'"),
        ({"beta": 1.0}, "expected 0 <= beta < 1"),
        ({"eps": 0.0}, "eps > 0"),
    ):
        with pytest.raises(ValueError, match=match):
            IntSGD(**options)
    assert not IntSGD(rounding="deterministic").unbiased


@pytest.mark.parametrize("bits", (8, 32))
def test_a_step_is_exact_where_an_integer_would_stand_for_more_than_float32_holds(bits):
    """Alpha is about 1 / ||g|| of the step before; what integers stand for is divided by it."""
    for norm, exact in ((1e38, True), (1e25, False)):
        c = IntSGD(bits=bits)
        c.attach(2, [[4]])
        c.begin_step(1, [[0.1]])
        c.observe(0, np.full(4, norm / 2, np.float32))
        c.begin_step(2, [[0.1]])
        integers = c.round(0, np.full(4, norm, np.float32), (0, 2, 0, 0), None)
        assert (integers is None) == exact
        if not exact:
            out = np.empty(4, np.float32)
            c.expand(0, integers, out, ranks=2)
            assert np.isfinite(out).all()
