"""Shards by label: whose images are whose, properties that hold for any labels and any alpha."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
import shards

SEEDS = st.integers(0, 2**31)
ALPHAS = st.floats(1e-12, 1e9)


@st.composite
def labels_and_size(draw):
    size = draw(st.integers(1, 9))
    labels = draw(st.lists(st.integers(-3, 12), min_size=size, max_size=120))
    return np.array(labels, dtype=np.int64), size


@settings(deadline=None, max_examples=150)  # a busy machine is no bug
@given(labels_and_size(), ALPHAS, SEEDS)
def test_every_sample_has_one_owner_and_shards_are_as_large(case, alpha, seed):
    labels, size = case
    parts = shards.dirichlet_partition(labels, size, alpha, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert {len(part) for part in parts} <= {len(labels) // size, -(-len(labels) // size)}


@settings(deadline=None, max_examples=50)
@given(labels_and_size(), ALPHAS, SEEDS)
def test_ranks_find_the_same_and_do_as_many_steps(case, alpha, seed):
    labels, size = torch.from_numpy(case[0]), case[1]
    samplers = [shards.DirichletSampler(r, size, labels, alpha, seed) for r in range(size)]
    whole = shards.dirichlet_partition(case[0], size, alpha, seed)
    for sampler, part in zip(samplers, whole, strict=True):
        epoch = sampler.epoch(3)
        assert epoch.dtype == torch.int64
        assert len(epoch) == len(sampler) == len(labels) // size >= 1
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(part.tolist())
        assert torch.equal(epoch, sampler.epoch(3))


def test_over_epochs_a_rank_sees_all_of_its_own_and_nothing_else():
    labels = torch.arange(20) % 3
    parts = shards.dirichlet_partition(labels.numpy(), 3, 0.5, seed=1)
    for rank, part in enumerate(parts):
        sampler = shards.DirichletSampler(rank, 3, labels, 0.5, seed=1)
        seen = [sampler.epoch(k).tolist() for k in range(30)]
        assert {i for epoch in seen for i in epoch} == set(part.tolist())
        assert len(set(map(tuple, seen))) > 1


def shares_of_labels(alpha, seed, size=8, kinds=10, count=8000):
    """Return the shares of the labels in each shard, [size, kinds]."""
    labels = np.arange(count) % kinds
    parts = shards.dirichlet_partition(labels, size, alpha, seed)
    return np.stack([np.bincount(labels[p], minlength=kinds) / len(p) for p in parts])


def test_alpha_decides_how_much_ranks_differ():
    def largest(alpha):
        return np.mean([shares_of_labels(alpha, seed).max(axis=1) for seed in range(10)])

    tiny, small, one, large = map(largest, (1e-3, 0.1, 1.0, 1e6))
    assert tiny > 0.66 > small > 0.5 > one > 0.2 > large > 0.1
    assert np.abs(shares_of_labels(1e9, 0) - 0.1).max() < 0.05  # up to multinomial draws


def test_nine_tenths_of_a_shard_are_of_few_labels():
    """What the docstring says of the digits."""
    labels = datasets.load("digits").train.labels.numpy()

    def needed(alpha, seed):
        for part in shards.dirichlet_partition(labels, 8, alpha, seed):
            held = np.sort(np.bincount(labels[part], minlength=10))[::-1]
            yield 1 + np.searchsorted(np.cumsum(held), 0.9 * len(part))

    for alpha, mean in ((0.1, 2.8), (0.3, 4.2), (1.0, 6.1)):
        every = [n for seed in range(20) for n in needed(alpha, seed)]
        assert np.mean(every) == pytest.approx(mean, abs=0.1)


def test_no_rank_is_worse_off_than_another():
    """Lots decide who comes first, so the last rank's leftovers are everybody's."""
    largest = np.mean([shares_of_labels(0.3, seed).max(axis=1) for seed in range(150)], axis=0)
    assert np.ptp(largest) < 0.1


def test_rare_labels_stay_rare():
    labels = np.repeat([0, 1], [900, 100])
    parts = shards.dirichlet_partition(labels, 4, 1e6, seed=0)
    assert [float(np.mean(labels[p])) for p in parts] == pytest.approx([0.1] * 4, abs=0.06)


def test_seeds_give_other_partitions():
    labels = np.arange(100) % 10
    one, two = (shards.dirichlet_partition(labels, 4, 0.1, seed) for seed in (0, 1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be above 0 and at most 1e"):
        shards.dirichlet_partition(np.zeros(9, dtype=np.int64), 2, alpha, 0)


@pytest.mark.parametrize(
    ("partition", "alpha", "message"),
    [
        ("by-label", None, "must be one of iid, dirichlet, got 'by-label'"),
        ("dirichlet", None, "needs an --alpha, got none"),
        ("dirichlet", 0.0, "above 0"),
        ("iid", 0.1, "--alpha 0.1: iid takes none; add --partition dirichlet"),
    ],
)
def test_partition_and_alpha_belong_together(partition, alpha, message):
    with pytest.raises(ValueError, match=message):
        shards.check(partition, alpha)


def test_partitions_of_the_digits():
    train = datasets.load("digits").train
    iid = shards.make_sampler("iid", None, 0, 4, train, seed=0)
    assert type(iid) is datasets.ShardSampler
    own = shards.make_sampler("dirichlet", 0.1, 0, 4, train, seed=0)
    assert isinstance(own, shards.DirichletSampler)
    assert len(iid) == len(own) == 1437 // 4
    held = torch.bincount(train.labels[own.epoch(0)], minlength=10)
    assert held.max() > len(own) / 3


def test_more_ranks_than_samples_are_refused():
    with pytest.raises(ValueError, match="4 ranks, got 3"):
        shards.DirichletSampler(0, 4, torch.zeros(3, dtype=torch.int64), 0.1, 0)
