"""NUQSGD's encoder with 4 bits and blocks of 8192 in Triton, to compare with; needs a GPU.

Its norms add up in Triton's own order, so that a few codes differ from ours.
"""

import torch
import triton
import triton.language as tl

from decentral_kernels import cuda
from decentral_kernels.rng import GOLDEN, ROUND_1, ROUND_2

_BLOCK, _S = 8192, 6


@triton.jit
def _codes(x, index, inverse, k0, k1, golden, round_1, round_2, least):
    # Arguments are 32 or 64 bits wide, as Triton finds it fit.
    h = (index.to(tl.uint32) * golden.to(tl.uint32)) ^ k0.to(tl.uint32)
    h = (h ^ (h >> 16)) * round_1.to(tl.uint32) + k1.to(tl.uint32)
    h = (h ^ (h >> 15)) * round_2.to(tl.uint32)
    r = tl.abs(x) * inverse
    w = (r + tl.maximum(r, least)).to(tl.uint32, bitcast=True) + (h >> 9)
    level = (w >> 23) - 121  # 127 - s
    return level | ((x.to(tl.uint32, bitcast=True) >> 31) << 3)


@triton.jit
def _encode(x, scales, codes, k0, k1, golden, round_1, round_2, least):
    block = tl.program_id(0).to(tl.int64)
    unit, column = tl.arange(0, 8)[:, None], tl.arange(0, 512)[None, :]
    low = block * 8192 + unit * 1024 + column
    a, b = tl.load(x + low), tl.load(x + low + 512)
    scale = tl.sqrt(tl.sum(a * a + b * b))
    inverse = tl.where(scale > 0, 1 / scale, 0.0)
    first = _codes(a, low, inverse, k0, k1, golden, round_1, round_2, least)
    second = _codes(b, low + 512, inverse, k0, k1, golden, round_1, round_2, least)
    tl.store(codes + block * 4096 + unit * 512 + column, (first | (second << 4)).to(tl.uint8))
    tl.store(scales + block, scale)


def encode(x, key, scales, codes):
    """Write scales and packed codes of float32[n] x; n is a multiple of 8192."""
    _encode[(len(x) // _BLOCK,)](
        x, scales, codes, key[0], key[1], GOLDEN, ROUND_1, ROUND_2, 2.0**-_S, num_warps=8
    )


def agrees(x, key, q):
    """Return the share of bytes that are the same as ours."""
    scales = torch.empty(q.num_blocks(len(x)), device=x.device)
    theirs = torch.empty(q.codes_nbytes(len(x)), dtype=torch.uint8, device=x.device)
    mine = torch.empty_like(theirs)
    encode(x, key, scales, theirs)
    cuda.encode(x, key, q, scales, mine)
    return float((mine == theirs).float().mean())
