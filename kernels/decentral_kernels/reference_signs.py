"""EF-SignSGD and natural compression in NumPy: the oracles of their kernels."""

from __future__ import annotations

import numpy as np

from . import rng
from .layout import EF_WIDTH, SIGN_LIMIT_BITS
from .reference import Bytes, Floats, Words, _blocks, pack, unpack

_ABS = np.uint32(0x7FFFFFFF)


def natural_encode(x: Floats, key: tuple[int, int], exponents: Bytes, signs: Bytes) -> int:
    """Round |x| to a power of two by a carry out of its mantissa; first bad coordinate or -1.

    Natural compression (Horvath et al., 2019), C_nat: E[C(x)] = x, also below the normal numbers.
    """
    words = x.view(np.uint32)
    bad = np.flatnonzero((words & _ABS) > np.uint32(254 << rng.DRAW_BITS))
    if bad.size:
        return int(bad[0])
    rounded = (words & _ABS) + rng.draw(key, 0, x.size)
    exponents[:] = (rounded >> np.uint32(rng.DRAW_BITS)).astype(np.uint8)
    signs[:] = pack((words >> np.uint32(31)).astype(np.uint8), 1)
    return -1


def natural_decode(exponents: Bytes, signs: Bytes, weight: float = 1.0) -> Floats:
    """Return weight * (the powers of two), float32[n]."""
    sign = unpack(signs, exponents.size, 1).astype(np.uint32) << np.uint32(31)
    word: Words = sign | exponents.astype(np.uint32) << np.uint32(rng.DRAW_BITS)
    return np.float32(weight) * word.view(np.float32)


def _side_means(blocks: Floats, counts: Floats) -> Floats:
    sums = np.zeros((len(blocks), EF_WIDTH), np.float32)
    for row in np.split(blocks, blocks.shape[1] // EF_WIDTH, axis=1):
        sums = sums + row
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return np.where(counts > 0, sums[:, 0] / np.maximum(counts, np.float32(1)), np.float32(0))


def sign_encode(
    x: Floats, residual: Floats, left: Floats, block_size: int, scales: Floats, signs: Bytes
) -> int:
    """Write both means of each block of p = x + residual, p's signs, and p - c to `left`.

    Returns the first block that cannot be encoded, or -1.
    """
    with np.errstate(all="ignore"):
        p = x + residual
    top = _blocks((p.view(np.uint32) & _ABS).view(np.float32), block_size).view(np.uint32)
    below = p < 0
    with np.errstate(all="ignore"):
        for k, side in enumerate((~below, below)):
            magnitudes = np.where(side, np.abs(p), np.float32(0))
            counts = _blocks(side.astype(np.float32), block_size).sum(axis=1, dtype=np.float32)
            scales[k::2] = _side_means(_blocks(magnitudes, block_size, EF_WIDTH), counts)
    large = top.max(axis=1, initial=0) >= np.uint32(SIGN_LIMIT_BITS)
    bad = np.flatnonzero(large | ~np.isfinite(scales).reshape(-1, 2).all(axis=1))
    if bad.size:
        return int(bad[0])
    signs[:] = pack(below.astype(np.uint8), 1)
    left[:] = p - sign_decode(scales, signs, block_size, x.size)
    return -1


def sign_decode(
    scales: Floats, signs: Bytes, block_size: int, numel: int, weight: float = 1.0
) -> Floats:
    """Return weight * (mean of its side, with its sign), float32[numel]."""
    w = np.float32(weight)
    plus = np.repeat(scales[0::2] * w, block_size)[:numel]
    minus = np.repeat(-scales[1::2] * w, block_size)[:numel]
    return np.where(unpack(signs, numel, 1) == 1, minus, plus)
