"""Models of timm through their own interface: images in, logits or features out, with all that a block of theirs may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit import apply_masks, layer_limits, limit_report, predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import GGNOperator, HessianOperator
from prunelimit.datasets import Dataset
from prunelimit.models import prunable_names
from prunelimit.models.gpt import block_names
from prunelimit.pruning import UnitOrder

# It needs torchvision, which may be there and broken: built for another torch.
try:
    import timm
    from timm.layers import set_fused_attn
except Exception as error:
    pytest.skip(f"timm cannot be imported: {error!r}", allow_module_level=True)

CLASSES = 3
LABELS = torch.arange(8) % CLASSES
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vit(**options: Any) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 4, "num_heads": 2, "mlp_ratio": 1.5}
    sizes |= {"in_chans": 1, "num_classes": CLASSES}
    return timm.create_model("vit_tiny_patch16_224", **sizes | options)


def resnet() -> nn.Module:
    return timm.create_model("resnet10t", in_chans=1, num_classes=CLASSES, channels=(2, 3, 4, 4), stem_width=4)


def convnext() -> nn.Module:
    sizes = {"depths": (1, 1, 1, 1), "dims": (3, 4, 4, 5), "patch_size": 1}
    return timm.create_model("convnext_atto", in_chans=1, num_classes=CLASSES, **sizes)


def swin() -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "window_size": 2, "embed_dim": 4, "depths": (1, 1), "num_heads": (2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", in_chans=1, num_classes=CLASSES, **sizes)


MAKERS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "resnet": resnet, "convnext": convnext, "swin": swin}


def made(make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """Build a network whose weights are large enough for a loss that bends."""
    torch.manual_seed(0)
    model = make(**options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def dense_hessian(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Differentiate each entry of the gradient, in float64."""
    model = model.double().eval()
    weights = [model.get_parameter(name) for name in prunable_names(model)]
    loss = cross_entropy(model(data[0].double()), data[1])
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, create_graph=True)])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True) for entry in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def unfused(**options: Any) -> nn.Module:
    """The vision transformer with attention written out, which autograd can differentiate twice by itself."""
    try:
        set_fused_attn(False)
        return made(vit, **options)
    finally:
        set_fused_attn(True)


def test_attention_has_the_dense_hessian() -> None:
    model = made(vit, init_values=0.5, drop_path_rate=0.5, depth=1)
    assert model.blocks[0].attn.fused_attn
    operator = HessianOperator(model, cross_entropy, (IMAGES, LABELS), dtype=torch.float64)
    plain = unfused(init_values=0.5, drop_path_rate=0.5, depth=1)
    expected = dense_hessian(plain, (IMAGES, LABELS))
    assert len(expected) == 16 * 4 + 4 * 16 + 2 * 24 + 3 * 4
    torch.testing.assert_close(operator.dense(), expected)
    assert expected.abs().max() > 1e-3
    limits = [predict_limit(m, cross_entropy, (IMAGES, LABELS), epsilon=0.05, steps=8) for m in (model, plain.float())]
    assert limits[0].sparsity == pytest.approx(limits[1].sparsity, abs=1e-3)


@pytest.mark.parametrize("name", ["resnet", "convnext", "swin"])
def test_products_are_those_of_autograd(name: str) -> None:
    model = made(MAKERS[name])
    set_fused_attn(False)
    try:
        plain = made(MAKERS[name]).double().eval()
    finally:
        set_fused_attn(True)
    operator = HessianOperator(model, cross_entropy, (IMAGES, LABELS), dtype=torch.float64)
    direction = torch.randn(operator.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = [plain.get_parameter(key) for key in prunable_names(plain)]
    loss = cross_entropy(plain(IMAGES.double()), LABELS)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, create_graph=True)])
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(gradient @ direction, weights)])
    found = operator @ direction
    assert (found - expected).norm() < 1e-9 * expected.norm()
    ggn = GGNOperator(model, cross_entropy, (IMAGES, LABELS), dtype=torch.float64)
    assert direction @ (ggn @ direction) > 0


