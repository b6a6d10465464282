"""Images in class folders, as ImageNet is usually laid out, decoded with Pillow.

    data_dir/train/<class>/*.jpeg      data_dir/val/<class>/*.jpeg

Train images: a random part of 8% to 100% of the area, 3:4 to 4:3 (Szegedy et al., arXiv 1409.4842,
section 6), to 224x224, flipped half of the time. Test images: shorter side to 256, center 224x224.
"""

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # of ImageNet's train images, RGB, 0..1
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
CENTER = 224 / 256  # the part of the shorter side that is left by Resize(256), CenterCrop(224)
LAYOUT = "expected DATA_DIR/train/<class>/*.jpeg and DATA_DIR/val/<class>/*.jpeg"

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the file


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """One split: (float32 [3,size,size] normalized, label), labels numbering `classes`.

    Indexing gives the center crop; `stream` with a generator gives random crops if `augment`.

    Raises: FileNotFoundError when a class folder holds no image.
    """

    def __init__(self, root: Path, classes: Sequence[str], augment: bool, size: int = 224) -> None:
        self.augment, self.size = augment, size
        self.files: list[tuple[str, int]] = []
        for label, name in enumerate(classes):
            found = sorted(f for f in os.listdir(root / name) if f.lower().endswith(EXTENSIONS))
            if not found:
                raise FileNotFoundError(
                    f"imagefolder: no image in {root / name}; expected files ending in "
                    f"{', '.join(EXTENSIONS)}; add some or remove the class"
                )
            self.files += [(str(root / name / file), label) for file in found]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return decode(path, self.size, None), label

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N]; no image is decoded."""
        return torch.tensor([label for _, label in self.files])

    def stream(
        self, chunks: Sequence[Tensor], generator: torch.Generator | None, workers: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of these indices, decoded in order by `workers` processes (0: in this one)."""
        indices = torch.cat(list(chunks)).tolist()
        if self.augment and generator is not None:
            # a seed per image: its crop does not depend on the number of workers
            draws = torch.randint(2**63 - 1, (len(indices),), generator=generator).tolist()
        else:
            draws = [None] * len(indices)
        ends = np.cumsum([len(chunk) for chunk in chunks]).tolist()
        loader = DataLoader(
            _Chosen([self.files[i] for i in indices], draws, self.size),
            batch_sampler=[list(range(a, b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)],
            num_workers=workers,
            # the loader draws a seed for its workers: not from the global generator
            generator=torch.Generator(),
            multiprocessing_context=_context() if workers else None,
        )
        yield from loader


class _Chosen(Dataset[tuple[Tensor, int]]):
    """The images of one epoch and rank: all that a worker process needs to be sent."""

    def __init__(
        self, files: list[tuple[str, int]], seeds: Sequence[int | None], size: int
    ) -> None:
        self.files, self.seeds, self.size = files, seeds, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return decode(path, self.size, self.seeds[index]), label


def _context() -> multiprocessing.context.ForkServerContext:
    # forking a process that runs MPI and has threads is undefined: fork a clean server instead
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "PIL.Image"])
    return context


def read(
    data_dir: str | os.PathLike[str], augment: bool = True
) -> tuple[ImageFolder, ImageFolder, list[str]]:
    """Train split, test split and the sorted class names.

    Raises: FileNotFoundError when a folder or its images are missing; ValueError when train and
    val do not hold the same classes.
    """
    train, val = Path(data_dir) / "train", Path(data_dir) / "val"
    classes, val_classes = _classes(train), _classes(val)
    if classes != val_classes:
        only_train = sorted(set(classes) - set(val_classes))
        only_val = sorted(set(val_classes) - set(classes))
        raise ValueError(
            f"imagefolder: {train} and {val} must hold the same classes; only in train: "
            f"{_some(only_train)}; only in val: {_some(only_val)}; add or remove these folders"
        )
    return ImageFolder(train, classes, augment), ImageFolder(val, classes, False), classes


def _classes(root: Path) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(f"imagefolder: no folder {root}; {LAYOUT}")
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise FileNotFoundError(
            f"imagefolder: no class folders in {root}; {LAYOUT} "
            "(ImageNet's own validation archive is flat: sort its images into class folders)"
        )
    return names


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 5 else shown


def decode(path: str, size: int, seed: int | None) -> Tensor:
    """File -> float32 [3,size,size], normalized; a random crop and flip drawn from `seed`, if any.

    Raises: OSError, naming the file, when Pillow cannot read it.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise OSError(
            f"imagefolder: expected an image in {path}, got {error}; replace or remove the file"
        ) from error
    width, height = image.size
    box = center_box(width, height) if generator is None else random_box(width, height, generator)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    if generator is not None and torch.rand((), generator=generator) < 0.5:
        pixels = pixels.flip(2)
    return ((pixels - MEAN) / STD).contiguous()


def center_box(width: int, height: int) -> Box:
    """What Resize(256), CenterCrop(224) keeps, so that one resampling does both."""
    side = CENTER * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(width: int, height: int, generator: torch.Generator) -> Box:
    """A box of random area, aspect and place; the center where ten draws do not fit."""
    for _ in range(10):
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = (0.08 + 0.92 * u[0]) * width * height
        ratio = math.exp((2 * u[1] - 1) * math.log(4 / 3))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, upper = u[2] * (width - w), u[3] * (height - h)
            return left, upper, left + w, upper + h
    return center_box(width, height)
