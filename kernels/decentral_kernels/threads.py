"""The threads that kernels share their work among; numba releases the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

# From this many coordinates on (512 KiB of float32) another thread pays for itself.
GRAIN = 1 << 17

_num_threads = 1
_here = threading.local()  # `worker`: whether this thread is one of the pool's


def set_num_threads(n: int) -> None:
    """Set how many threads a CPU kernel may use in this process (at first 1).

    Raises:
        ValueError: n is not positive.
    """
    global _num_threads
    if n < 1:
        raise ValueError(f"number of kernel threads must be at least 1, got {n}")
    _num_threads = n


def get_num_threads() -> int:
    """Return how many threads a CPU kernel may use in this process."""
    return _num_threads


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "decentral-kernel", initializer=_begin_worker)


def _begin_worker() -> None:
    _here.worker = True


# A forked child (a DataLoader worker) has none of its parent's threads and would wait for them.
os.register_at_fork(after_in_child=_pool.cache_clear)


def share(run: Callable[[int, int], Any], items: int, grain: int) -> list[Any]:
    """Call run(first, last) on ranges that cover 0..items; a thread gets at least `grain`.

    What run() shares in its turn a thread of the pool does alone: it would wait for itself.
    """
    parts = min(_num_threads, max(1, items // max(1, grain)))
    if getattr(_here, "worker", False):
        parts = 1
    if parts == 1:
        return [run(0, items)]
    edges = [items * i // parts for i in range(parts + 1)]
    # The caller takes the first range itself instead of waiting for another thread to wake up.
    others = _pool(_num_threads - 1).map(run, edges[1:-1], edges[2:])
    return [run(edges[0], edges[1]), *others]
