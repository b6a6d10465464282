"""Data sets by name, and how ranks share them: `load`, `ShardSampler`, `batches`.

A new data set is one function `(data_dir, **options) -> DataSet` and one line in DATASETS.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch user knows)
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # images float32 [B,C,H,W], labels int64 [B]


class Split(Protocol):
    """What `batches` needs; indexing gives (float32 [C,H,W], label), never augmented."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N]."""
        ...

    def stream(
        self, chunks: Sequence[Tensor], generator: torch.Generator | None, workers: int
    ) -> Iterator[Batch]:
        """One batch for each int64 [B] of `chunks`; augmented only if there is a generator."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Train and test split, with what a model for them has to know; images are square."""

    train: Split
    test: Split
    in_channels: int
    num_classes: int
    image_size: int


@dataclass(frozen=True)
class InMemory:
    """A split in two tensors: images uint8 [N,C,H,W], labels int64 [N]; mean, std [C] per channel.

    Pixels stay uint8 until they are used: a quarter of the memory, on every rank of a host.
    `shift` pixels of random translation (zeros come in) and random flips are the augmentation.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    shift: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._normalize(self.images[index]), int(self.labels[index])

    def stream(
        self, chunks: Sequence[Tensor], generator: torch.Generator | None, workers: int = 0
    ) -> Iterator[Batch]:
        """Batches by indexing: no loop over images, no workers."""
        for chunk in chunks:
            images = self.images[chunk]
            if generator is not None:
                images = shift_and_flip(images, self.shift, self.flip, generator)
            yield self._normalize(images), self.labels[chunk]

    def _normalize(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))


def shift_and_flip(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image [C,H,W] of [B,C,H,W] translated by up to `shift` pixels, flipped at even odds."""
    count, _, height, width = images.shape
    if shift:
        windows = F.pad(images, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        y, x = torch.randint(2 * shift + 1, (2, count), generator=generator)
        images = windows[torch.arange(count), :, y, x]
    if flip:
        mirror = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        images = torch.where(mirror, images.flip(3), images)
    return images


def _digits_table() -> NDArray[np.uint8]:
    """Return uint8 [1797, 65]: 64 pixels of 0..16 and a label per image."""
    # find_spec does not import scikit-learn, which would cost every rank more than a second.
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "digits: the images come with scikit-learn, which is not installed; "
            "pip install scikit-learn"
        )
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.exists():
        return np.loadtxt(path, delimiter=",", dtype=np.uint8)
    from sklearn.datasets import load_digits  # an edition that keeps its file elsewhere

    source = load_digits()
    return np.column_stack([source.data, source.target]).astype(np.uint8)


def digits(data_dir: str | os.PathLike[str], augment: bool = False) -> DataSet:
    """scikit-learn's 1,797 8x8 images of handwritten digits: 1,437 to train, 360 to test.

    Augmentation is a shift by up to one pixel. It is off: over 9 seeds of 20 epochs resnet20
    reached a test accuracy of 0.990 without it and 0.991 with it, a ninth of an image apart.

    Raises: ModuleNotFoundError without scikit-learn, whose package holds the images.
    """
    table = _digits_table()
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8))
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    # every fifth of each class, in an order that no flag changes: all runs test on the same images
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    order = order[torch.argsort(labels[order], stable=True)]
    is_test = torch.arange(len(order)) % 5 == 0
    train, test = order[~is_test], order[is_test]
    pixels = images[train].float()
    mean, std = pixels.mean().view(1), pixels.std().view(1)
    return DataSet(
        InMemory(images[train], labels[train], mean, std, shift=int(augment)),
        InMemory(images[test], labels[test], mean, std),
        in_channels=1,
        num_classes=10,
        image_size=8,
    )


def cifar(
    data_dir: str | os.PathLike[str],
    augment: bool = True,
    checksums: Mapping[str, str] | None = None,
) -> DataSet:
    """CIFAR-10: 50,000 images 32x32 to train, 10,000 to test.

    Augmentation as in He et al. (arXiv 1512.03385, section 4.2): pad by 4, crop, flip.
    `checksums` (file name -> md5) replace the published ones.

    Raises: what `cifar10.read` raises when files are missing or not the published ones.
    """
    import cifar10

    arrays = cifar10.read(data_dir, checksums or cifar10.CHECKSUMS)
    train_x, train_y, test_x, test_y = (torch.from_numpy(a) for a in arrays)
    mean = 255 * torch.tensor([0.4914, 0.4822, 0.4465])  # of the train images, RGB
    std = 255 * torch.tensor([0.2470, 0.2435, 0.2616])
    return DataSet(
        InMemory(train_x, train_y, mean, std, shift=4 * int(augment), flip=augment),
        InMemory(test_x, test_y, mean, std),
        in_channels=3,
        num_classes=10,
        image_size=32,
    )


