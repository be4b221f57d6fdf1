"""The networks of both papers, by name.

Weights start as in the released code (Kaiming normal, fan in, ReLU gain); the initial biases are not stated there, ours
are zero. Only the weight matrices of linear and convolution layers are prunable; see :func:`prunable_names`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError, unknown_name


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


Shape = tuple[int, int, int]

#: Hidden widths of the fully connected networks.
HIDDEN: dict[str, list[int]] = {
    "fc5": [1000, 600, 300, 100],
    "fc12": [1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100],
    "fc3": [32, 20],
    "fc5-quick": [48, 32, 24, 16],
    "fc12-quick": [32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12],
}


def _fully_connected(hidden: list[int]) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, classes: mlp([shape[0] * shape[1] * shape[2], *hidden, classes])


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    **{name: _fully_connected(hidden) for name, hidden in HIDDEN.items()},
    "resnet20": lambda shape, classes: cifar_resnet(20, 16, shape[0], classes),
    "resnet8-quick": lambda shape, classes: cifar_resnet(8, 6, shape[0], classes),
}


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
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def prunable_names(model: nn.Module) -> list[str]:
    """Name the prunable parameters: weights of linear and convolution layers, in the model's order.

    Args:
        model: Any torch module.

    Returns:
        Parameter names as in ``model.named_parameters()``; a shared weight appears
        once, a frozen one not at all.

    Raises:
        PruneLimitError: If the model has none.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
    names = [name for name, p in model.named_parameters() if id(p) in weights and p.requires_grad]
    if not names:
        raise PruneLimitError(
            f"model={type(model).__name__} has no prunable weights: it needs a linear or convolution layer whose weight "
            "has requires_grad=True, or name the parameters with prunable=[...]."
        )
    return names


def match_masks(model: nn.Module, masks: dict[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair masks with the parameters that they are for.

    Args:
        model: Any torch module.
        masks: Parameter name to a tensor of its shape.

    Returns:
        Parameters with their masks.

    Raises:
        PruneLimitError: If a mask names no parameter or has another shape.
    """
    named = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in named:
            raise unknown_name("masks", name, named)
        if mask.shape != named[name].shape:
            raise PruneLimitError(
                f"masks[{name!r}] has shape {tuple(mask.shape)}: give it the parameter's, {tuple(named[name].shape)}."
            )
    return [(named[name], mask) for name, mask in masks.items()]
