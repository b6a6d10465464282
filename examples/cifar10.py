"""CIFAR-10 (Krizhevsky 2009) from its published python version: checked, then read, never executed.

The batches are pickles, and a pickle can run anything. So a file is compared with its published
md5 first, and then read by an unpickler that can build arrays of numbers and nothing else.
"""

import hashlib
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
CHECKSUMS = {
    ARCHIVE: "c58f30108f718f92721af3b45e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

# numpy's array rebuilder: its module has moved between versions, the function has not
_RECONSTRUCT = np.ndarray(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Batch = tuple[Images, Labels]


def read(
    data_dir: str | os.PathLike[str], checksums: Mapping[str, str] = CHECKSUMS
) -> tuple[Images, Labels, Images, Labels]:
    """Train images uint8 [N,3,32,32], train labels int64 [N] in 0..9, test images, test labels.

    Takes the extracted folder where there is one, else the archive, which is read in place.

    Raises: FileNotFoundError when neither (or not all of it) is there; ValueError when a file is
    not the published one; pickle.UnpicklingError when a pickle asks for more than arrays.
    """
    folder, archive = Path(data_dir) / FOLDER, Path(data_dir) / ARCHIVE
    if folder.is_dir():
        batches = _from_folder(folder, checksums)
    elif archive.is_file():
        batches = _from_archive(archive, checksums[ARCHIVE])
    else:
        raise FileNotFoundError(
            f"cifar10: found neither {folder} nor {archive}; download the python version "
            f"({ARCHIVE}) from {URL} and put it, as it is, into {Path(data_dir).absolute()}"
        )
    train, test = ([batches[name] for name in names] for names in (TRAIN, TEST))
    return (*_join(train), *_join(test))


def _join(batches: list[Batch]) -> Batch:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _from_folder(folder: Path, checksums: Mapping[str, str]) -> dict[str, Batch]:
    batches = {}
    for name in TRAIN + TEST:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"cifar10: {folder} lacks {name}; extract {ARCHIVE} (from {URL}) again, or delete "
                f"the folder and leave the archive in {folder.parent}"
            )
        with path.open("rb") as file:
            _check(path, file, checksums[name])
            batches[name] = _unpickle(path, file)
    return batches


def _from_archive(archive: Path, checksum: str) -> dict[str, Batch]:
    batches = {}
    with archive.open("rb") as file:
        _check(archive, file, checksum)
        # one pass in the archive's own order: going back would decompress all of it again
        with tarfile.open(fileobj=file, mode="r|gz") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                content = tar.extractfile(member)
                if folder == FOLDER and name in TRAIN + TEST and content is not None:
                    batches[name] = _unpickle(archive / member.name, content)
    missing = [name for name in TRAIN + TEST if name not in batches]
    if missing:
        raise FileNotFoundError(
            f"cifar10: {archive} lacks {', '.join(missing)} in {FOLDER}; download it from {URL}"
        )
    return batches


def _check(path: Path, file: IO[bytes], expected: str) -> None:
    """Compare the md5 of an open file with the published one, and rewind it."""
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"cifar10: {path} is not the published file: expected md5 {expected}, got "
            f"{digest.hexdigest()}; delete it and download it from {URL} again"
        )


class _ArraysOnly(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and NumPy arrays; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"cifar10: a batch asks for {module}.{name}, expected nothing but NumPy arrays; "
                f"do not use this file, download it from {URL} again"
            )
        return _ALLOWED[module, name]


def _unpickle(path: Path, file: IO[bytes]) -> Batch:
    # Python 2 wrote these: latin1 keeps the bytes of its strings, the arrays' contents among them
    batch = _ArraysOnly(file, encoding="latin1").load()
    data, labels = batch["data"], np.asarray(batch["labels"], dtype=np.int64)
    if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        raise ValueError(
            f"cifar10: {path}: expected data uint8 [{len(labels)},3072] for its {len(labels)} "
            f"labels, got {data.dtype} {list(data.shape)}; download it from {URL} again"
        )
    return data.reshape(-1, 3, 32, 32), labels
