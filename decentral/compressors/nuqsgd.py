"""NUQSGD: exponential levels.

Ramezani-Kebrya, Faghri, Markov, Aksenov, Alistarh, Roy: "NUQSGD: Provably Communication-efficient
Data-parallel SGD via Nonuniform Quantization", JMLR 22 (2021), arXiv:2104.13818.

    Q(v)_i = ||v||_2 sign(v_i) h_i,   h_i in {0, 2^-s, ..., 1/2, 1},   E[h_i] = |v_i| / ||v||_2
    s = 2^(bits - 1) - 2 (4 bits: s = 6), one norm per block

The variance, with a = 2^-s sqrt(d) for a block of d coordinates, E ||Q(v) - v||^2 <= eps ||v||^2:
eps = 1/8 + (2/9) a^2 for a <= 9/4, else a - 1. This bound is ours: the paper's closed form, as we
have it, does not hold near its switch (tests/compressors/test_variance.py measures ours).
"""

from __future__ import annotations

from .fixed_level import FixedLevelCompressor


class NUQSGD(FixedLevelCompressor):
    """Exponential levels of the L2 norm (NUQSGD, section 3.1); at bits=2 the levels are 0 and 1."""

    name = "nuqsgd"
    norm = "l2"
    levels = "exponential"
