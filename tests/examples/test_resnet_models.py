"""The nets have the sizes that the papers and everybody's tables give them."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import resnet

KNOWN_COUNTS = {  # (in_channels, num_classes) -> parameters
    "resnet20": (3, 10, 269_722),
    "resnet32": (3, 10, 464_154),
    "resnet44": (3, 10, 658_586),
    "resnet56": (3, 10, 853_018),
    "resnet110": (3, 10, 1_727_962),
    "resnet18": (3, 1000, 11_689_512),
    "resnet34": (3, 1000, 21_797_672),
    "resnet50": (3, 1000, 25_557_032),
}
DEPTHS = {name: int(name.removeprefix("resnet")) for name in resnet.MODELS}
CIFAR = [name for name, counts in KNOWN_COUNTS.items() if counts[1] == 10]
IMAGENET = [name for name, counts in KNOWN_COUNTS.items() if counts[1] == 1000]


def test_every_model_has_a_known_count():
    assert set(KNOWN_COUNTS) == set(resnet.MODELS)


@pytest.mark.parametrize("name", KNOWN_COUNTS)
def test_parameter_count(name):
    in_channels, num_classes, expected = KNOWN_COUNTS[name]
    with torch.device("meta"):  # counts without drawing 25 million weights
        model = resnet.build(name, in_channels, num_classes)
    assert resnet.count_parameters(model) == expected


@pytest.mark.parametrize("name", KNOWN_COUNTS)
def test_the_number_in_the_name_is_the_number_of_layers(name):
    with torch.device("meta"):
        model = resnet.build(name, 3, 10)
    on_the_main_path = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in path
    ]
    assert len(on_the_main_path) == DEPTHS[name]


@pytest.mark.parametrize("name", CIFAR)
def test_small_nets_have_no_shortcut_parameters(name):
    with torch.device("meta"):
        model = resnet.build(name, 3, 10)
    assert not [p for p, _ in model.named_parameters() if "shortcut" in p]


@pytest.mark.parametrize("size", [1, 7, 8, 28, 32, 33])
def test_small_nets_take_any_size(size):
    model = resnet.build("resnet20", 1, 10).eval()
    logits = model(torch.zeros(2, 1, size, size))
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet20", "resnet110"])
def test_stages_halve_the_size_and_double_the_width(name):
    with torch.device("meta"):
        model = resnet.build(name, 3, 10)
        x = model.stem(torch.zeros(2, 3, 32, 32))
        shapes = [x := stage(x) for stage in model.stages]
    assert [tuple(x.shape) for x in shapes] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_nets_end_at_seven_pixels(name):
    with torch.device("meta"):
        model = resnet.build(name, 3, 1000)
        features = model.stages(model.stem(torch.zeros(2, 3, 224, 224)))
        logits = model.head(features.mean(dim=(2, 3)))
    assert features.shape[2:] == (7, 7)
    assert logits.shape == (2, 1000)


def test_bottlenecks_stride_in_the_three_by_three():
    with torch.device("meta"):
        model = resnet.build("resnet50", 3, 10)
    strided = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and "residual" in path
    ]
    assert [module.kernel_size for module in strided] == [(3, 3)] * 3


def test_option_a_subsamples_and_pads_with_zeros():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).view(2, 3, 5, 5)
    y = resnet.OptionA(3, 6, 2)(x)
    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, 1:4], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert y[:, [0, 4, 5]].count_nonzero() == 0


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    weight = resnet.build("resnet20", 3, 10).stages[2][1].residual[0].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_same_seed_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(resnet.build("resnet20", 1, 10).state_dict())
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


def _small_imagenet_net():
    return resnet.imagenet_resnet(resnet.Bottleneck, (1, 1), 1, 10)


@pytest.mark.parametrize(
    ("build", "size"), [(lambda: resnet.build("resnet20", 1, 10), 8), (_small_imagenet_net, 32)]
)
def test_every_parameter_gets_a_gradient(build, size):
    torch.manual_seed(0)
    model = build()
    F.cross_entropy(model(torch.randn(4, 1, size, size)), torch.arange(4)).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet19'; known: resnet20, .*resnet50"):
        resnet.build("resnet19", 3, 10)
