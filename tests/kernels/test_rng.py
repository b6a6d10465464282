"""The counter-based draws: uniform, independent over indices and keys, and the same for ever.

Every figure is a sum over N draws of known mean and variance, so its distance from the mean in
standard deviations is about a standard normal number. All tests together look at a few hundred
such numbers: 5 sigma (one in 1.7 million) leaves chance no room, and structure in the stream, which
grows with N or sqrt(N), all the room.
"""

import itertools

import numpy as np
import pytest

from decentral_kernels import rng
from decentral_kernels.rng import DRAW_BITS, draw, fold_key

SIGMAS = 5
N = 1 << 20
RANGE = 1 << DRAW_BITS
KEYS = [(0, 0, 0, 0), (1, 2, 3, 4), (2**40, 100_000, 7, 63)]
# Keys one step from (1, 2, 3, 4) in one of seed, step, rank, bucket.
NEIGHBORS = [(2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)]


def centered(draws):
    """Return draws with mean 0 and variance 1: uniform on 0 .. R-1 has (R^2 - 1) / 12."""
    return (draws.astype(np.float64) - (RANGE - 1) / 2) / np.sqrt((RANGE**2 - 1) / 12)


def assert_normal(z, what):
    assert abs(z) < SIGMAS, f"{what}: {z:+.2f} standard deviations from its mean"


def correlation_z(a, b):
    """The mean of n products of independent centered draws has variance 1/n."""
    return (a * b).mean() * np.sqrt(a.size)


def chi_square_z(cells, count):
    """Pearson's sum over `count` equally likely cells: mean count - 1, variance 2 (count - 1)."""
    seen = np.bincount(cells, minlength=count)
    assert seen.size == count
    expected = cells.size / count
    total = ((seen - expected) ** 2 / expected).sum()
    return (total - (count - 1)) / np.sqrt(2 * (count - 1))


def assert_pairs_fill_the_square(a, b, what):
    """A 32 x 32 grid sees dependence that a correlation does not."""
    side = DRAW_BITS - 5
    cells = (a >> np.uint32(side)).astype(np.int64) * 32 + (b >> np.uint32(side))
    assert_normal(chi_square_z(cells, 1024), what)


@pytest.fixture(scope="module", params=KEYS, ids=str)
def draws(request):
    return draw(fold_key(*request.param), 0, N)


def test_draws_have_23_bits_and_use_all_of_them(draws):
    assert draws.dtype == np.uint32
    assert draws.max() < RANGE
    assert np.bitwise_or.reduce(draws) == RANGE - 1


def test_mean(draws):
    assert_normal(centered(draws).mean() * np.sqrt(N), "mean")


def test_second_moment(draws):
    # The square of a centered uniform number has mean 1 and variance 9/5 - 1.
    z = (centered(draws) ** 2 - 1).mean() * np.sqrt(N / 0.8)
    assert_normal(z, "second moment")


@pytest.mark.parametrize("shift", [DRAW_BITS - 8, 8, 0], ids=["high", "middle", "low"])
def test_bits_are_uniform(draws, shift):
    cells = ((draws >> np.uint32(shift)) & np.uint32(255)).astype(np.int64)
    z = chi_square_z(cells, 256)
    assert_normal(z, f"bits {shift}..{shift + 7}")  # two-sided: too even is not random either


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 128, 1024, 8192])
def test_indices_are_independent(draws, lag):
    u = centered(draws)
    assert_normal(correlation_z(u[:-lag], u[lag:]), f"correlation at lag {lag}")
    assert_pairs_fill_the_square(draws[:-lag], draws[lag:], f"pairs at lag {lag}")


@pytest.mark.parametrize("neighbor", NEIGHBORS, ids=["seed", "step", "rank", "bucket"])
def test_keys_that_differ_in_one_part_are_independent(neighbor):
    a, b = (draw(fold_key(*parts), 0, N) for parts in ((1, 2, 3, 4), neighbor))
    assert_normal(correlation_z(centered(a), centered(b)), "correlation")
    assert_pairs_fill_the_square(a, b, "pairs")
    for bit in range(DRAW_BITS):
        flipped = ((a ^ b) >> np.uint32(bit) & np.uint32(1)).mean()
        assert_normal((flipped - 0.5) * 2 * np.sqrt(N), f"flips of bit {bit}")
    # Equal draws at one index: N / 2^23 = 1/8 expected; 8 has probability 1e-12.
    assert (a == b).sum() < 8


