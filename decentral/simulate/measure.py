"""What a machine's processor needs for messages, measured where this runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..compressors.base import Compressor


class CodingSpeed(NamedTuple):
    """Bytes of float32 per second, under the names that Machine has for them."""

    encode_bytes_per_s: float
    decode_bytes_per_s: float
    copy_bytes_per_s: float


def measure_coding(
    compressor: Compressor, numel: int = 1 << 23, seconds: float = 0.2
) -> CodingSpeed:
    """Return how fast this compressor encodes, and decodes and accumulates, in this thread.

    A Gaussian vector of `numel` coordinates, which is more than caches hold; the mean over about
    `seconds` of each, since what runs beside it counts, too. The first call, which compiles, does
    not count.

    Raises:
        ValueError: numel is below 1, or seconds not positive.
    """
    if numel < 1 or not seconds > 0:
        raise ValueError(
            f"measure_coding: expected numel of at least 1 and seconds above 0, got {numel} and "
            f"{seconds}"
        )
    c = compressor.fresh()
    c.prepare()
    x = np.random.default_rng(0).standard_normal(numel).astype(np.float32)
    out, payload = np.zeros_like(x), c.new_payload(numel)
    actions: list[Callable[[], object]] = [
        lambda: c.encode(x, (0, 0, 0, 0), out=payload),
        lambda: c.accumulate(payload, out, 0.5),
        lambda: np.copyto(out, x),
    ]
    return CodingSpeed(*(4 * numel / _seconds_per_call(action, seconds) for action in actions))


def _seconds_per_call(action: Callable[[], object], seconds: float) -> float:
    action()
    calls, start = 0, time.perf_counter()
    while True:
        action()
        calls += 1
        taken = time.perf_counter() - start
        if taken >= seconds:
            return taken / calls
