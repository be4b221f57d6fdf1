"""build_model and its networks: shapes, sizes, initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunelimit.errors import PruneLimitError
from prunelimit.models import MODELS, BasicBlock, build_model, cifar_resnet, mlp, prunable_names

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in sorted(MODELS) for shape in SHAPES if (name, shape) != ("alexnet", (1, 8, 8))],
)
def test_every_network_maps_images_to_logits(name: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):  # shapes alone: the large networks would take a minute
        assert MODELS[name](shape, 7)(torch.empty(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(name for name in MODELS if name.endswith("-quick")))
def test_every_stand_in_computes(name: str) -> None:
    logits = build_model(name, input_shape=(1, 8, 8), num_classes=7, seed=0)(torch.randn(2, 1, 8, 8))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 3072-1000-600-300-100-10 with biases: the 3.9 million weights of the paper.
        ("fc5", 3_883_000 + 2_010),
        # He et al. (2016), table 6: ResNet20 has 0.27 million parameters.
        ("resnet20", 269_722),
    ],
)
def test_number_of_parameters(name: str, expected: int) -> None:
    assert sum(p.numel() for p in build_model(name).parameters()) == expected


def test_fc12_has_twelve_layers() -> None:
    assert sum(isinstance(m, nn.Linear) for m in build_model("fc12").modules()) == 12


def test_resnet20_has_twenty_weighted_layers() -> None:
    assert len(prunable_names(build_model("resnet20"))) == 20


def test_seed_fixes_the_initial_weights() -> None:
    one, same, other = (build_model("fc5-quick", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one[1].weight, other[1].weight)


def test_seed_leaves_the_global_generator_alone_in_its_weights() -> None:
    torch.manual_seed(1)
    one = build_model("fc5-quick", seed=3)
    torch.manual_seed(2)
    assert torch.equal(one[1].weight, build_model("fc5-quick", seed=3)[1].weight)


def test_no_seed_draws_from_the_global_generator() -> None:
    torch.manual_seed(1)
    one = build_model("fc5-quick")
    assert not torch.equal(one[1].weight, build_model("fc5-quick")[1].weight)
    torch.manual_seed(1)
    assert torch.equal(one[1].weight, build_model("fc5-quick")[1].weight)


@pytest.mark.parametrize(("name", "layer"), [("fc5", 1), ("resnet20", 6)])
def test_weights_are_kaiming_normal_and_biases_zero(name: str, layer: int) -> None:
    model = build_model(name, seed=0)
    weight = model[layer].weight if name == "fc5" else model[layer].conv1.weight
    fan_in = weight[0].numel()
    assert float(weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None)


def test_mlp_has_no_activation_after_the_logits() -> None:
    assert [type(layer) for layer in mlp([4, 3, 2])] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


def test_shortcut_pads_channels_with_zeros_and_takes_every_second_pixel() -> None:
    block = BasicBlock(2, 4, 2).eval()
    nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 2, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_resnet_width_and_depth() -> None:
    model = cifar_resnet(14, 5, 1, 3)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 13
    assert model[-1].in_features == 20


def test_unknown_network_is_refused_with_the_nearest() -> None:
    with pytest.raises(PruneLimitError, match=r"model='resnet-20' is unknown\. Did you mean 'resnet20'\?"):
        build_model("resnet-20")


@pytest.mark.parametrize("options", [{"input_shape": (0, 8, 8)}, {"num_classes": 0}])
def test_size_below_one_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(PruneLimitError, match=next(iter(options))):
        build_model("fc5", **options)
