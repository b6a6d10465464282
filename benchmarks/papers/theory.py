"""Bounds on variance and code length of QSGD, QSGDinf and NUQSGD, per block of d coordinates.

QSGD: NeurIPS 2017, arXiv:1610.02132. NUQSGD: JMLR 2021, arXiv:2104.13818. Ours is called so.

Variance, E ||Q(v) - v||^2 <= eps ||v||^2 for a block v of d coordinates, s levels above 0:

    QSGD      min(d / s^2, sqrt(d) / s), its Lemma 3.1
    NUQSGD    1/8 + (2/9) a^2 for a = 2^-s sqrt(d) <= 9/4, else a - 1; ours, as is the next
    QSGDinf   min(n g^2 / 4, max(1/8, (sqrt(1 + n g^2) - 1) / 2)), g = 1/s, n = d - 1

Nonzeros, expected number per block: QSGD s (s + sqrt(d)); NUQSGD 4^s + 2^s sqrt(d); never above d,
which is all that is known for QSGDinf (a flat vector has d).

Bits, ours. Elias' omega code of k >= 1 takes at most psi(k) = min(1 + 5/2 l, 16/3 + 17/12 l) bits,
l = log2 k: as many at k = 1, 4, 16 and 65536, where its length jumps. psi is concave, so N numbers
of sum S take at most N psi(S / N) bits (Jensen). That is jointly concave in (N, S), and so is
F(N, S), its maximum over up to N numbers, which grows in both: expected N and S may be put in.

    Elias     F(N + e, d + e) for the gaps, N for the signs, F(N, sum of the level indices), norm;
              N nonzeros, and e = d / 8192 for the end mark of a segment, which is a gap, too
              sum of indices: s ||v||_1 / ||v|| <= s sqrt(d) for QSGD, s d for QSGDinf; NUQSGD's
              index exceeds s - m only where |v_i| > 2^-(m+1) ||v||, for at most 4^(m+1) coordinates
    Huffman   d (entropy + 1), norm; entropy <= h(p) + p log2(2 S) for p = N / d, S levels
              above 0, h the binary entropy (the code's limit of 11 bits per word is not in it)

QSGD's own Theorem 3.2, as we remember it and without its o(1):
(3 + 3/2 log2(2 (s^2 + d) / (s (s + sqrt(d))))) s (s + sqrt(d)) + 32 bits.
"""

from __future__ import annotations

import math

NORM_BITS = 32
SEGMENT = 8192  # coordinates that our coders code on their own


def variance_bound(name: str, s: int, d: int) -> float:
    if name == "qsgd":
        return min(d / s**2, math.sqrt(d) / s)
    if name == "nuqsgd":
        a = 2.0**-s * math.sqrt(d)
        return 1 / 8 + 2 / 9 * a**2 if a <= 9 / 4 else a - 1
    ng2 = (d - 1) / s**2
    return min(ng2 / 4, max(1 / 8, (math.sqrt(1 + ng2) - 1) / 2))


def nonzeros_bound(name: str, s: int, d: int) -> float:
    if name == "qsgd":
        return min(d, s * (s + math.sqrt(d)))
    return min(d, 4.0**s + 2.0**s * math.sqrt(d)) if name == "nuqsgd" else d


def index_sum_bound(name: str, s: int, d: int) -> float:
    if name == "nuqsgd":
        return nonzeros_bound(name, s, d) + sum(min(d, 4.0**m) for m in range(1, s + 1))
    return s * math.sqrt(d) if name == "qsgd" else s * d


def psi(k: float) -> float:
    """Bound the length of Elias' omega code of k >= 1."""
    log = math.log2(k)
    return min(1 + 5 / 2 * log, 16 / 3 + 17 / 12 * log)


def elias_sum(count: float, total: float) -> float:
    """F: bound the bits of at most `count` numbers whose sum is at most `total`."""
    worst_mean = 2 ** (1 / math.log(2) - 2 / 5)  # where N psi(total / N) is largest
    count = min(count, total / worst_mean)
    return count * psi(total / count)


def elias_bound(name: str, s: int, d: int) -> float:
    count, segments = nonzeros_bound(name, s, d), d / SEGMENT
    gaps = elias_sum(count + segments, d + segments)
    levels = elias_sum(count, index_sum_bound(name, s, d))
    return gaps + count + levels + NORM_BITS


def huffman_bound(name: str, s: int, d: int) -> float:
    signed = 2 * (s + 1 if name == "nuqsgd" else s)
    p = min(nonzeros_bound(name, s, d) / d, signed / (signed + 1))
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p) + p * math.log2(signed)
    return d * (entropy + 1) + NORM_BITS


def theorem_3_2(name: str, s: int, d: int) -> float:
    if name != "qsgd":
        return math.nan
    count = s * (s + math.sqrt(d))
    return (3 + 3 / 2 * math.log2(2 * (s**2 + d) / count)) * count + NORM_BITS
