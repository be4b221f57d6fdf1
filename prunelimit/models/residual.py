"""Residual networks: those of He et al. for CIFAR, and those for ImageNet behind a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2016, option A for CIFAR).

    Args:
        before: Input channels.
        after: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.extra = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, before, H, W)`` to ``(N, after, H / stride, W / stride)``."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return functional.relu(y + shortcut)


def cifar_resnet(depth: int, width: int, channels: int, classes: int) -> nn.Sequential:
    """Build the CIFAR residual network of He et al. (2016, section 4.2): ``depth = 6 n + 2``.

    Args:
        depth: Number of weighted layers, 20 for ResNet20.
        width: Channels of the first stage; the later stages have two and four times as many.
        channels: Input channels.
        classes: Number of logits.

    Returns:
        A network from ``(N, channels, H, W)`` images to ``(N, classes)`` logits.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(3):
        after = width * 2**stage
        for block in range((depth - 2) // 6):
            layers.append(BasicBlock(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Give a convolution that keeps the size, but for its stride, and its normalisation."""
    return [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)]


class ProjectionBlock(nn.Module):
    """A residual block whose shortcut is a 1x1 convolution where size or channels change (He et al. 2016, option B).

    Args:
        before: Input channels.
        width: Channels of the 3x3 convolution or convolutions.
        stride: Stride of the first 3x3 convolution and of the shortcut.
        bottleneck: One 3x3 convolution between two of 1x1, the last with four times the channels, in place of two 3x3
            convolutions.
    """

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        if bottleneck:
            first = [*_convolution(before, width, 1), nn.ReLU(), *_convolution(width, width, 3, stride)]
            last = _convolution(width, after, 1)
        else:
            first, last = _convolution(before, width, 3, stride), _convolution(width, after, 3)
        self.residual = nn.Sequential(*first, nn.ReLU(), *last)
        changes = stride != 1 or before != after
        self.shortcut = nn.Sequential(*_convolution(before, after, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, before, H, W)`` to ``(N, after, H / stride, W / stride)``."""
        return torch.relu(self.residual(x) + self.shortcut(x))


def projection_resnet(
    blocks: Sequence[int], width: int, channels: int, classes: int, *, bottleneck: bool
) -> nn.Sequential:
    """Build a residual network for ImageNet (He et al. 2016, table 1) behind a stem for small images.

    The stem is one 3x3 convolution without pooling, so that the first stage sees images of full size, as in the released
    code of the fundamental-limit paper.

    Args:
        blocks: Blocks per stage, ``(2, 2, 2, 2)`` for ResNet18 and ``(3, 4, 6, 3)`` for ResNet50; every stage after the
            first halves the size of the image and doubles the channels.
        width: Channels of the stem and of the 3x3 convolutions in the first stage.
        channels: Input channels.
        classes: Number of logits.
        bottleneck: Which blocks, see :class:`ProjectionBlock`; ``True`` for ResNet50.

    Returns:
        A network from ``(N, channels, H, W)`` images to ``(N, classes)`` logits.
    """
    layers: list[nn.Module] = [*_convolution(channels, width, 3), nn.ReLU()]
    before = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for block in range(count):
            layers.append(ProjectionBlock(before, inner, 2 if stage and not block else 1, bottleneck=bottleneck))
            before = 4 * inner if bottleneck else inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
