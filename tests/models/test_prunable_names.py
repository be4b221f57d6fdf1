"""prunable_names: which weights count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("model", [nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(2, 2).requires_grad_(False)])
def test_model_without_prunable_weights_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(PruneLimitError, match=f"model={type(model).__name__} has no prunable weights"):
        prunable_names(model)
