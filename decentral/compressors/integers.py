"""What IntSGD and its kin share: integers on the wire that are added before they are decoded.

Every rank sends Int(alpha g_i) with an alpha that all ranks know, so the ordinary integer
all-reduce adds them, and the sum over n ranks is S / (n alpha). A subclass says what alpha is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from decentral_kernels import fold_key, set_num_threads
from decentral_kernels import integers as kernels

from ..payload import Payload
from .base import Compressor, Key
from .checks import check_finite, is_whole

ROUNDINGS = ("random", "deterministic")
_DTYPES = {8: np.int8, 32: np.int32}
ALPHA_LIMIT = 2.0**126


def sum_limits(bits: int, n: int) -> tuple[float, float]:
    """Return the least and the largest integer that each of n ranks may send, as float32 holds it.

    The sum of n of them fits in so many bits: -(2^(b-1) // n) .. (2^(b-1) - 1) // n.
    """
    low, high = -(2 ** (bits - 1) // n), (2 ** (bits - 1) - 1) // n
    return -_towards_zero(-low), _towards_zero(high)


def _towards_zero(value: int) -> float:
    """Return the largest float32 that is not above a value of 0 or more."""
    rounded = np.float32(value)
    above = float(rounded) > value
    return float(np.nextafter(rounded, np.float32(0)) if above else rounded)


class IntegerCompressor(Compressor):
    """Round alpha x to integers that MPI may add.

    An algorithm that adds calls attach() once, begin_step() before the buckets of a step, and for
    each bucket own_top(), round(), wire(), expand() and observe(). Without one, encode() makes an
    ordinary message whose alpha is the largest that clips nothing. It has CPU kernels only: a
    vector of a GPU is copied to the host, where MPI adds up, too.

    Args:
        bits: of an integer on the wire, 8 or 32.
        rounding: "random", floor + Bernoulli(fraction), which is unbiased, or "deterministic",
            half to even.

    Raises:
        ValueError: an option is not known.
    """

    summable = True

    def __init__(self, bits: int = 8, rounding: str = "random") -> None:
        if not (is_whole(bits) and bits in _DTYPES):
            raise ValueError(f"{self.name}: bits must be 8 or 32 (int8, int32), got {bits!r}")
        if rounding not in ROUNDINGS:
            raise ValueError(
                f"{self.name}: rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}"
            )
        self.bits, self.rounding = int(bits), rounding
        self.unbiased = rounding == "random"
        self._dtype = _DTYPES[self.bits]
        self._clipped, self._largest = 0, 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bits={self.bits}, rounding={self.rounding!r})"

    def prepare(self, threads: int = 1) -> None:
        """See Compressor.prepare."""
        set_num_threads(threads)
        kernels.compile_integer(self.bits, self.rounding == "random")

    # ---- summed by an algorithm ---------------------------------------------------------------

    def attach(self, size: int, parts: Sequence[Sequence[int]]) -> None:
        """Say how many ranks will be added, and of how many coordinates each tensor of a bucket is.

        Raises:
            ValueError: integers of so many bits cannot hold the sum of so many ranks.
        """
        self.size, self.parts = size, [list(p) for p in parts]
        self._limits = sum_limits(self.bits, size)
        if self._limits[1] < 1:
            raise ValueError(
                f"{self.name}: int{self.bits} cannot hold the sum of {size} ranks, expected at "
                f"most {2 ** (self.bits - 1) - 1}; use bits=32"
            )
        self._wires = [np.zeros(sum(p) + 1, self._dtype) for p in parts]  # and a flag
        self._alphas: list[list[float]] = [[] for _ in parts]

    def begin_step(self, step: int, rates: Sequence[Sequence[float]]) -> None:
        """Prepare for the buckets of a step; `rates` are the tensors' learning rates, by bucket."""
        self._largest = 0.0

    @abstractmethod
    def alphas(self, bucket: int, top: float | None) -> Any:
        """Return alpha for each tensor of the bucket (or one for all), None for an exact step.

        All ranks return the same; `top` is the maximum over them of what own_top() returned.
        """

    def own_top(self, x: Any) -> float | None:
        """Return the number of x, float32[numel], whose maximum over ranks alphas() needs.

        None if it needs none.
        """
        return None

    def round(
        self, bucket: int, x: Any, key: Key, top: float | None
    ) -> np.ndarray[Any, Any] | None:
        """Return Int(alpha x) of a finite float32[numel] NumPy array, None for an exact step.

        The array belongs to the compressor and is overwritten in the next step.
        """
        alphas = self.alphas(bucket, top)
        least = 2.0 ** (self.bits - 127)  # below, float32 might not hold what an integer stands for
        if alphas is None or not all(least < a < ALPHA_LIMIT for a in alphas):
            return None
        self._alphas[bucket] = [float(np.float32(a)) for a in alphas]
        out = self._wires[bucket][:-1]
        for part, alpha in self._pieces(bucket):
            seen = self._round(x[part], alpha, key, part.start, self._limits, out[part])
            self._clipped += seen.clipped
            self._largest = max(self._largest, seen.largest)
        return out

    def asks(self, size: int) -> bool:
        """Return whether a bucket needs a maximum over so many ranks, before it is rounded.

        Raises:
            ValueError: as attach().
        """
        trial: Any = self.fresh()
        trial.attach(size, [[1]])
        return trial.own_top(np.ones(1, np.float32)) is not None

    def wire(self, bucket: int, refused: bool) -> np.ndarray[Any, Any]:
        """Return what is to be added: round()'s array and, last, whether this rank had to refuse.

        Its gradient was not finite; in the sum, how many ranks'.
        """
        wire = self._wires[bucket]
        wire[-1] = refused
        return wire

    def expand(self, bucket: int, integers: Any, out: Any, ranks: int, add: bool = False) -> None:
        """Write, or add, integers / (ranks alpha) to out, a float32[numel] NumPy array."""
        for part, alpha in self._pieces(bucket):
            kernels.expand_integers(integers[part], 1 / (ranks * alpha), out[part], add)

    def observe(self, bucket: int, g: Any) -> None:
        """Look at the estimate that the ranks agreed on, float32[numel], equal on all of them."""

    def stats(self) -> dict[str, Any]:
        """Return "clipped", coordinates so far, and the "largest_integer" before that, last step.

        Of this rank.
        """
        return {"clipped": self._clipped, "largest_integer": self._largest}

    def state_dict(self) -> dict[str, Any]:
        """Return the count of clips."""
        return {"clipped": self._clipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict() returned."""
        self._clipped = state["clipped"]

    def _pieces(self, bucket: int) -> list[tuple[slice, float]]:
        alphas, parts = self._alphas[bucket], self.parts[bucket]
        if len(alphas) == 1:
            return [(slice(0, sum(parts)), alphas[0])]
        ends = np.cumsum(parts).tolist()
        starts = [0, *ends[:-1]]
        return [(slice(s, e), a) for s, e, a in zip(starts, ends, alphas, strict=True)]

    def _round(
        self,
        x: Any,
        alpha: float,
        key: Key,
        start: int,
        limits: tuple[float, float],
        out: Any,
    ) -> kernels.Rounded:
        random = self.rounding == "random"
        return kernels.round_to_integers(x, alpha, fold_key(*key), start, random, limits, out)

    # ---- an ordinary message ------------------------------------------------------------------

    def body_nbytes(self, numel: int) -> int:
        """Return 4 bytes for alpha and the integers."""
        return 4 + numel * self.bits // 8

    def _sections(self, payload: Payload, numel: int) -> tuple[Any, Any]:
        integers = payload.section(4, numel * self.bits // 8, self._dtype)
        return payload.section(0, 4, np.float32), integers

    def _encode(self, x: Any, key: Key, payload: Payload) -> None:
        check_finite(x, self.name)
        alpha, integers = self._sections(payload, len(x))
        top = float(np.abs(x).max(initial=0))
        limits = sum_limits(self.bits, 1)
        possible = limits[1] / top if top > 0 else 0.0
        alpha[0] = possible if possible < ALPHA_LIMIT else 0.0
        self._round(x, float(alpha[0]), key, 0, limits, integers)

    def _scale(self, alpha: Any) -> float:
        return 1 / float(alpha[0]) if alpha[0] > 0 else 0.0

    def _decode(self, payload: Payload, out: Any) -> None:
        alpha, integers = self._sections(payload, len(out))
        kernels.expand_integers(integers, self._scale(alpha), out, add=False)

    def _accumulate(self, payload: Payload, out: Any, weight: float) -> None:
        alpha, integers = self._sections(payload, len(out))
        kernels.expand_integers(integers, self._scale(alpha) * weight, out, add=True)
