"""What is pruned of a parent, and what two children have in common."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.landscape import (
    linear_mode_connectivity,
    measure_pair,
    output_similarity,
    prune_parent,
    regime_parameters,
)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 10)
    )


def perceptron(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture
def data() -> DeviceSplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return DeviceSplit(images, torch.arange(60) % 10, (0.3,), (0.4,), 16)


def test_convolutions_are_pruned_and_linear_layers_kept() -> None:
    assert regime_parameters(convolutional()) == ["0.weight", "2.weight"]


def test_of_a_perceptron_the_last_layer_is_kept() -> None:
    assert regime_parameters(perceptron()) == ["1.weight"]


def test_a_single_layer_is_pruned_itself() -> None:
    assert regime_parameters(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))) == ["1.weight"]


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_uniform_keeps_the_largest_of_each_layer(density: float) -> None:
    model = convolutional()
    masks = prune_parent(model, density)
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert kept == math.floor(density * total + 1e-9)
    for name, mask in masks.items():
        weights = model.get_parameter(name).detach().abs()
        assert abs(float(mask.sum()) - density * mask.numel()) < 1
        if 0 < mask.sum() < mask.numel():
            assert weights[mask == 1].min() >= weights[mask == 0].max()


def test_global_keeps_the_largest_of_all() -> None:
    model = convolutional()
    with torch.no_grad():
        model[0].weight.mul_(100)
    masks = prune_parent(model, 0.2, "global")
    assert float(masks["0.weight"].mean()) > float(masks["2.weight"].mean())
    kept = torch.cat([model.get_parameter(n).detach().abs()[m == 1] for n, m in masks.items()])
    gone = torch.cat([model.get_parameter(n).detach().abs()[m == 0] for n, m in masks.items()])
    assert kept.min() >= gone.max()


def test_a_pair_is_measured_as_by_the_functions_alone(data: DeviceSplit) -> None:
    first, second = perceptron(0), perceptron(1)
    pair = measure_pair(first, second, data)
    by_error = linear_mode_connectivity(first, second, data)
    by_loss = linear_mode_connectivity(first, second, data, measure="loss")
    assert (pair.errors, pair.lmc) == (by_error.values, by_error.lmc)
    assert (pair.losses, pair.lmc_loss) == (by_loss.values, by_loss.lmc)
    assert pair.cka == output_similarity(first, second, data)


def test_a_network_and_itself_are_connected_and_alike(data: DeviceSplit) -> None:
    model = perceptron()
    pair = measure_pair(model, model, data)
    assert pair.lmc == 0
    assert pair.lmc_loss == pytest.approx(0, abs=1e-6)
    assert pair.cka == pytest.approx(1)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(PruneLimitError, match=r"^distribution='unifrom' is unknown"):
        prune_parent(perceptron(), 0.5, "unifrom")
    with pytest.raises(PruneLimitError, match=r"^density=0 must lie in"):
        prune_parent(perceptron(), 0)
    with pytest.raises(PruneLimitError, match=r"^density=1.5 must lie in"):
        prune_parent(perceptron(), 1.5)
