"""AlexNet, VGG and the residual networks with projections: structure and arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError
from prunelimit.models import MODELS, ProjectionBlock, alexnet, build_model, projection_resnet, prunable_names, vgg


def test_alexnet_repeats_pixels_first():
    model = build_model("alexnet-quick", input_shape=(1, 8, 8), seed=0)
    images = torch.randn(2, 1, 8, 8)
    repeated = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(model(images), model[1:](repeated))


def test_alexnet_sees_224_pixels_and_leaves_five_by_five():
    with torch.device("meta"):
        model = alexnet((3, 32, 32), 10)
        images = torch.empty(1, 3, 32, 32)
    assert model[0](images).shape == (1, 3, 224, 224)
    flat = next(i for i, layer in enumerate(model) if isinstance(layer, nn.Flatten))
    assert model[:flat](images).shape == (1, 256, 5, 5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 8)])
def test_too_small_images_are_refused_by_alexnet(shape):
    with pytest.raises(PruneLimitError, match=r"input_shape=.*too small for AlexNet"):
        build_model("alexnet", input_shape=shape)


@pytest.mark.parametrize("shape", [(3, 17, 17), (1, 24, 40)])
def test_alexnet_fits_its_first_linear_layer_to_the_image(shape):
    with torch.device("meta"):
        assert alexnet(shape, 3)(torch.empty(2, *shape)).shape == (2, 3)


def test_vgg16_ends_in_one_pixel_and_one_linear_layer():
    with torch.device("meta"):
        model = MODELS["vgg16"]((3, 32, 32), 10)
        assert model[:-3](torch.empty(2, 3, 32, 32)).shape == (2, 512, 1, 1)
    assert [type(layer) for layer in model[-3:]] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert sum(isinstance(layer, nn.Conv2d) for layer in model) == 13


def test_vgg_pools_an_odd_row_alone():
    model = vgg((2, 0), 1, 3).eval()
    images = torch.randn(1, 1, 3, 3)
    features = model[:3](images)
    assert torch.equal(model[3](features)[..., 1, 1], features[..., 2, 2])


def normalised(x, convolution, norm):
    """Convolution and batch normalisation in evaluation mode, from their definitions."""
    y = functional.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)
    shape = (1, -1, 1, 1)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).reshape(shape)
    return (y - norm.running_mean.reshape(shape)) * scale + norm.bias.reshape(shape)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_by_hand(bottleneck, stride):
    torch.manual_seed(0)
    block = ProjectionBlock(3, 2, stride, bottleneck=bottleneck).eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(value)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    pairs = [(block.residual[i], block.residual[i + 1]) for i in range(0, len(block.residual), 3)]
    kernels = [1, 3, 1] if bottleneck else [3, 3]
    strides = [1, stride, 1] if bottleneck else [stride, 1]
    assert [c.kernel_size[0] for c, _ in pairs] == kernels
    assert [c.stride[0] for c, _ in pairs] == strides
    y = x
    for place, pair in enumerate(pairs):
        y = normalised(y if place == 0 else y.clamp(min=0), *pair)
    expected = (y + normalised(x, *block.shortcut)).clamp(min=0)
    assert expected.shape == (2, 8 if bottleneck else 2, 6 // stride, 6 // stride)
    torch.testing.assert_close(block(x), expected)


def test_a_block_that_changes_nothing_has_no_projection():
    assert isinstance(ProjectionBlock(8, 8, 1, bottleneck=False).shortcut, nn.Identity)
    assert isinstance(ProjectionBlock(8, 2, 1, bottleneck=True).shortcut, nn.Identity)


@pytest.mark.parametrize(
    # Weighted layers as they are counted in the name, and the projections that are not: three, or four with bottlenecks.
    ("blocks", "bottleneck", "layers"),
    [((2, 2, 2, 2), False, 18 + 3), ((3, 4, 6, 3), True, 50 + 4)],
)
def test_depth(blocks, bottleneck, layers):
    with torch.device("meta"):
        model = projection_resnet(blocks, 4, 3, 10, bottleneck=bottleneck)
    assert len(prunable_names(model)) == layers


def test_the_stem_keeps_the_size_and_later_stages_halve_it():
    with torch.device("meta"):
        model, x = projection_resnet((1, 1, 1, 1), 4, 3, 10, bottleneck=False), torch.empty(1, 3, 32, 32)
        sizes = []
        for layer in model[:-3]:
            x = layer(x)
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [(4, 32, 32)] * 4 + [(8, 16, 16), (16, 8, 8), (32, 4, 4)]


@pytest.mark.parametrize("name", ["alexnet-quick", "vgg-quick", "resnet18-quick", "resnet50-quick"])
def test_convolutions_start_kaiming_normal_without_biases(name):
    model = build_model(name, input_shape=(1, 8, 8), seed=0)
    spread = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spread.append(module.weight.detach().flatten() * (module.weight[0].numel() / 2) ** 0.5)
            assert module.bias is None or not module.bias.any()
    assert float(torch.cat(spread).std()) == pytest.approx(1, abs=0.03)
