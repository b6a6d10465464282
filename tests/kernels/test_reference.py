"""The NumPy oracle against the papers' formulas, written here a second time and from the text."""

import numpy as np
import pytest
from kernel_cases import BITS, KEY, LEVELS, NORMS, encoded, levels_of, vector

from decentral_kernels import Quantizer, fold_key, reference
from decentral_kernels.layout import UNIT, lanes_and_planes
from decentral_kernels.rng import DRAW_BITS

families = pytest.mark.parametrize("levels", LEVELS)
widths = pytest.mark.parametrize("bits", BITS)


def levels_and_signs(codes, q):
    return codes & ((1 << (q.bits - 1)) - 1), codes >> (q.bits - 1)


# --- levels


@widths
@families
def test_levels_are_the_papers(bits, levels):
    q = Quantizer(bits, 1 << bits, "l2", levels)
    grid = levels_of(q)
    assert len(grid) == 2 ** (bits - 1) and grid[0] == 0 and grid[-1] == 1
    codes = np.arange(1 << bits, dtype=np.uint8)
    values = reference.dequantize(codes, np.array([1], np.float32), q)
    expected = np.concatenate([grid, -grid])
    # 1/s is rounded once and multiplied once; powers of two are exact.
    np.testing.assert_allclose(values, expected, rtol=2.0**-23 if levels == "uniform" else 0)
    assert np.signbit(values).tolist() == [False] * len(grid) + [True] * len(grid)


@pytest.mark.parametrize(
    ("bits", "levels", "s"),
    [(4, "uniform", 7), (4, "exponential", 6), (2, "uniform", 1), (2, "exponential", 0)],
)
def test_s_at_the_widths_that_the_papers_name(bits, levels, s):
    assert Quantizer(bits, 8192, "l2", levels).s == s


@widths
@families
@pytest.mark.parametrize("norm", NORMS)
def test_a_code_is_one_of_the_two_neighboring_levels(bits, levels, norm):
    q = Quantizer(bits, 256, norm, levels)
    x = vector("gaussian", 2000) * np.float32(2) ** -(np.arange(2000, dtype=np.float32) ** 0.3)
    x = x.astype(np.float32)
    scales = reference.block_scales(x, q)
    index, sign = levels_and_signs(reference.quantize(x, scales, KEY, q), q)
    r = np.abs(x.astype(np.float64)) / np.repeat(scales, 256)[:2000]
    grid = levels_of(q)
    # r is computed as |v| * (1/scale), two float32 roundings away from this r.
    tolerance = 2.0**-22
    assert (grid[np.maximum(index.astype(int) - 1, 0)] <= r * (1 + tolerance)).all()
    assert (r * (1 - tolerance) <= grid[np.minimum(index.astype(int) + 1, len(grid) - 1)]).all()
    np.testing.assert_array_equal(sign, np.signbit(x))


# --- expectation and variance, over every draw there is

PLACES = 12  # r lies at multiples of 2^-12 of a gap, so 2^12 evenly spaced draws replace all 2^23


@pytest.fixture
def every_draw(monkeypatch):
    """Make coordinate i of a vector draw the i-th of 2^12 evenly spaced numbers of 23 bits.

    They are the middles of 2^12 equal intervals: r's float32 rounding moves none over an edge.
    """

    def draw(key, start, n):
        every = np.arange(1 << PLACES, dtype=np.uint32) << np.uint32(DRAW_BITS - PLACES)
        return np.tile(every + np.uint32(1 << (DRAW_BITS - PLACES - 1)), n >> PLACES)

    monkeypatch.setattr(reference.rng, "draw", draw)


def ratios(grid):
    """Values of r: the levels, and four places in each gap between two of them."""
    places = np.array([0, 1, 1365, 2048, 4095]) / (1 << PLACES)
    r = grid[:-1, None] + (grid[1:] - grid[:-1])[:, None] * places
    return np.append(r.ravel(), 1.0)


