"""QSGD and QSGDinf: uniform levels.

Alistarh, Grubic, Li, Tomioka, Vojnovic: "QSGD: Communication-Efficient SGD via Gradient
Quantization and Encoding", NeurIPS 2017, arXiv:1610.02132. QSGDinf is the variant with the largest
absolute value for norm that its experiments, and the NUQSGD paper's, compare with.

    Q(v)_i = ||v|| sign(v_i) h_i,   h_i in {0, 1/s, ..., 1},   E[h_i] = |v_i| / ||v||
    s = 2^(bits - 1) - 1, one norm per block; L2 norm:
    E ||Q(v) - v||^2 <= min(d / s^2, sqrt(d) / s) ||v||^2 for a block of d coordinates  (Lemma 3.1)
"""

from __future__ import annotations

from .fixed_level import FixedLevelCompressor


class QSGD(FixedLevelCompressor):
    """Uniform levels of the L2 norm (QSGD, section 3.1); 4 bits give s = 7."""

    name = "qsgd"
    norm = "l2"
    levels = "uniform"


class QSGDInf(FixedLevelCompressor):
    """Uniform levels of the largest absolute value (QSGDinf)."""

    name = "qsgdinf"
    norm = "max"
    levels = "uniform"
