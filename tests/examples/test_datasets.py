"""The digits, what all data sets share, and the sharing between ranks."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def test_digits_sizes_and_normalization(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert (digits.in_channels, digits.num_classes, digits.image_size) == (1, 10, 8)
    ((images, labels),) = datasets.batches(digits.train, range(1437), 1437)
    assert images.shape == (1437, 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.bincount(labels).tolist() == pytest.approx([144] * 10, abs=5)
    assert torch.bincount(digits.test.labels).tolist() == pytest.approx([36] * 10, abs=1)


def test_digits_split_is_fixed_and_complete(digits):
    np.random.seed(1)
    torch.manual_seed(1)
    again = datasets.load("digits")
    assert torch.equal(again.test.images, digits.test.images)
    from sklearn.datasets import load_digits

    both = torch.cat([digits.train.images, digits.test.images]).flatten(1).numpy()
    source = load_digits().data.astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, source))


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("digits", "sklearn", "pip install scikit-learn"),
        ("imagefolder", "imagefolder", "pip install pillow"),
    ],
)
def test_missing_package_says_what_to_install(name, package, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=remedy):
        datasets.load(name)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'mnist'; known: digits, cifar10, imagefolder"):
        datasets.load("mnist")


def test_indexing_is_the_evaluation_view(digits):
    ((images, labels),) = datasets.batches(digits.train, [5, 3], 2)
    for row, index in enumerate([5, 3]):
        image, label = digits.train[index]
        assert torch.equal(images[row], image) and labels[row] == label


def _batches(split, count, batch_size, key=None):
    return list(datasets.batches(split, range(count), batch_size, key))


def test_batches_have_shapes_and_types(digits):
    got = _batches(digits.train, 10, 4, key=(0, 0, 0))
    assert [tuple(images.shape) for images, _ in got] == [(4, 1, 8, 8), (4, 1, 8, 8), (2, 1, 8, 8)]
    assert {images.dtype for images, _ in got} == {torch.float32}
    assert {labels.dtype for _, labels in got} == {torch.int64}
    assert torch.cat([labels for _, labels in got]).tolist() == digits.train.labels[:10].tolist()


@pytest.mark.parametrize(
    ("count", "training", "evaluating"), [(0, 0, 0), (1, 0, 1), (8, 2, 2), (9, 2, 3), (10, 3, 3)]
)
def test_only_training_drops_a_last_batch_of_one(digits, count, training, evaluating):
    assert len(_batches(digits.train, count, 4, key=(0, 0, 0))) == training
    assert datasets.batch_count(count, 4) == training
    assert len(_batches(digits.train, count, 4)) == evaluating


def test_batch_size_one_drops_nothing(digits):
    assert len(_batches(digits.train, 3, 1, key=(0, 0, 0))) == datasets.batch_count(3, 1) == 3


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(digits, batch_size):
    with pytest.raises(ValueError, match=f"at least 1, got {batch_size}"):
        datasets.batches(digits.train, range(9), batch_size)


def test_the_key_alone_decides_the_augmentation():
    shifted = datasets.load("digits", augment=True).train

    def draw(key):
        return torch.cat([images for images, _ in _batches(shifted, 50, 20, key)])

    torch.manual_seed(1)
    first = draw((7, 1, 0))
    state = torch.get_rng_state()
    assert torch.equal(first, draw((7, 1, 0)))
    assert torch.equal(state, torch.get_rng_state())
    for other in [(8, 1, 0), (7, 2, 0), (7, 1, 1)]:
        assert not torch.equal(first, draw(other))


def test_without_augmentation_the_key_changes_nothing(digits):
    ((with_key, _),) = _batches(digits.train, 9, 9, key=(0, 0, 0))
    ((without, _),) = _batches(digits.train, 9, 9)
    assert torch.equal(with_key, without)


@pytest.mark.parametrize(("shift", "flip"), [(0, True), (1, False), (2, True)])
def test_augmented_images_are_shifts_and_flips(shift, flip):
    torch.manual_seed(0)
    images = torch.randint(1, 256, (600, 2, 5, 4), dtype=torch.uint8)
    got = datasets.shift_and_flip(images, shift, flip, torch.Generator().manual_seed(0))
    assert got.shape == images.shape and got.dtype == torch.uint8
    seen = set()
    for before, after in zip(images, got, strict=True):
        padded = torch.nn.functional.pad(before, (shift,) * 4)
        matches = {
            (y, x, mirrored)
            for y in range(2 * shift + 1)
            for x in range(2 * shift + 1)
            for mirrored in range(1 + flip)
            if torch.equal(after.flip(2) if mirrored else after, padded[:, y : y + 5, x : x + 4])
        }
        assert len(matches) == 1
        seen |= matches
    assert len(seen) == (2 * shift + 1) ** 2 * (1 + flip)  # every possibility came up


@settings(deadline=None, max_examples=50)  # a busy machine is no bug
@given(size=st.integers(1, 9), extra=st.integers(0, 40), seed=st.integers(0, 2**31))
def test_shards_are_disjoint_equal_and_cover(size, extra, seed):
    length = size + extra
    shards = [datasets.ShardSampler(rank, size, length, seed).epoch(2) for rank in range(size)]
    assert {len(shard) for shard in shards} == {length // size}
    together = torch.cat(shards).tolist()
    assert len(set(together)) == len(together) == length - length % size
    assert set(together) <= set(range(length))


def test_shards_differ_by_epoch_and_seed_only():
    sampler = datasets.ShardSampler(1, 3, 100, seed=5)
    assert sampler.epoch(0).dtype == torch.int64
    assert len(sampler) == len(sampler.epoch(0)) == 33
    assert torch.equal(sampler.epoch(4), datasets.ShardSampler(1, 3, 100, seed=5).epoch(4))
    assert not torch.equal(sampler.epoch(4), sampler.epoch(5))
    assert not torch.equal(sampler.epoch(4), datasets.ShardSampler(1, 3, 100, seed=6).epoch(4))


def test_every_sample_is_seen_over_epochs():
    sampler = datasets.ShardSampler(0, 3, 20, seed=0)
    assert {i for k in range(30) for i in sampler.epoch(k).tolist()} == set(range(20))


@pytest.mark.parametrize(
    ("rank", "size", "length", "message"),
    [(4, 4, 9, r"0\.\.3, got 4"), (-1, 4, 9, r"0\.\.3, got -1"), (0, 4, 3, "4 ranks, got 3")],
)
def test_shard_refuses(rank, size, length, message):
    with pytest.raises(ValueError, match=message):
        datasets.ShardSampler(rank, size, length, seed=0)
