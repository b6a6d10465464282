"""What the kernel tests share: quantizers, sizes, vectors, and the comparison with the oracle.

An "implementation" is a module with the functions of decentral_kernels.reference: that module,
decentral_kernels.backend (NumPy arrays go to the CPU kernels), or decentral_kernels.cuda.
"""

import numpy as np

from decentral_kernels import fold_key, reference

KEY = fold_key(1, 2, 3, 4)
BITS = tuple(range(2, 9))
LEVELS = ("uniform", "exponential")
NORMS = ("l2", "max")
# Around the edges of bytes, of vector registers, of units (1024) and of the usual block (8192).
SIZES = (0, 1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 8191, 8192, 8193, 20000)
BLOCK_SIZES = (1, 7, 64, 100, 1000, 1024, 8191, 8192, 30000)  # the last is larger than any size
WEIGHTS = (1.0, -0.3, 1 / 3)
KINDS = ("gaussian", "zeros", "one-hot", "denormal", "1e30", "mixed", "negative-zeros")


def vector(kind, n, seed=0):
    """Return one of the KINDS of vectors, float32[n]."""
    rng = np.random.default_rng([seed, n])
    gaussian = rng.standard_normal(n).astype(np.float32)
    if kind == "gaussian":
        return gaussian
    if kind == "zeros":
        return np.zeros(n, np.float32)
    if kind == "one-hot":
        return np.where(np.arange(n) == n // 2, np.float32(-3), np.float32(0))
    if kind == "denormal":  # all patterns below the least normal number, with signs
        patterns = rng.integers(0, 1 << 23, n, dtype=np.uint32)
        return (patterns | rng.integers(0, 2, n, dtype=np.uint32) << np.uint32(31)).view(np.float32)
    if kind == "1e30":
        return gaussian * np.float32(1e30)
    if kind == "mixed":
        return gaussian * (10.0 ** rng.uniform(-30, 30, n)).astype(np.float32)
    if kind == "negative-zeros":
        return np.where(rng.random(n) < 0.7, np.float32(-0.0), gaussian)
    raise KeyError(kind)


def levels_of(q):
    """Return the magnitudes that codes 0, 1, ... stand for, float64, from the papers' text."""
    s = 2 ** (q.bits - 1) - (1 if q.levels == "uniform" else 2)
    if q.levels == "uniform":
        return np.array([j / s for j in range(s + 1)])
    return np.array([0.0] + [2.0**-j for j in range(s, -1, -1)])


def encoded(implementation, x, q, key=KEY):
    """Return (first bad block, scales, codes); the buffers held other bytes before."""
    scales = np.full(q.num_blocks(x.size), -7, np.float32)
    codes = np.full(q.codes_nbytes(x.size), 0xA5, np.uint8)
    bad = implementation.encode(x, key, q, scales, codes)
    return bad, scales, codes


def assert_same_bits(got, expected, what):
    """Like array_equal, but 0 and -0 differ, and equal NaN patterns do not."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, what
    as_int = {1: np.uint8, 4: np.uint32}[expected.dtype.itemsize]
    np.testing.assert_array_equal(got.view(as_int), expected.view(as_int), err_msg=what)


def assert_equals_reference(implementation, x, q, key=KEY, weights=WEIGHTS):
    """Assert that an implementation encodes, decodes and accumulates as the oracle, bit for bit."""
    bad, scales, codes = encoded(reference, x, q, key)
    got_bad, got_scales, got_codes = encoded(implementation, x, q, key)
    assert got_bad == bad, f"{q}: first bad block {got_bad}, expected {bad}"
    if bad >= 0:
        return
    assert_same_bits(got_scales, scales, f"{q}: scales")
    assert_same_bits(got_codes, codes, f"{q}: codes")
    out, expected = np.full(x.size, np.nan, np.float32), np.empty(x.size, np.float32)
    reference.decode(scales, codes, q, expected)
    implementation.decode(scales, codes, q, out)
    assert_same_bits(out, expected, f"{q}: decoded")
    start = np.random.default_rng(x.size).standard_normal(x.size).astype(np.float32)
    for weight in weights:
        out, expected = start.copy(), start.copy()
        reference.accumulate(scales, codes, q, expected, weight)
        implementation.accumulate(scales, codes, q, out, weight)
        assert_same_bits(out, expected, f"{q}: accumulated with weight {weight}")
