"""CIFAR-10's files are checked before they are read, and reading them runs nothing."""

import hashlib
import os
import pickle
import tarfile
from typing import ClassVar

import numpy as np
import pytest
import torch

import cifar10
import datasets

BATCH_NAMES = cifar10.TRAIN + cifar10.TEST


class _Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2's cPickle did in the published batches."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_python2_string(self, obj):
        content = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_python2_string


def _dump(path, batch):
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump(batch)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def _batch(number, rows=3):
    rng = np.random.default_rng(number)
    return {
        "batch_label": f"batch {number}",
        "labels": rng.integers(0, 10, rows).tolist(),
        "data": rng.integers(0, 256, (rows, 3072), dtype=np.uint8),
        "filenames": [f"{i}.png" for i in range(rows)],
    }


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar_folder(tmp_path):
    """data_dir with an extracted tiny CIFAR-10, and the checksums of its files."""
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for number, name in enumerate(BATCH_NAMES):
        _dump(folder / name, _batch(number))
    return tmp_path, {name: _md5(folder / name) for name in BATCH_NAMES}


@pytest.fixture
def cifar_archive(cifar_folder, tmp_path_factory):
    """data_dir with the same as an archive, in another order and with a file more."""
    source, _ = cifar_folder
    data_dir = tmp_path_factory.mktemp("archive")
    (source / cifar10.FOLDER / "readme.html").write_text("hello")
    with tarfile.open(data_dir / cifar10.ARCHIVE, "w:gz") as tar:
        tar.add(source / cifar10.FOLDER, cifar10.FOLDER, recursive=False)
        for name in reversed((*BATCH_NAMES, "readme.html")):
            tar.add(source / cifar10.FOLDER / name, f"{cifar10.FOLDER}/{name}")
    return data_dir, {cifar10.ARCHIVE: _md5(data_dir / cifar10.ARCHIVE)}


@pytest.fixture(params=["cifar_folder", "cifar_archive"])
def cifar_files(request):
    return request.getfixturevalue(request.param)


def test_cifar10_reads_folder_and_archive(cifar_files):
    data_dir, checksums = cifar_files
    before = sorted(os.listdir(data_dir))
    data = datasets.load("cifar10", data_dir, checksums=checksums)
    assert (len(data.train), len(data.test)) == (15, 3)
    assert (data.in_channels, data.num_classes, data.image_size) == (3, 10, 32)
    expected = [_batch(number) for number in range(5)]
    labels = np.concatenate([batch["labels"] for batch in expected])
    pixels = np.concatenate([batch["data"] for batch in expected]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images.numpy(), pixels)
    assert np.array_equal(data.train.labels.numpy(), labels)
    image, label = data.test[1]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert label == _batch(5)["labels"][1] and isinstance(label, int)
    assert sorted(os.listdir(data_dir)) == before  # nothing was extracted


def test_cifar10_missing_says_where_to_get_it_and_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("cifar10", tmp_path)
    for part in (cifar10.ARCHIVE, cifar10.FOLDER, "www.cs.toronto.edu", str(tmp_path)):
        assert part in str(caught.value)


def test_cifar10_incomplete_folder_names_the_file(cifar_folder):
    data_dir, checksums = cifar_folder
    (data_dir / cifar10.FOLDER / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_4"):
        cifar10.read(data_dir, checksums)


def test_cifar10_incomplete_archive_names_the_files(tmp_path):
    path = tmp_path / cifar10.ARCHIVE
    tarfile.open(path, "w:gz").close()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_1, .*test_batch"):
        cifar10.read(tmp_path, {cifar10.ARCHIVE: _md5(path)})


def test_cifar10_refuses_a_changed_file_before_reading_it(cifar_files):
    data_dir, checksums = cifar_files
    name = next(iter(checksums))
    path = next(data_dir.rglob(name))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        cifar10.read(data_dir, checksums)
    for part in (str(path), f"expected md5 {checksums[name]}", f"got {_md5(path)}", "download"):
        assert part in str(caught.value)


def test_cifar10_published_checksums_are_the_default(cifar_files):
    with pytest.raises(ValueError, match="not the published file"):
        datasets.load("cifar10", cifar_files[0])


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("this-must-never-exist",)


def test_cifar10_refuses_a_pickle_that_calls(cifar_folder, monkeypatch):
    data_dir, checksums = cifar_folder
    monkeypatch.chdir(data_dir)
    path = data_dir / cifar10.FOLDER / "data_batch_1"
    path.write_bytes(pickle.dumps({**_batch(1), "labels": _Evil()}, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"asks for posix\.mkdir"):
        cifar10.read(data_dir, {**checksums, "data_batch_1": _md5(path)})
    assert not (data_dir / "this-must-never-exist").exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_cifar10_refuses_builtins(name, tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(b"cbuiltins\n" + name.encode() + b"\n.")
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match=name):
        cifar10._unpickle(path, file)


@pytest.mark.parametrize(
    "change", [{"data": np.zeros((3, 3072))}, {"data": np.zeros((2, 3072), np.uint8)}]
)
def test_cifar10_refuses_other_shapes_and_types(cifar_folder, change):
    data_dir, checksums = cifar_folder
    path = data_dir / cifar10.FOLDER / "test_batch"
    _dump(path, {**_batch(0), **change})
    with pytest.raises(ValueError, match=r"expected data uint8 \[3,3072\]"):
        cifar10.read(data_dir, {**checksums, "test_batch": _md5(path)})
