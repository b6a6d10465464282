"""Class folders of tiny images that these tests write."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets
import imagefolder


@pytest.fixture
def folders(tmp_path):
    """data_dir in ImageNet's layout: two classes, three train images and one val image of each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("not an image")
            for i in range(count):
                pixels = rng.integers(0, 256, (20 + 5 * i, 30), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{('png', 'JPEG')[i % 2]}")
    return tmp_path


def _small(folders):
    train, test, _ = imagefolder.read(folders)
    train.size = test.size = 16
    return train, test


def test_imagefolder_splits_and_labels(folders):
    data = datasets.load("imagefolder", folders)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert (data.in_channels, data.num_classes, data.image_size) == (3, 2, 224)
    image, label = data.test[1]
    assert image.shape == (3, 224, 224) and image.dtype == torch.float32 and label == 1


def test_imagefolder_normalizes_as_imagenet(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (9, 5), (255, 0, 0)).save(path)
    pixels = imagefolder.decode(str(path), 4, None)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert torch.allclose(pixels, torch.tensor(expected).view(3, 1, 1).expand(3, 4, 4))


def test_imagefolder_center_is_resize_then_crop(tmp_path):
    y, x = np.mgrid[:120, :200]
    smooth = Image.fromarray(np.uint8(60 + 0.5 * x + 0.5 * y))
    smooth.save(tmp_path / "smooth.png")
    resized = smooth.convert("RGB").resize((427, 256), Image.Resampling.BILINEAR)
    cropped = torch.from_numpy(np.array(resized.crop((101, 16, 325, 240)))).permute(2, 0, 1)
    expected = (cropped / 255 - imagefolder.MEAN) / imagefolder.STD
    got = imagefolder.decode(str(tmp_path / "smooth.png"), 224, None)
    assert (got - expected).abs().max() < 0.03  # two grey levels of 256: crops round to pixels


@settings(deadline=None, max_examples=50)  # a busy machine is no bug
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**62))
def test_random_boxes_lie_inside(width, height, seed):
    generator = torch.Generator().manual_seed(seed)
    left, upper, right, lower = imagefolder.random_box(width, height, generator)
    assert 0 <= left < right <= width + 1e-9 and 0 <= upper < lower <= height + 1e-9


def test_imagefolder_batches_depend_on_the_key_alone(folders):
    train, test = _small(folders)

    def draw(split, key, workers=0):
        got = list(datasets.batches(split, range(len(split)), 4, key, workers))
        assert torch.cat([labels for _, labels in got]).tolist() == [y for _, y in split.files]
        return torch.cat([images for images, _ in got])

    state = torch.get_rng_state()
    first = draw(train, (1, 2, 3))
    assert first.shape == (6, 3, 16, 16) and first.dtype == torch.float32
    assert torch.equal(first, draw(train, (1, 2, 3), workers=1))
    assert not torch.equal(first, draw(train, (1, 3, 3)))
    assert torch.equal(draw(train, None), torch.stack([train[i][0] for i in range(6)]))
    assert torch.equal(draw(test, (1, 2, 3)), draw(test, None))
    assert torch.equal(state, torch.get_rng_state())


def test_imagefolder_names_the_classes_that_differ(folders):
    (folders / "val" / "dog").rename(folders / "val" / "fox")
    with pytest.raises(ValueError, match="only in train: dog; only in val: fox"):
        datasets.load("imagefolder", folders)


def test_imagefolder_missing_says_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train; expected DATA_DIR/train/<class>"):
        datasets.load("imagefolder", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*flat"):
        datasets.load("imagefolder", tmp_path)


def test_imagefolder_empty_class_is_named(folders):
    for path in (folders / "train" / "cat").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image in .*cat"):
        datasets.load("imagefolder", folders)


def test_imagefolder_broken_image_is_named(folders):
    (folders / "train" / "cat" / "0.png").write_bytes(b"no image at all")
    with pytest.raises(OSError, match=r"cat/0\.png.*replace or remove"):
        datasets.load("imagefolder", folders).train[0]
