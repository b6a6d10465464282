"""Residual networks, as in He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition
(arXiv 1512.03385).

`resnet20` ... `resnet110` are section 4.2's nets for small images: 6n+2 layers, widths 16, 32, 64,
parameter-free shortcuts (option A), global average pooling, so any input size will do.
`resnet18`, `resnet34`, `resnet50` are table 1's nets for ImageNet.

Differences from the paper: the stride of a bottleneck sits in its 3x3 convolution, not in the first
1x1 (the "v1.5" that everybody compares with).
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F  # noqa: N812  (the name every torch user knows)
from torch import Tensor, nn


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias (a batch norm follows) that keeps the size, up to its stride."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


class OptionA(nn.Module):
    """Parameter-free shortcut: every stride-th pixel, new channels zero (section 3.3, option A)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


def option_b(c_in: int, c_out: int, stride: int) -> nn.Module:
    """1x1 projection shortcut (section 3.3, option B)."""
    return nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


Shortcut = Callable[[int, int, int], nn.Module]


class Block(nn.Module):
    """y = relu(x + residual(x)), equation 1; the shortcut replaces x where its shape changes."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.residual = self.layers(c_in, width, stride)
        same_shape = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same_shape else shortcut(c_in, c_out, stride)

    @staticmethod
    def layers(c_in: int, width: int, stride: int) -> nn.Sequential:
        """Two 3x3 convolutions (figure 5, left)."""
        return nn.Sequential(
            conv(c_in, width, 3, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


class Bottleneck(Block):
    """Block of 1x1, 3x3, 1x1 convolutions, four times as wide outside (figure 5, right)."""

    expansion = 4

    @staticmethod
    def layers(c_in: int, width: int, stride: int) -> nn.Sequential:
        """The three convolutions; the 3x3 one strides."""
        return nn.Sequential(
            conv(c_in, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv(width, 4 * width, 1),
            nn.BatchNorm2d(4 * width),
        )


class ResNet(nn.Module):
    """stem, stages of blocks, global average, linear: float32 [B,C,H,W] -> logits [B,classes]."""

    def __init__(
        self,
        stem: nn.Module,
        block: type[Block],
        depths: tuple[int, ...],
        width: int,
        shortcut: Shortcut,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        stages: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, width << stage, stride, shortcut))
                channels = (width << stage) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def initialize(module: nn.Module) -> None:
    """Normal convolution weights of variance 2 / fan_out (He et al., arXiv 1502.01852, eq. 14)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def cifar_resnet(n: int, in_channels: int, num_classes: int) -> ResNet:
    """The 6n+2 layer net of section 4.2."""
    stem = nn.Sequential(conv(in_channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    return ResNet(stem, Block, (n, n, n), 16, OptionA, num_classes)


def imagenet_resnet(
    block: type[Block], depths: tuple[int, ...], in_channels: int, num_classes: int
) -> ResNet:
    """A net of table 1: 7x7 stem, four stages, projection shortcuts."""
    stem = nn.Sequential(
        conv(in_channels, 64, 7, stride=2),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    return ResNet(stem, block, depths, 64, option_b, num_classes)


MODELS: dict[str, Callable[[int, int], ResNet]] = {
    "resnet20": partial(cifar_resnet, 3),
    "resnet32": partial(cifar_resnet, 5),
    "resnet44": partial(cifar_resnet, 7),
    "resnet56": partial(cifar_resnet, 9),
    "resnet110": partial(cifar_resnet, 18),
    "resnet18": partial(imagenet_resnet, Block, (2, 2, 2, 2)),
    "resnet34": partial(imagenet_resnet, Block, (3, 4, 6, 3)),
    "resnet50": partial(imagenet_resnet, Bottleneck, (3, 4, 6, 3)),
}


def build(name: str, in_channels: int, num_classes: int) -> ResNet:
    """The named net with fresh weights drawn from torch's global generator.

    Raises: ValueError for a name that is not in MODELS.
    """
    if name not in MODELS:
        raise ValueError(f"resnet: no model is named {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](in_channels, num_classes)


def count_parameters(model: nn.Module) -> int:
    """Number of scalars that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
