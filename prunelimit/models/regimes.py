"""Networks of the three-regime paper: residual networks with pre-activation, and DenseNet, as its released code defines them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError


def _activated(channels: int, convolution: nn.Conv2d) -> list[nn.Module]:
    """Give a convolution with the normalisation and the ReLU that come before it."""
    return [nn.BatchNorm2d(channels), nn.ReLU(), convolution]


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Give a convolution that keeps the size, but for its stride."""
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)


class PreactivationBlock(nn.Module):
    """Two 3x3 convolutions, each behind normalisation and ReLU (He et al. 2016, "Identity mappings").

    Where size or channels change, the shortcut is a 1x1 convolution of the block's input, without normalisation.

    Args:
        before: Input channels.
        after: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_activated(before, _convolution(before, after, 3, stride)),
            *_activated(after, _convolution(after, after, 3)),
        )
        changes = stride != 1 or before != after
        self.shortcut = _convolution(before, after, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, before, H, W)`` to ``(N, after, H / stride, W / stride)``."""
        return self.residual(x) + self.shortcut(x)


def preresnet(depth: int, channels: int, classes: int, *, width: float = 1.0) -> nn.Sequential:
    """Build the residual network with pre-activation for small images, ``depth = 6 n + 2``.

    Args:
        depth: Number of weighted layers, 1x1 shortcuts not counted; 20 for PreResNet-20.
        channels: Input channels.
        classes: Number of logits.
        width: Factor of the channels, which are 16, 32 and 64 in the three stages; rounded down.

    Returns:
        A network from ``(N, channels, H, W)`` images to ``(N, classes)`` logits.

    Raises:
        PruneLimitError: If there is no network of that depth or width.
    """
    if depth < 8 or (depth - 2) % 6:
        raise PruneLimitError(f"depth={depth!r} must be 6 n + 2 for three stages of n blocks: 8, 14, 20, ...")
    if not 1 / 16 <= width < float("inf"):
        raise PruneLimitError(
            f"width={width!r} must be at least 1/16, which leaves one channel of the first stage's 16."
        )
    before = int(16 * width)
    layers: list[nn.Module] = [_convolution(channels, before, 3)]
    for stage in range(3):
        after = int(16 * 2**stage * width)
        for block in range((depth - 2) // 6):
            layers.append(PreactivationBlock(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*layers, *_head(before, classes))


class DenseLayer(nn.Module):
    """Normalisation, ReLU and a 3x3 convolution, whose output joins the input (Huang et al. 2017).

    Args:
        before: Input channels.
        growth: Channels of the convolution.
    """

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(*_activated(before, _convolution(before, growth, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, before, H, W)`` to ``(N, before + growth, H, W)``."""
        return torch.cat((x, self.new(x)), 1)


def densenet(depth: int, growth: int, channels: int, classes: int) -> nn.Sequential:
    """Build the DenseNet without bottlenecks and without compression, ``depth = 3 n + 4``.

    The stem has two times ``growth`` channels, as in the released code of the three-regime paper; Huang et al. (2017) give
    this network 16.

    Args:
        depth: Number of weighted layers, 40 for DenseNet-40: the stem, three blocks, two transitions, the linear layer.
        growth: Channels that each layer adds, 12 for DenseNet-40.
        channels: Input channels.
        classes: Number of logits.

    Returns:
        A network from ``(N, channels, H, W)`` images of at least four pixels a side to ``(N, classes)`` logits.

    Raises:
        PruneLimitError: If there is no network of that depth or growth.
    """
    if depth < 7 or (depth - 4) % 3:
        raise PruneLimitError(f"depth={depth!r} must be 3 n + 4 for three blocks of n layers: 7, 10, ..., 40, ...")
    if growth < 1:
        raise PruneLimitError(f"growth={growth!r} must be at least 1 channel.")
    before = 2 * growth
    layers: list[nn.Module] = [_convolution(channels, before, 3)]
    for block in range(3):
        if block:
            layers += [*_activated(before, _convolution(before, before, 1)), nn.AvgPool2d(2)]
        for _ in range((depth - 4) // 3):
            layers.append(DenseLayer(before, growth))
            before += growth
    return nn.Sequential(*layers, *_head(before, classes))


def _head(features: int, classes: int) -> list[nn.Module]:
    """Give what both networks end in."""
    pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return [nn.BatchNorm2d(features), nn.ReLU(), *pooling, nn.Linear(features, classes)]


@torch.no_grad()
def draw_regime_weights(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw initial weights as the released code of the three-regime paper does, in place.

    Convolutions are Kaiming normal with fan out and ReLU gain. Weights and biases of the linear layer are uniform between plus
    and minus one over the square root of its inputs, which is what torch gives a linear layer.

    Args:
        model: The network.
        generator: Source of randomness; ``None`` for torch's global one.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.uniform_(-bound, bound, generator=generator)
