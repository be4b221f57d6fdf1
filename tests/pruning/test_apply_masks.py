"""apply_masks and export_pruning: the masks reach the weights and stay there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunelimit import apply_masks, magnitude_masks
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.pruning import export_pruning


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp([6, 5, 4])


def test_masked_weights_are_zero_and_the_others_untouched(model: nn.Sequential) -> None:
    before, masks = copy.deepcopy(model), magnitude_masks(model, 0.6)
    assert apply_masks(model, masks) is model
    for name, p in model.named_parameters():
        expected = dict(before.named_parameters())[name] * masks.get(name, torch.ones(()))
        assert torch.equal(p, expected)


def test_applying_twice_is_applying_once(model: nn.Sequential) -> None:
    masks = magnitude_masks(model, 0.6)
    once = copy.deepcopy(apply_masks(model, masks).state_dict())
    assert all(torch.equal(once[name], value) for name, value in apply_masks(model, masks).state_dict().items())


def test_parameters_keep_their_identity_and_gradients(model: nn.Sequential) -> None:
    before = list(model.parameters())
    apply_masks(model, magnitude_masks(model, 0.6))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_boolean_masks_are_accepted(model: nn.Sequential) -> None:
    apply_masks(model, {"1.weight": torch.zeros(5, 6, dtype=torch.bool)})
    assert not model[1].weight.any()


def test_exported_masks_belong_to_torch(model: nn.Sequential) -> None:
    masks = magnitude_masks(model, 0.6)
    expected = apply_masks(copy.deepcopy(model), masks)
    x = torch.randn(3, 6)
    assert export_pruning(model, masks) is model
    assert prune.is_pruned(model)
    assert torch.equal(model(x), expected(x))
    assert torch.equal(model[1].weight_mask, masks["1.weight"])


def test_exported_masks_survive_training(model: nn.Sequential) -> None:
    masks = magnitude_masks(model, 0.6)
    export_pruning(model, masks)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimiser.step()
    model(torch.randn(8, 6))
    assert not model[1].weight[masks["1.weight"] == 0].any()


def test_exported_masks_can_be_made_permanent(model: nn.Sequential) -> None:
    masks = magnitude_masks(model, 0.6)
    export_pruning(model, masks)
    for layer in (model[1], model[3]):
        prune.remove(layer, "weight")
    assert not prune.is_pruned(model)
    assert not model[1].weight[masks["1.weight"] == 0].any()
    assert set(dict(model.named_parameters())) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_export_reaches_nested_modules() -> None:
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    export_pruning(model, magnitude_masks(model, 0.5))
    assert prune.is_pruned(model[3].conv1)


@pytest.mark.parametrize("function", [apply_masks, export_pruning])
def test_unknown_parameter_is_refused_with_the_nearest(model: nn.Sequential, function: object) -> None:
    with pytest.raises(PruneLimitError, match=r"masks='1.weigth' is unknown\. Did you mean '1.weight'\?"):
        function(model, {"1.weigth": torch.ones(5, 6)})


@pytest.mark.parametrize("function", [apply_masks, export_pruning])
def test_mask_of_another_shape_is_refused_before_anything_changes(model: nn.Sequential, function: object) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruneLimitError, match=r"masks\['3.weight'\] has shape \(5,\)"):
        function(model, {"1.weight": torch.zeros(5, 6), "3.weight": torch.ones(5)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
