"""The hypercube: ranks as corners, numbered in binary, joined where one bit differs."""

from __future__ import annotations

from collections.abc import Iterator

from decentral_topologies.graph import Topology


class Hypercube(Topology):
    """The cube of log2(size) dimensions; its gap is 2 / (1 + log2(size)).

    Raises ValueError if size is not a power of two.
    """

    name = "hypercube"

    def __init__(self, size: int) -> None:
        """Make the hypercube of `size` corners."""
        super().__init__(size)
        if not self.exists(self.size):
            below = 1 << (self.size.bit_length() - 1)
            raise ValueError(
                f"hypercube: size must be a power of two, got {self.size}; "
                f"the nearest are {below} and {2 * below}"
            )

    @classmethod
    def exists(cls, size: int) -> bool:
        """Tell whether size is a power of two."""
        return size >= 1 and size & (size - 1) == 0

    def _adjacent(self, rank: int, step: int) -> Iterator[int]:
        return (rank ^ (1 << bit) for bit in range(self.size.bit_length() - 1))
