"""How noisy a compressor is, which some algorithms have to know beforehand."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..compressors.base import Compressor

# The noise grows with the block, which may be as long as the vector; more than this takes long.
_LEAST_NUMEL, _MOST_NUMEL = 1 << 14, 1 << 22
_found: dict[tuple[str, int], float] = {}


def rounding_noise(compressor: Compressor, numel: int) -> float:
    """Return ||C(x) - x||^2 / ||x||^2 of a Gaussian vector, the same one on all ranks.

    Of about `numel` coordinates: a power of two, from 2^14 to 2^22.
    """
    numel = min(max(_LEAST_NUMEL, 1 << (max(numel, 1).bit_length() - 1)), _MOST_NUMEL)
    case = (repr(compressor), numel)
    if case not in _found:
        x = np.random.default_rng(0).standard_normal(numel).astype(np.float32)
        c = compressor.fresh()
        y = c.decode(c.encode(x, (0, 0, 0, 0)))
        _found[case] = float(np.square(y - x).sum() / np.square(x).sum())
    return _found[case]


class Contraction(NamedTuple):
    """What makes a compressor contract, ||Q(z) - z||^2 <= (1 - omega) ||z||^2: Q = scale * C.

    `eps` is C's noise. An unbiased C that is noisier than z itself, eps >= 1, is divided by 1 + eps
    (Koloskova et al., ICML 2019, section 3.5).
    """

    eps: float
    scale: float
    omega: float


def contraction(compressor: Compressor, vectors: Sequence[Tensor]) -> Contraction:
    """Return that of a compressor for vectors of these lengths."""
    eps = rounding_noise(compressor, max(map(len, vectors), default=0))
    if compressor.unbiased and eps >= 1:
        return Contraction(eps, 1 / (1 + eps), 1 / (1 + eps))
    return Contraction(eps, 1.0, max(0.0, 1 - eps))


def warn_of_noise(algorithm: Any, vectors: Sequence[Tensor]) -> None:
    """Say once, on rank 0, that a compressor is too noisy for a gossip algorithm, if it is."""
    limit, compressor = algorithm.trains_to_noise, algorithm.compressor
    if limit == math.inf or algorithm.comm.rank != 0:
        return
    eps = rounding_noise(compressor, max(map(len, vectors), default=0))
    if eps > limit:
        logging.getLogger("decentral").warning(
            f"decentral: {algorithm.name} is not known to train with {compressor!r}, whose noise "
            f"is {eps:.2g} times the squared norm of what it encodes, expected at most {limit:g}; "
            "use more bits, smaller blocks, qsgdinf, or choco-sgd"
        )
