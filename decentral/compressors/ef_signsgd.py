"""EF-SignSGD: signs with error feedback.

Karimireddy, Rebjock, Stich, Jaggi: "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes", ICML 2019, arXiv:1901.09847, algorithm 1, in the variant that the NUQSGD paper (JMLR 2021)
times: blocks of 64, each sent as 64 signs and two float32 scales, 128 bits for 64 coordinates.

    p = g + e;   c_i = mu_plus if p_i >= 0 else -mu_minus;   send c;   e <- p - c

The scales are the means of |p| over each side; that is our reading, the paper only says that there
are two. The residual e is state: one vector per (rank, bucket) of the key, saved and restored. It
is one of gradients, as the optimizer comes after the mean; in algorithm 1 it is one of steps, eta g
+ e, so that there a learning rate that falls leaves the old residual as large as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from decentral_kernels import set_num_threads
from decentral_kernels import signs as kernels

from ..payload import Payload
from .base import Compressor, Key
from .checks import check_block_size, not_finite


class EFSignSGD(Compressor):
    """One sign per coordinate, two scales per block, and what they miss is added next time.

    It has CPU kernels only: a vector of a GPU is copied to the host, where the residual stays.

    Args:
        block_size: coordinates that share the scales, at least 1.

    Raises:
        ValueError: block_size out of range; when encoding, a bucket that changed its length.
    """

    name = "ef-signsgd"
    unbiased = False
    stateful = True

    def __init__(self, block_size: int = 64) -> None:
        check_block_size(self.name, block_size, usual=64)
        self.block_size = int(block_size)
        self._residuals: dict[tuple[int, int], Any] = {}
        # Of the last step with a message: which, and what the residual was before it.
        self._before: dict[tuple[int, int], tuple[int, Any]] = {}

    def __repr__(self) -> str:
        return f"EFSignSGD(block_size={self.block_size})"

    def prepare(self, threads: int = 1) -> None:
        """See Compressor.prepare."""
        set_num_threads(threads)
        kernels.compile_sign()

    def fresh(self) -> EFSignSGD:
        """See Compressor.fresh."""
        return type(self)(self.block_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the residuals, float32[numel] by "rank/bucket"."""
        return {
            f"{rank}/{bucket}": torch.from_numpy(e.copy())
            for (rank, bucket), e in self._residuals.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over residuals that state_dict() returned."""
        self._residuals, self._before = {}, {}
        for where, e in state.items():
            rank, bucket = map(int, where.split("/"))
            self._residuals[rank, bucket] = e.cpu().numpy().astype(np.float32, copy=True)

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block_size)

    def body_nbytes(self, numel: int) -> int:
        """Return 8 bytes per block and a bit per coordinate."""
        return 8 * self._num_blocks(numel) + kernels.signs_nbytes(numel)

    def _sections(self, payload: Payload, numel: int) -> tuple[Any, Any]:
        split = 8 * self._num_blocks(numel)
        scales = payload.section(0, split, np.float32)
        return scales, payload.section(split, kernels.signs_nbytes(numel), np.uint8)

    def _residual(self, key: Key, numel: int) -> Any:
        where = key[2:]
        if where not in self._residuals:
            self._residuals[where] = np.zeros(numel, np.float32)
        e = self._residuals[where]
        if len(e) != numel:
            raise ValueError(
                f"{self.name}: rank {key[2]}, bucket {key[3]} had {len(e)} coordinates, got "
                f"{numel}; what was not sent cannot be added. Use another bucket number, or fresh()"
            )
        return e

    def retract(self, step: int) -> None:
        """See Compressor.retract."""
        for where, (of, e) in list(self._before.items()):
            if of == step:
                self._residuals[where] = e
                del self._before[where]

    def _encode(self, x: Any, key: Key, payload: Payload) -> None:
        scales, signs = self._sections(payload, len(x))
        where, before = key[2:], self._residual(key, len(x))
        e = self._unused(where, key[1])
        e = np.empty_like(before) if e is None else e
        block = kernels.sign_encode(x, before, e, self.block_size, scales, signs)
        if block >= 0:
            start, what = block * self.block_size, "a value, or the sum of a block,"
            raise not_finite(self.name, x + before, start, self.block_size, what)
        self._residuals[where] = e
        self._before.setdefault(where, (key[1], before))

    def _unused(self, where: tuple[int, int], step: int) -> Any:
        """Return memory that is not needed any more: of the residual before the last step."""
        of, before = self._before.get(where, (step, None))
        if of != step:  # else gradients are averaged again in the same step
            del self._before[where]
            return before
        return None

    def _decode(self, payload: Payload, out: Any) -> None:
        scales, signs = self._sections(payload, len(out))
        kernels.sign_decode(scales, signs, self.block_size, out, 1.0, add=False)

    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None:
        scales, signs = self._sections(payload, len(out))
        kernels.sign_decode(scales, signs, self.block_size, out, weight, add=True)