@widths
@families
@pytest.mark.parametrize("norm", NORMS)
def test_expectation_and_variance_are_exact(bits, levels, norm, every_draw):
    grid = levels_of(Quantizer(bits, 1, norm, levels))
    r, scale = ratios(grid), np.float32(3)
    x = np.repeat((-scale * r).astype(np.float32), 1 << PLACES)
    q = Quantizer(bits, x.size, norm, levels)
    index, sign = levels_and_signs(reference.quantize(x, np.array([scale]), KEY, q), q)
    assert sign.all()
    h = grid[index].reshape(len(r), -1)
    lower = np.minimum(np.searchsorted(grid, r, side="right") - 1, len(grid) - 2)
    variance = (r - grid[lower]) * (grid[lower + 1] - r)
    np.testing.assert_allclose(h.mean(axis=1), r, rtol=1e-12)
    gap = grid[lower + 1] - grid[lower]
    measured = ((h - r[:, None]) ** 2).mean(axis=1)
    np.testing.assert_allclose(measured / gap**2, variance / gap**2, rtol=1e-9, atol=1e-12)


@families
def test_expectation_over_all_2_to_the_23_draws(levels, monkeypatch):
    monkeypatch.setattr(reference.rng, "draw", lambda key, start, n: np.arange(n, dtype=np.uint32))
    n = 1 << DRAW_BITS
    q = Quantizer(4, n, "max", levels)
    for r in (0.7370, 0.0123):
        x = np.full(n, r, np.float32)
        codes = reference.quantize(x, np.ones(1, np.float32), KEY, q)
        counts = np.bincount(codes, minlength=8)
        # A probability is a multiple of 2^-23 of a gap, and no gap is above 1/2.
        assert abs(counts @ levels_of(q) / n - np.float64(x[0])) <= 2.0**-24
        assert np.count_nonzero(counts) == 2


@pytest.mark.parametrize("norm", NORMS)
@families
def test_statistics_of_true_draws(norm, levels):
    q = Quantizer(4, 512, norm, levels)
    x = vector("gaussian", 512)
    scale = np.float64(reference.block_scales(x, q)[0])
    grid, keys = levels_of(q), 2000
    r = np.abs(x.astype(np.float64)) / scale
    lower = np.minimum(np.searchsorted(grid, r, side="right") - 1, len(grid) - 2)
    variance = (r - grid[lower]) * (grid[lower + 1] - r) * scale**2
    total, squares = np.zeros(512), 0.0
    for k in range(keys):
        codes = reference.quantize(x, np.float32([scale]), fold_key(7, k, 0, 0), q)
        error = reference.dequantize(codes, np.float32([scale]), q) - x.astype(np.float64)
        total += error
        squares += (error**2).sum()
    # One coordinate's mean is 5 sigma off with probability 6e-7; 512 of them, 3e-4.
    assert (np.abs(total / keys) <= 5 * np.sqrt(variance / keys) + 1e-6 * scale).all()
    # The sum of 512 * 2000 squared errors: its relative deviation is below 1 %.
    assert squares / keys == pytest.approx(variance.sum(), rel=0.02)


# --- norms


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 64, 1000, 1024, 1025, 8192])
@pytest.mark.parametrize("magnitude", [1, 1e-30, 1e-20, 1e-9, 1e9, 1e18, 1e19, 1e30, 1e36])
def test_norms(block_size, magnitude):
    x = vector("gaussian", 5000) * np.float32(magnitude)
    l2 = reference.block_scales(x, Quantizer(4, block_size, "l2", "uniform"))
    top = reference.block_scales(x, Quantizer(4, block_size, "max", "uniform"))
    blocks = [x[i : i + block_size].astype(np.float64) for i in range(0, 5000, block_size)]
    assert l2.dtype == top.dtype == np.float32
    # A square and at most 8 + 10 additions, each rounded; the root halves what they add up to.
    expected = [np.linalg.norm(block) for block in blocks]
    np.testing.assert_allclose(l2, expected, rtol=12 * 2.0**-24)
    np.testing.assert_array_equal(top, [np.abs(block).max() for block in blocks])


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_below_the_least_normal_number_is_zero(norm):
    q = Quantizer(4, 8, norm, "exponential")
    x = np.zeros(24, np.float32)
    x[3], x[9], x[17] = 2.0**-126, -(2.0**-126 - 2.0**-149), 2.0**-149
    assert reference.block_scales(x, q).tolist() == [2.0**-126, 0, 0]
    bad, scales, codes = encoded(reference, x, q)
    out = np.empty(24, np.float32)
    reference.decode(scales, codes, q, out)
    assert bad == -1 and out.tolist() == [0] * 3 + [2.0**-126] + [0] * 20


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**126, -3e38])
def test_what_cannot_be_encoded_is_named(norm, value):
    q = Quantizer(4, 10, norm, "exponential")
    x = vector("gaussian", 95)
    x[37] = x[92] = value
    assert encoded(reference, x, q)[0] == 3
    x[37] = np.nextafter(np.float32(2.0**126), np.float32(0))
    x[30:37] = x[38:40] = 0
    assert encoded(reference, x, q)[0] == 9  # the norm of block 3 is the largest that is allowed


