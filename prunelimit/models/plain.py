"""Networks that are one chain of layers: fully connected ones, AlexNet and VGG."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from prunelimit.errors import PruneLimitError

Shape = tuple[int, int, int]


def mlp(widths: list[int]) -> nn.Sequential:
    """Build a fully connected ReLU network.

    Args:
        widths: Layer widths from the flattened input to the logits, at least two.

    Returns:
        A network from ``(N, ...)`` inputs with ``widths[0]`` entries each to ``(N, widths[-1])`` logits.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def alexnet(
    shape: Shape,
    classes: int,
    *,
    upsample: int = 7,
    channels: Sequence[int] = (96, 256, 384, 384, 256),
    kernel: int = 11,
    stride: int = 4,
    hidden: int = 4096,
) -> nn.Sequential:
    """Build AlexNet as the released code of the fundamental-limit paper defines it.

    That is one branch with the channels of Krizhevsky et al. (2012), without dropout and without response
    normalisation, for images whose pixels are first repeated seven times in each direction: 32 x 32 becomes 224 x 224.
    The released code repeats them outside of the network; here it is the first layer. The first linear layer takes what
    the convolutions leave of an image, 256 x 5 x 5 numbers of one of 32 x 32.

    Args:
        shape: Channels, height and width of one image.
        classes: Number of logits.
        upsample: How often a pixel is repeated in each direction.
        channels: Output channels of the five convolutions.
        kernel: Width of the first convolution's kernel, in pixels after repetition.
        stride: Stride of the first convolution.
        hidden: Width of the two hidden linear layers.

    Returns:
        A network from ``(N, *shape)`` images to ``(N, classes)`` logits.

    Raises:
        PruneLimitError: If the images are so small that nothing is left of them.
    """
    one, two, three, four, five = channels
    sides = []
    for side in shape[1:]:
        after = (side * upsample + 2 - kernel) // stride + 1
        for _ in range(3):  # the poolings; the other convolutions keep the size
            after = (after - 3) // 2 + 1
        sides.append(after)
    if min(sides) < 1:
        raise PruneLimitError(f"input_shape={shape} is too small for AlexNet: use larger images or another network.")
    return nn.Sequential(
        nn.Upsample(scale_factor=upsample),
        *(nn.Conv2d(shape[0], one, kernel, stride, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(one, two, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(two, three, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(three, four, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(four, five, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *mlp([five * sides[0] * sides[1], hidden, hidden, classes]),
    )


#: Channels of VGG16's convolutions (Simonyan and Zisserman 2015, configuration D); a zero is a pooling.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg(plan: Sequence[int], channels: int, classes: int) -> nn.Sequential:
    """Build a VGG network with batch normalisation and one linear layer, as the released code defines it for CIFAR.

    After the five poolings of VGG16 an image of 32 x 32 pixels is a single one. Of a larger image the mean of what is
    left goes into the linear layer, and an odd row or column is pooled alone, so that any size of image will do.

    Args:
        plan: Channels of the 3x3 convolutions in their order; a zero is a pooling.
        channels: Input channels.
        classes: Number of logits.

    Returns:
        A network from ``(N, channels, H, W)`` images to ``(N, classes)`` logits.
    """
    layers: list[nn.Module] = []
    before = channels
    for after in plan:
        if after:
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        else:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
