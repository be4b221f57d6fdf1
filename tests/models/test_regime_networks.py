"""The networks of the three-regime paper: sizes layer by layer, structure, arithmetic and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError
from prunelimit.models import MODELS, DenseLayer, PreactivationBlock, build_model, densenet, preresnet, prunable_names


def preresnet_counts(blocks: int, stages: tuple[int, int, int], channels: int, classes: int) -> tuple[int, int]:
    """preresnet.py and preresnet_width.py of the released code: prunable weights, and the other parameters."""
    first, second, third = stages
    weights = 9 * channels * first
    weights += 9 * first * first * 2 * blocks
    weights += 9 * first * second + 9 * second * second * (2 * blocks - 1) + first * second
    weights += 9 * second * third + 9 * third * third * (2 * blocks - 1) + second * third
    # A block normalises its input and what lies between its convolutions: only the first block's input is narrower.
    normalised = 2 * blocks * first + first + (2 * blocks - 1) * second + second + (2 * blocks - 1) * third + third
    return weights + third * classes, 2 * normalised + classes


def densenet_counts(layers: int, growth: int, channels: int, classes: int) -> tuple[int, int]:
    """densenet.py of the released code with its block "BasicBlock" and compressionRate 1."""
    inputs = [growth * (2 + i) for i in range(3 * layers)]
    transitions = [growth * (2 + layers), growth * (2 + 2 * layers)]
    last = growth * (2 + 3 * layers)
    weights = 9 * channels * 2 * growth + sum(9 * growth * c for c in inputs) + sum(c * c for c in transitions)
    return weights + last * classes, 2 * (sum(inputs) + sum(transitions) + last) + classes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "counts", "total"),
    [
        ("preresnet20", (3, 32, 32), 10, preresnet_counts(3, (16, 32, 64), 3, 10), 272_282),
        ("preresnet20", (3, 32, 32), 100, preresnet_counts(3, (16, 32, 64), 3, 100), 278_132),
        ("densenet40", (3, 32, 32), 10, densenet_counts(12, 12, 3, 10), 1_059_298),
        ("preresnet8-quick", (1, 8, 8), 10, preresnet_counts(1, (6, 12, 24), 1, 10), 11_212),
    ],
)
def test_prunable_and_other_parameters(
    name: str, shape: tuple[int, int, int], classes: int, counts: tuple[int, int], total: int
) -> None:
    with torch.device("meta"):
        model = MODELS[name](shape, classes)
    named = dict(model.named_parameters())
    prunable = sum(named[n].numel() for n in prunable_names(model))
    assert (prunable, sum(p.numel() for p in named.values()) - prunable) == counts
    assert sum(counts) == total


@pytest.mark.parametrize(("width", "stages"), [(0.5, (8, 16, 32)), (2, (32, 64, 128)), (0.6, (9, 19, 38))])
def test_width_multiplies_channels_and_rounds_down(width: float, stages: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = preresnet(14, 3, 10, width=width)
    assert sum(p.numel() for p in model.parameters()) == sum(preresnet_counts(2, stages, 3, 10))


def test_depth_is_the_number_of_weighted_layers() -> None:
    with torch.device("meta"):
        residual, dense = preresnet(20, 3, 10), densenet(40, 12, 3, 10)
    shortcuts = 2
    assert len(prunable_names(residual)) == 20 + shortcuts
    assert len(prunable_names(dense)) == 40


def activated(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch normalisation by the batch's own statistics, and ReLU, from their definitions."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    weight, bias = (p.reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return ((x - mean) / (variance + norm.eps).sqrt() * weight + bias).clamp_min(0)


@pytest.mark.parametrize(("after", "stride"), [(4, 1), (6, 1), (6, 2)])
def test_block_adds_its_input_as_it_is(after: int, stride: int) -> None:
    torch.manual_seed(0)
    block, x = PreactivationBlock(4, after, stride), torch.randn(5, 4, 6, 6)
    first, second = (layer for layer in block.residual if isinstance(layer, nn.Conv2d))
    norms = [layer for layer in block.residual if isinstance(layer, nn.BatchNorm2d)]
    y = functional.conv2d(activated(x, norms[0]), first.weight, stride=stride, padding=1)
    y = functional.conv2d(activated(y, norms[1]), second.weight, padding=1)
    shortcut = x
    if after != 4 or stride != 1:
        shortcut = functional.conv2d(x, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), y + shortcut)


def test_dense_layer_keeps_its_input_and_adds_channels() -> None:
    torch.manual_seed(0)
    layer, x = DenseLayer(4, 3), torch.randn(5, 4, 6, 6)
    y = layer(x)
    assert torch.equal(y[:, :4], x)
    norm, _, convolution = layer.new
    torch.testing.assert_close(y[:, 4:], functional.conv2d(activated(x, norm), convolution.weight, padding=1))


def test_transitions_halve_the_image_and_keep_the_channels() -> None:
    with torch.device("meta"):
        model, x = densenet(40, 12, 3, 10), torch.empty(2, 3, 32, 32)
    seen = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.AvgPool2d):
            seen.append(tuple(x.shape))
    assert seen == [(2, 12 * 14, 16, 16), (2, 12 * 26, 8, 8)]


def test_initial_weights_are_those_of_the_released_code() -> None:
    model = build_model("densenet40", seed=0)
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    for weight in convolutions:
        fan_out = weight.shape[0] * weight[0, 0].numel()
        # Four standard errors of a standard deviation, which differs from one of fan in: inputs are up to 456.
        assert float(weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=4 / (2 * weight.numel()) ** 0.5)
    linear = model[-1]
    bound = linear.in_features**-0.5
    for values in (linear.weight.detach(), linear.bias.detach()):
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.6 * bound
    assert float(linear.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["preresnet20", "densenet40", "preresnet8-quick"])
def test_seed_fixes_every_initial_weight(name: str) -> None:
    torch.manual_seed(1)
    one = build_model(name, seed=3)
    torch.manual_seed(2)
    same, other = build_model(name, seed=3), build_model(name, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one[-1].weight, other[-1].weight)
    assert not torch.equal(one[-1].bias, other[-1].bias)


@pytest.mark.parametrize("depth", [2, 7, 21, -4])
def test_depth_that_does_not_exist_is_refused(depth: int) -> None:
    with pytest.raises(PruneLimitError, match=rf"^depth={depth} must be 6 n \+ 2"):
        preresnet(depth, 3, 10)
    with pytest.raises(PruneLimitError, match=r"^depth=\d+ must be 3 n \+ 4"):
        densenet(abs(depth) // 3 * 3, 12, 3, 10)


@pytest.mark.parametrize("width", [0, 0.05, float("nan"), float("inf"), -1])
def test_width_without_channels_is_refused(width: float) -> None:
    with pytest.raises(PruneLimitError, match=r"^width=.* must be at least 1/16"):
        preresnet(20, 3, 10, width=width)


def test_growth_without_channels_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^growth=0"):
        densenet(40, 0, 3, 10)