# --- packing


def test_packing_by_hand_at_3_bits():
    # 8 lanes, 3 planes: codes 0..7 share the 24-bit word of the only whole column,
    # 1 + 2*8 + 3*64 + 4*512 + 5*4096 + 6*32768 + 7*262144 = 0x1F58D1; 5 and 3 follow: 5 + 3*8.
    codes = np.array([1, 2, 3, 4, 5, 6, 7, 0, 5, 3], np.uint8)
    assert reference.pack(codes, 3).tolist() == [0xD1, 0x58, 0x1F, 0x1D]
    # Two columns: even positions in column 0, odd ones in column 1, plane by plane.
    both = np.empty(16, np.uint8)
    both[0::2], both[1::2] = codes[:8], 0
    assert reference.pack(both, 3).tolist() == [0xD1, 0, 0x58, 0, 0x1F, 0]


def test_packing_by_hand_at_4_bits():
    # 2 lanes, 1 plane: the two halves share bytes; the odd code stands alone.
    codes = np.array([1, 2, 3, 4, 15], np.uint8)
    assert reference.pack(codes, 4).tolist() == [0x31, 0x42, 0x0F]


def test_packing_by_hand_over_two_units():
    codes = np.zeros(UNIT + 2, np.uint8)
    codes[0], codes[UNIT // 2], codes[UNIT], codes[UNIT + 1] = 1, 2, 3, 4
    packed = reference.pack(codes, 4)
    assert packed.size == UNIT // 2 + 1
    assert packed[0] == 0x21 and packed[-1] == 0x43 and not packed[1:-1].any()


@widths
def test_8_lanes_or_fewer_share_whole_bytes(bits):
    lanes, planes = lanes_and_planes(bits)
    assert lanes * bits == 8 * planes and lanes <= 8


@widths
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1023, 1024, 1025, 2048, 3001])
def test_packing_has_no_gaps_and_can_be_undone(bits, n):
    codes = np.random.default_rng(n).integers(0, 1 << bits, n, dtype=np.uint8)
    packed = reference.pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.size == -(-n * bits // 8)
    assert packed.size == Quantizer(bits, 64, "l2", "uniform").codes_nbytes(n)
    np.testing.assert_array_equal(reference.unpack(packed, n, bits), codes)


@widths
@pytest.mark.parametrize("n", [13, UNIT + 13])
def test_every_code_bit_has_a_bit_of_its_own(bits, n):
    wanted = range(n) if n < UNIT else [0, 1, 127, 128, 512, 1023, *range(UNIT, n)]
    seen = []
    for i in wanted:
        for b in range(bits):
            codes = np.zeros(n, np.uint8)
            codes[i] = 1 << b
            (place,) = np.flatnonzero(np.unpackbits(reference.pack(codes, bits), bitorder="little"))
            seen.append(int(place))
    assert len(set(seen)) == len(seen)
    if n < UNIT:  # a bijection: the bits that fill up the last byte stay 0
        assert sorted(seen) == list(range(n * bits))


@widths
def test_bits_that_fill_up_the_last_byte_are_zero(bits):
    for n in range(1, 20):
        packed = reference.pack(np.full(n, (1 << bits) - 1, np.uint8), bits)
        assert np.unpackbits(packed).sum() == n * bits