@pytest.mark.parametrize("part", range(4), ids=["seed", "step", "rank", "bucket"])
def test_one_coordinate_over_many_keys(part):
    # What training averages over: the same index, key after key.
    count = 1 << 13
    keys = (fold_key(*(k if i == part else 5 for i in range(4))) for k in range(count))
    drawn = np.stack([draw(key, 1000, 2) for key in keys])
    first, second = centered(drawn[:, 0]), centered(drawn[:, 1])
    assert_normal(first.mean() * np.sqrt(count), "mean over keys")
    assert_normal(correlation_z(first[:-1], first[1:]), "consecutive keys")
    assert_normal(correlation_z(first, second), "neighboring coordinates over keys")
    cells = (drawn[:, 0] >> np.uint32(DRAW_BITS - 6)).astype(np.int64)
    assert_normal(chi_square_z(cells, 64), "high bits over keys")


def test_a_range_of_indices_is_a_slice_of_the_stream():
    key = fold_key(1, 2, 3, 4)
    whole = draw(key, 0, 5000)
    for start, n in [(0, 0), (0, 1), (1, 31), (1023, 2), (1024, 1024), (4999, 1)]:
        np.testing.assert_array_equal(draw(key, start, n), whole[start : start + n])


def test_key_parts_do_not_commute_and_their_number_counts():
    folded = [fold_key(*parts) for parts in itertools.permutations((1, 2, 3, 4))]
    assert len(set(folded)) == 24
    assert len({fold_key(), fold_key(0), fold_key(0, 0), fold_key(0, 0, 0), fold_key(1)}) == 5


def test_keys_of_a_long_run_do_not_collide():
    grid = itertools.product(range(5), range(200), range(16), range(4))
    keys = [fold_key(*parts) for parts in grid]
    # 64000 keys of 64 bits: a collision has probability 1e-10.
    assert len(set(keys)) == len(keys)
    for half in np.array(keys, dtype=np.uint64).T:
        assert half.max() < 2**32
        assert_normal(chi_square_z((half >> np.uint64(24)).astype(np.int64), 256), "half of a key")


def test_key_parts_are_taken_modulo_2_to_the_64():
    assert fold_key(-1, 2) == fold_key(2**64 - 1, 2)
    assert fold_key(2**64 + 3) == fold_key(3)
    assert fold_key(2**63) != fold_key(0)
    assert fold_key(np.int64(7), np.int32(-2)) == fold_key(7, -2)


def test_splitmix64_is_the_published_one():
    # The outputs of the reference implementation (Vigna's splitmix64.c) for seed 1234567.
    state, got = 1234567, []
    for _ in range(3):
        got.append(rng._splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) & (2**64 - 1)
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]


# A resumed run must draw what the unbroken run would have drawn, also with the next release: these
# values may change only together with the message format version.
FROZEN = {
    (0, 0, 0, 0): ((2757409293, 2811277954), [8218725, 3240713, 3447882, 1369005, 397022, 5284873]),
    (1, 2, 3, 4): ((4001583381, 2926211257), [5170619, 1675746, 6971399, 399886, 5305788, 4225838]),
    (-1, 10**12, 1023, 65535): (
        (1678633202, 133911186),
        [6135398, 4443046, 7820311, 2597126, 6365150, 7742671],
    ),
}


@pytest.mark.parametrize("parts", FROZEN, ids=str)
def test_the_stream_never_changes(parts):
    key, expected = FROZEN[parts]
    assert fold_key(*parts) == key
    drawn = [*draw(key, 0, 4).tolist(), *draw(key, 2**31 - 2, 2).tolist()]
    assert drawn == expected