def imagefolder(data_dir: str | os.PathLike[str], augment: bool = True) -> DataSet:
    """ImageNet's layout of class folders, decoded batch by batch.

    Raises: ModuleNotFoundError without Pillow, and what `imagefolder.read` raises.
    """
    try:
        import imagefolder as folders
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "imagefolder: images are decoded by Pillow, which is not installed; pip install pillow"
        ) from error
    train, test, classes = folders.read(data_dir, augment)
    return DataSet(train, test, in_channels=3, num_classes=len(classes), image_size=224)


DATASETS: dict[str, Callable[..., DataSet]] = {
    "digits": digits,
    "cifar10": cifar,
    "imagefolder": imagefolder,
}


def load(name: str, data_dir: str | os.PathLike[str] = "data", **options: Any) -> DataSet:
    """The named data set, from files under `data_dir` (nothing is ever downloaded).

    Options go to the data set's function; `augment`, about the train split alone, suits them all.

    Raises: ValueError for a name that is not in DATASETS; and what that function raises.
    """
    if name not in DATASETS:
        raise ValueError(f"datasets: no data set is named {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name](data_dir, **options)


class ShardSampler:
    """Rank's equal share of `length` samples, another one each epoch.

    All ranks shuffle alike, by (seed, epoch), and rank takes every size-th sample. What does not
    divide by size, at most size - 1 samples, sits out for an epoch: with as many batches on every
    rank nobody waits for a rank that has finished.

    Raises: ValueError when rank is not in 0..size-1 or there are fewer samples than ranks.
    """

    def __init__(self, rank: int, size: int, length: int, seed: int) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"shard: rank must be 0..{size - 1}, got {rank}; pass comm's own")
        if length < size:
            raise ValueError(
                f"shard: expected at least one sample for each of {size} ranks, got {length}; "
                "use fewer ranks or more data"
            )
        self.rank, self.size, self.length, self.seed = rank, size, length, seed

    def __len__(self) -> int:
        return self.length // self.size

    def epoch(self, k: int) -> Tensor:
        """This rank's indices for epoch k: int64 [length // size]."""
        order = np.random.default_rng((self.seed, k)).permutation(self.length)
        return torch.from_numpy(order[self.rank :: self.size][: len(self)].astype(np.int64))


def batch_count(length: int, batch_size: int) -> int:
    """How many train batches `batches` makes of that many indices.

    Raises: ValueError when batch_size is below 1.
    """
    return len(_chunks(torch.arange(length), batch_size, training=True))


def batches(
    dataset: Split,
    indices: ArrayLike | Tensor,
    batch_size: int,
    key: tuple[int, ...] | None = None,
    workers: int = 2,
) -> Iterator[Batch]:
    """Images float32 [B,C,H,W] and labels int64 [B] of these indices, in order.

    With a key (seed, epoch, rank), for training: augmented by draws that depend on nothing else,
    and a last batch of a single sample is dropped, since batch norm has no variance of one.
    Without, for evaluation: not augmented, nothing dropped. `workers` processes decode images,
    where the data set is not in memory.

    Raises: ValueError when batch_size is below 1.
    """
    chunks = _chunks(torch.as_tensor(indices, dtype=torch.int64), batch_size, key is not None)
    if not chunks:
        return iter(())
    generator = None if key is None else _generator(key)
    return dataset.stream(chunks, generator, workers)


def _chunks(indices: Tensor, batch_size: int, training: bool) -> list[Tensor]:
    if batch_size < 1:
        raise ValueError(f"batches: batch_size must be at least 1, got {batch_size}")
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    if training and batch_size > 1 and chunks and len(chunks[-1]) == 1:
        chunks.pop()
    return chunks


def _generator(key: tuple[int, ...]) -> torch.Generator:
    # hashed, so that neighboring seeds, epochs and ranks draw independently
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
