"""The threads that kernels share their work among; numba releases the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

_num_threads = 1


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
    return ThreadPoolExecutor(threads, thread_name_prefix="decentral-kernel")


# A forked child (a DataLoader worker) has none of its parent's threads and would wait for them.
os.register_at_fork(after_in_child=_pool.cache_clear)


def share(run: Callable[[int, int], Any], items: int, grain: int) -> list[Any]:
    """Call run(first, last) on ranges that cover 0..items; a thread gets at least `grain`."""
    parts = min(_num_threads, max(1, items // max(1, grain)))
    if parts == 1:
        return [run(0, items)]
    edges = [items * i // parts for i in range(parts + 1)]
    # The caller takes the first range itself instead of waiting for another thread to wake up.
    others = _pool(_num_threads - 1).map(run, edges[1:-1], edges[2:])
    return [run(edges[0], edges[1]), *others]