@pytest.mark.parametrize("method", ["formula", "cut", "directional", "refit", "measured"])
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_every_method_gives_a_limit(name: str, method: str) -> None:
    model = made(MAKERS[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options: dict[str, Any] = {"epsilon": 0.05, "steps": 6, "tolerance": 0.02, "progress": False}
    limit = predict_limit(model, cross_entropy, (IMAGES, LABELS), method=method, **options)
    assert 0 <= limit.sparsity < 1
    assert limit.total == sum(model.get_parameter(key).numel() for key in prunable_names(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_report_on_digits(digits: Dataset) -> None:
    images, labels = digits.on_device("train").tensors(96)
    torch.manual_seed(0)
    model = vit(num_classes=10, init_values=1.0, drop_path_rate=0.2, embed_dim=8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimiser.step()
    report = limit_report(
        model,
        cross_entropy,
        (images, labels),
        methods=["directional", "measured"],
        layers=False,
        epsilon=0.05,
        units="heads",
    )
    order = UnitOrder(model, "head")
    assert report.total == order.total == 2 * 4 * 8 * 8
    assert 0 < report.limits["measured"].sparsity < 1
    assert "patch_embed.proj.weight (Conv2d, 128)" in report.findings()[-1]
    table = layer_limits(
        model, cross_entropy, (images, labels), prunable=block_names(model), epsilon=0.05, method="measured"
    ).table
    assert list(table.layer) == block_names(model)
    assert table.sparsity.between(0, 1).all()


def test_prunable_are_linear_and_convolution_weights() -> None:
    model = made(vit, init_values=0.5, class_token=True)
    names = prunable_names(model)
    assert names[0] == "patch_embed.proj.weight"
    assert names[-1] == "head.weight"
    assert not any(
        word in name for name in names for word in ("norm", "ls1", "gamma", "pos_embed", "cls_token", "bias")
    )
    assert [name for name in names if name not in block_names(model)] == ["patch_embed.proj.weight", "head.weight"]
    assert "layers.0.blocks.0.attn.relative_position_bias_table" not in prunable_names(made(swin))
    depthwise = made(convnext)
    assert sum(p.numel() for p in depthwise.parameters() if p.ndim > 1) == sum(
        depthwise.get_parameter(name).numel() for name in prunable_names(depthwise)
    )


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_removed_heads_are_silent(name: str) -> None:
    model = made(MAKERS[name]).eval()
    order = UnitOrder(model, "head")
    masks = order.masks(1e-9)  # one head
    (out,) = [key for key, mask in masks.items() if "proj" in key and not mask.all()]
    gone = (masks[out][0] == 0).nonzero().flatten()
    layer = model.get_submodule(out.removesuffix(".weight"))

    def silence(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (given[0].index_fill(-1, gone, 0.0),)

    with torch.no_grad():
        handle = layer.register_forward_pre_hook(silence)
        expected = model(IMAGES)
        handle.remove()
        dense = model(IMAGES)
        found = apply_masks(model, masks)(IMAGES)
    torch.testing.assert_close(found, expected)
    assert (found - dense).abs().max() > 1e-3
    assert len(gone) == layer.weight.shape[1] // 2


class Twofold(nn.Module):
    """A network of one's own around a timm backbone, in two steps, with features beside the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = made(vit)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body.forward_features(images)
        return self.body.forward_head(features), features


def test_features_and_heads_are_called_apart() -> None:
    plain = predict_limit(made(vit), cross_entropy, (IMAGES, LABELS), epsilon=0.05, method="measured")
    apart = predict_limit(Twofold(), cross_entropy, (IMAGES, LABELS), epsilon=0.05, method="measured")
    assert apart.sparsity == plain.sparsity
    lists = timm.create_model("resnet10t", in_chans=1, features_only=True, channels=(2, 3, 4, 4), stem_width=4)

    def energy(features: list[Tensor], targets: Tensor) -> Tensor:
        return sum(((part.flatten(1).mean(1) - targets) ** 2).mean() for part in features)

    limit = predict_limit(lists, energy, (IMAGES, LABELS.float()), epsilon=0.05, method="directional", tolerance=0.05)
    assert 0 <= limit.sparsity < 1


def test_two_heads_of_a_distilled_model() -> None:
    sizes = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 4, "num_heads": 2, "in_chans": 1}
    model = made(lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **sizes))
    model.set_distilled_training(True)  # in training it gives a pair of scores, in evaluation mode their mean
    loss = HessianOperator(adapt(model, cross_entropy, (IMAGES, LABELS)).model, cross_entropy, (IMAGES, LABELS)).loss
    assert loss == pytest.approx(cross_entropy(model.eval()(IMAGES), LABELS).item(), rel=1e-5)
    assert {"head.weight", "head_dist.weight"} <= set(prunable_names(model))


def test_memory_format_and_random_depth_change_nothing() -> None:
    images = IMAGES.expand(-1, 2, -1, -1).contiguous()
    options = {"in_chans": 2, "num_classes": CLASSES, "channels": (2, 3, 4, 4), "stem_width": 4}
    common: dict[str, Any] = {"epsilon": 0.05, "steps": 6}
    limits = []
    for rate, memory in ((0.0, torch.contiguous_format), (0.5, torch.channels_last)):
        model = made(lambda r=rate: timm.create_model("resnet10t", drop_path_rate=r, **options)).to(
            memory_format=memory
        )
        data = images.contiguous(memory_format=memory), LABELS
        assert data[0].is_contiguous(memory_format=memory)
        limits.append(
            [predict_limit(model, cross_entropy, data, method=m, **common).sparsity for m in ("formula", "measured")]
        )
    assert limits[1] == pytest.approx(limits[0], abs=1e-3)
