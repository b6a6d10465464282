"""What the example takes over from a checkpoint of another number of ranks."""

from types import SimpleNamespace

import torch

import checkpoint

SAVED = [
    {
        "model": {"w": torch.full((2,), float(rank))},
        "optimizer": rank,
        "schedule": {"last_epoch": 7},
    }
    for rank in range(3)
]


def test_the_mean_of_models_the_momentum_of_one_and_the_schedule():
    got = {}
    parts = {
        "model": SimpleNamespace(load_state_dict=lambda state: got.update(model=state)),
        "optimizer": SimpleNamespace(adopt=lambda state: got.update(optimizer=state)),
        "schedule": SimpleNamespace(load_state_dict=lambda state: got.update(schedule=state)),
    }
    checkpoint.adopt(parts, SimpleNamespace(size=3, of=SAVED.__getitem__), rank=4)
    assert got["model"]["w"].tolist() == [1.0, 1.0]
    assert got["optimizer"] == 1 and got["schedule"] == {"last_epoch": 7}
