"""What the compressor tests share: the table of compressors, and the theory to measure against.

Bounds are multiples of ||v||_2^2 for one block v of d coordinates, by the class attributes `norm`
and `levels`; s is the papers'.
"""

import itertools
from functools import cache

import numpy as np
import pytest
import torch

from decentral.compressors import available, from_name, options_of

KEY = (1, 2, 3, 4)  # seed, step, rank, bucket
OPTIONS = {"bits": (2, 3, 4, 8), "block_size": (64, 8192)}
INTEGERS = {"bits": (8, 32), "rounding": ("random", "deterministic")}
MORE = [{"zero_level": False, "bits": 2}, {"zero_level": False}]
MORE += [{"coding": "fixed"}]
MORE += [{"coding": c, "bits": b} for c in ("narrow", "elias", "huffman") for b in (2, 4, 8)]


def variants():
    """Yield every registered compressor with each combination of those options that it has."""
    for name in available():
        known = options_of(name)
        options = INTEGERS if "rounding" in known else OPTIONS
        table = {option: values for option, values in options.items() if option in known}
        for values in itertools.product(*table.values()):
            yield from_name(name, **dict(zip(table, values, strict=True)))
        for options in MORE:
            if all(option in known for option in options):
                yield from_name(name, **options)


def gaussian(n, seed=0):
    return np.random.default_rng([seed, n]).standard_normal(n).astype(np.float32)


def as_numpy(vector):
    return vector.numpy() if isinstance(vector, torch.Tensor) else vector


def round_trip(compressor, x):
    return as_numpy(compressor.decode(compressor.fresh().encode(x, KEY)))


def assert_refused(error, match, function, *args, **options):
    with pytest.raises(error, match=match) as raised:
        function(*args, **options)
    return raised.value


@cache
def errors_over_keys(compressor, numel, keys):
    """Return decode(encode(x)) - x for x = gaussian(numel) and many keys, float64[keys, numel]."""
    x = gaussian(numel)
    decoded = [compressor.decode(compressor.encode(x, (9, k, 0, 0))) for k in range(keys)]
    return np.stack(decoded).astype(np.float64) - x


def blocks_of(compressor, x):
    """Return the blocks of x in float64; where a compressor has none, x is one."""
    size = getattr(compressor, "block_size", max(1, x.size))
    return [x[i : i + size].astype(np.float64) for i in range(0, x.size, size)]


def block_norms(compressor, x):
    """Return, per coordinate, the L2 norm of its block."""
    return np.concatenate([np.full(b.size, np.linalg.norm(b)) for b in blocks_of(compressor, x)])


def s_of(compressor):
    """QSGD: 2^(bits-1) codes, 0 among them. NUQSGD: the least of its levels above 0 is 2^-s.

    Without a zero level QSGD's least level is 1/s, and levels are 2/s apart.
    """
    b = compressor.bits
    if not compressor.zero_level:
        return 2**b - 1 if compressor.levels == "uniform" else 2 ** (b - 1) - 1
    return 2 ** (b - 1) - (1 if compressor.levels == "uniform" else 2)


def grid_of(compressor):
    """Return the levels on [0, 1], and without a zero level the one below it."""
    s = s_of(compressor)
    if not compressor.zero_level:
        if compressor.levels == "uniform":
            return np.arange(-1, s + 1, 2) / s
        return np.concatenate([[-(2.0**-s)], 2.0 ** np.arange(-s, 1)])
    if compressor.levels == "uniform":
        return np.arange(s + 1) / s
    return np.concatenate([[0.0], 2.0 ** np.arange(-s, 1)])


def qsgd_bound(s, d):
    """QSGD, Lemma 3.1."""
    return min(d / s**2, np.sqrt(d) / s)


def nuqsgd_bound(s, d):
    """Ours: see decentral/compressors/nuqsgd.py."""
    a = 2.0**-s * np.sqrt(d)
    return 1 / 8 + 2 / 9 * a**2 if a <= 9 / 4 else a - 1


def qsgdinf_bound(s, d):
    """Ours. The largest coordinate is a level (variance 0); let it be 1 and g = 1/s.

    A coordinate r of the n = d - 1 others has variance at most g^2/4, and ||v||^2 >= 1: that is the
    first bound. For r <= g it is r (g - r); the largest ratio of n r (g - r) to 1 + n r^2, found by
    setting the derivative to 0, is (sqrt(1 + n g^2) - 1) / 2, at r = (sqrt(1 + n g^2) - 1) / (n g).
    For r between levels j g and (j+1) g, j >= 1, it is at most r^2 / (4 j (j+1)) <= r^2 / 8.
    """
    n, g = d - 1, 1 / s
    return min(n * g**2 / 4, max(1 / 8, (np.sqrt(1 + n * g**2) - 1) / 2))


BOUNDS = {
    ("l2", "uniform"): qsgd_bound,
    ("max", "uniform"): qsgdinf_bound,
    ("l2", "exponential"): nuqsgd_bound,
}


def without_zero_bound(compressor, d):
    """Ours: (r - l)(l' - r) is at most half a gap squared, and r^2 / 8 between powers of 2."""
    least = (1 / s_of(compressor)) if compressor.levels == "uniform" else 2.0 ** -s_of(compressor)
    return d * least**2 + (1 / 8 if compressor.levels == "exponential" else 0)


def variance_bound(compressor, d):
    """Return eps of E ||Q(v) - v||^2 <= eps ||v||^2."""
    if compressor.lossless:
        return 0.0
    if compressor.name == "natural":
        return 1 / 8  # Horvath et al., theorem 1
    if compressor.summable:
        return d / 4 / (2 ** (compressor.bits - 1) - 1) ** 2  # 1/4 each, in units of max / largest
    if not compressor.zero_level:
        return without_zero_bound(compressor, d)
    return BOUNDS[compressor.norm, compressor.levels](s_of(compressor), d)


def exact_variance(compressor, block):
    """Return E ||Q(v) - v||^2, the sum of (r - l_j) (l_{j+1} - r) ||v||^2, in float64."""
    v = np.abs(block.astype(np.float64))
    norm = v.max() if compressor.norm == "max" else np.sqrt((v**2).sum())
    if norm == 0:
        return 0.0
    grid, r = grid_of(compressor), np.minimum(v / norm, 1)
    j = np.minimum(np.searchsorted(grid, r, side="right") - 1, len(grid) - 2)
    return ((r - grid[j]) * (grid[j + 1] - r)).sum() * norm**2
