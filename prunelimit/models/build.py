"""Every network by name, and its initial weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.models.plain import VGG16, Shape, alexnet, mlp, vgg
from prunelimit.models.regimes import densenet, draw_regime_weights, preresnet
from prunelimit.models.residual import cifar_resnet, projection_resnet

#: Hidden widths of the fully connected networks.
HIDDEN: dict[str, list[int]] = {
    "fc5": [1000, 600, 300, 100],
    "fc12": [1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100],
    "mlpnet": [40, 20],
    "fc3": [32, 20],
    "fc4-quick": [64, 64, 64],
    "fc5-quick": [48, 32, 24, 16],
    "fc12-quick": [32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12],
    "mlpnet-quick": [20, 10],
}


def _fully_connected(hidden: list[int]) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, classes: mlp([shape[0] * shape[1] * shape[2], *hidden, classes])


#: Network name to a function of the input shape and the number of classes. A name in ``-quick`` is a stand-in that is
#: ours, built by the same function for images of 8 x 8 pixels.
MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    **{name: _fully_connected(hidden) for name, hidden in HIDDEN.items()},
    "alexnet": alexnet,
    "vgg16": lambda shape, classes: vgg(VGG16, shape[0], classes),
    "resnet18": lambda shape, classes: projection_resnet((2, 2, 2, 2), 64, shape[0], classes, bottleneck=False),
    "resnet50": lambda shape, classes: projection_resnet((3, 4, 6, 3), 64, shape[0], classes, bottleneck=True),
    "resnet20": lambda shape, classes: cifar_resnet(20, 16, shape[0], classes),
    "alexnet-quick": lambda shape, classes: alexnet(
        shape, classes, upsample=4, channels=(8, 16, 16, 16, 16), kernel=5, stride=2, hidden=32
    ),
    "vgg-quick": lambda shape, classes: vgg((4, 4, 0, 8, 8, 0, 16, 16, 0), shape[0], classes),
    "resnet18-quick": lambda shape, classes: projection_resnet((1, 1, 1), 4, shape[0], classes, bottleneck=False),
    "resnet50-quick": lambda shape, classes: projection_resnet((1, 1, 1), 3, shape[0], classes, bottleneck=True),
    "resnet8-quick": lambda shape, classes: cifar_resnet(8, 6, shape[0], classes),
}


def _wide(width: float) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, classes: preresnet(20, shape[0], classes, width=width)


#: Networks of the three-regime paper and their stand-ins: they begin as in its released code, not as in the other paper's.
REGIME_MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "preresnet20": lambda shape, classes: preresnet(20, shape[0], classes),
    **{f"preresnet20-x{width:g}": _wide(width) for width in (0.25, 0.5, 2.0, 4.0)},
    "densenet40": lambda shape, classes: densenet(40, 12, shape[0], classes),
    "preresnet8-quick": lambda shape, classes: preresnet(8, shape[0], classes, width=0.375),
}
MODELS |= REGIME_MODELS


def build_model(
    name: str, *, input_shape: Shape = (3, 32, 32), num_classes: int = 10, seed: int | None = None
) -> nn.Module:
    """Build a network by name, with its initial weights.

    Args:
        name: A key of ``MODELS``, for example ``"fc5"``.
        input_shape: Channels, height and width of one image.
        num_classes: Number of logits.
        seed: Seed of the initial weights; ``None`` draws from torch's global generator.

    Returns:
        The network, on the CPU, in training mode, float32.

    Raises:
        PruneLimitError: If the name is unknown or a size is not positive.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    if min(*input_shape, num_classes) < 1:
        raise PruneLimitError(f"input_shape={input_shape}, num_classes={num_classes}: every size must be at least 1.")
    model = MODELS[name](input_shape, num_classes)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    if name in REGIME_MODELS:
        draw_regime_weights(model, generator)
        return model
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
