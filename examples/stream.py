"""Which batch a rank trains on in which step: a place in the data that a run can come back to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from torch import Tensor

import datasets

Batch = tuple[Tensor, Tensor]


class Start(NamedTuple):
    """The step with which the ranks that there are now began, at the beginning of an epoch."""

    step: int = 0
    epoch: int = 0


class Stream:
    """A rank's batches for training, by step; the shards of an epoch follow from it alone."""

    def __init__(
        self,
        split: datasets.Split,
        shard: datasets.ShardSampler,
        batch_size: int,
        start: Start,
    ) -> None:
        self._split, self._shard, self._batch_size, self.start = split, shard, batch_size, start
        self.steps_per_epoch = datasets.batch_count(len(shard), batch_size)
        self._next = -1  # the step whose batch the iterator is at
        self._batches: Iterator[Batch] = iter(())

    def place(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the number of its batch in it."""
        epochs, number = divmod(step - self.start.step, self.steps_per_epoch)
        return self.start.epoch + epochs, number

    def ends_epoch(self, step: int) -> bool:
        """Return whether a step is an epoch's last."""
        return self.place(step)[1] == self.steps_per_epoch - 1

    def batch(self, step: int) -> Batch:
        """Return images and labels; fastest for one step after the other."""
        epoch, number = self.place(step)
        if step != self._next or number == 0:
            key = (self._shard.seed, epoch, self._shard.rank)
            mine = self._shard.epoch(epoch)
            batches = datasets.batches(self._split, mine, self._batch_size, key)
            self._batches = islice(batches, number, None)
        self._next = step + 1
        return next(self._batches)
