"""prunable_names: which weights count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, prunable_names


def test_biases_and_norms_are_not_prunable() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LayerNorm(2), nn.Linear(2, 2))
    assert prunable_names(model) == ["0.weight", "4.weight"]


def test_embeddings_are_not_prunable() -> None:
    assert prunable_names(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))) == ["1.weight"]


def test_one_and_three_dimensional_convolutions_count() -> None:
    assert prunable_names(nn.ModuleList([nn.Conv1d(1, 1, 1), nn.Conv3d(1, 1, 1)])) == ["0.weight", "1.weight"]


def test_shared_weight_appears_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert prunable_names(model) == ["0.weight"]


def test_weight_tied_to_an_embedding_counts_under_its_first_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    assert prunable_names(model) == ["0.weight"]


def test_frozen_weight_does_not_count() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    assert prunable_names(model) == ["1.weight"]


def test_order_is_that_of_the_model() -> None:
    model = build_model("resnet8-quick", input_shape=(1, 8, 8))
    found = prunable_names(model)
    assert found == [name for name, p in model.named_parameters() if p.ndim > 1]


def pruned() -> nn.Linear:
    return prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5)


@pytest.mark.parametrize("make", [pruned, lambda: weight_norm(nn.Linear(3, 3)), lambda: spectral_norm(nn.Linear(3, 3))])
def test_weight_computed_from_others_is_refused_and_not_left_out(make: Callable[[], nn.Module]) -> None:
    # Once wrong: a layer under a mask or a norm was left out in silence, and the limit was that of the other layers.
    model = nn.Sequential(nn.Linear(3, 3), make())
    with pytest.raises(PruneLimitError, match=r"^model computes the weight of '1'.*prune\.remove"):
        prunable_names(model)
    model[1].requires_grad_(False)
    assert prunable_names(model) == ["0.weight"]


def test_masks_made_permanent_leave_a_weight_again() -> None:
    layer = pruned()
    prune.remove(layer, "weight")
    assert prunable_names(layer) == ["weight"]


def test_looking_for_names_computes_no_weight() -> None:
    # Once wrong: in training mode each look at the weight made a step of the power iteration, in the user's own buffers.
    layer = spectral_norm(nn.Linear(3, 3))
    before = [buffer.clone() for buffer in layer.buffers()]
    with pytest.raises(PruneLimitError):
        prunable_names(layer)
    assert before
    assert all(torch.equal(old, new) for old, new in zip(before, layer.buffers(), strict=True))


def test_torchscript_is_named() -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2), check_trace=False)
    with pytest.raises(PruneLimitError, match=r"^model is TorchScript"):
        prunable_names(traced)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(2, 2).requires_grad_(False)])
def test_model_without_prunable_weights_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(PruneLimitError, match=f"model={type(model).__name__} has no prunable weights"):
        prunable_names(model)
