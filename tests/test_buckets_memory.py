"""Where parameters and views lie: strides are kept, and parameters may live in the flat vector."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from decentral.buckets import Buckets, same_memory

LAST = torch.channels_last


def layouts():
    """Return parameters whose memory is in all kinds of orders, by name."""
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    matrix = torch.arange(6.0).reshape(2, 3)
    return {
        "contiguous": image.clone(),
        "channels last": image.contiguous(memory_format=LAST),
        "channels last, one pixel": image[:, :, :1, :1].contiguous(memory_format=LAST),
        "transposed": matrix.t(),
        "gaps": torch.arange(12.0).reshape(2, 6)[:, ::2],
        "expanded": torch.arange(3.0).expand(2, 3),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
    }


DENSE = set(layouts()) - {"gaps", "expanded"}


@pytest.mark.parametrize("name", layouts())
def test_a_view_has_the_parameter_s_shape_and_if_dense_its_strides(name):
    p = nn.Parameter(layouts()[name])
    buckets = Buckets([("other", nn.Parameter(torch.ones(5))), (name, p)], 25.0)
    flat = buckets.gather(buckets.parameters, buckets.empty())
    view = buckets.views(flat)[0]
    assert view.shape == p.shape and torch.equal(view, p)
    assert (view.stride() == p.stride()) == (name in DENSE)
    assert view.data_ptr() == flat[0].data_ptr() or p.numel() == 0
    # every coordinate of the slice is one of the parameter's: nothing is left out, or doubled
    assert sorted(buckets[0].of(flat)[: p.numel()].tolist()) == sorted(p.flatten().tolist())
    assert flat[0][p.numel() :].tolist() == [1.0] * 5


def test_channels_last_lies_in_the_order_of_memory():
    p = nn.Parameter(layouts()["channels last"])
    buckets = Buckets([("p", p)], 25.0)
    [flat] = buckets.gather([p], buckets.empty())
    assert flat.tolist() == p.detach().permute(0, 2, 3, 1).flatten().tolist()


def test_adopted_parameters_live_in_the_flat_vector():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(4, 2)).to(memory_format=LAST)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buckets = Buckets(model.named_parameters(), 25.0)
    [flat] = everything = buckets.empty()
    buckets.adopt(everything)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.stride() == before[name].stride()
        assert p.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        assert p.is_leaf and p.requires_grad
    flat.mul_(2)
    assert all(torch.equal(p, 2 * before[name]) for name, p in model.named_parameters())
    for view, p in zip(buckets.views(everything), buckets.parameters, strict=True):
        assert same_memory(view, p)


def test_what_cannot_be_adopted_keeps_its_memory_and_is_copied():
    half = nn.Parameter(torch.ones(3, dtype=torch.float16))
    gaps = nn.Parameter(layouts()["gaps"])
    pointers = half.data_ptr(), gaps.data_ptr()
    buckets = Buckets([("half", half), ("gaps", gaps)], 25.0)
    [flat] = everything = buckets.empty()
    buckets.adopt(everything)
    assert (half.data_ptr(), gaps.data_ptr()) == pointers and half.dtype == torch.float16
    assert flat.tolist() == [*gaps.flatten().tolist(), 1, 1, 1]
    flat.fill_(5)
    buckets.scatter(everything)
    assert half.tolist() == [5] * 3 and gaps.tolist() == [[5] * 3] * 2


class Copies(TorchDispatchMode):
    """Counts what is copied from one tensor to another."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.copy_.default
        return function(*args, **(kwargs or {}))


def test_gather_and_scatter_leave_alone_what_is_there_already():
    """A parameter that was adopted is its own place in the flat vector."""
    parameters = [nn.Parameter(torch.arange(4.0)), nn.Parameter(torch.ones(2, 3))]
    buckets = Buckets([("a", parameters[0]), ("b", parameters[1])], 25.0)
    flat = buckets.empty()
    with Copies() as copies:
        buckets.adopt(flat)
        assert copies.count == 2
        buckets.gather(buckets.parameters, flat)
        buckets.scatter(flat)
        assert copies.count == 2
    assert parameters[0].tolist() == [0, 1, 2, 3]


def test_same_memory_is_the_same_dtype_place_and_strides():
    vector = torch.zeros(6)
    view = vector.view(2, 3)
    assert same_memory(view, vector.view(2, 3))
    assert not same_memory(view, vector.view(3, 2).t())
    assert not same_memory(view, torch.zeros(2, 3))
    assert not same_memory(view, vector.view(torch.int32).view(2, 3))
    assert not same_memory(vector[:3], vector[3:])
