"""A trained curve goes around a barrier, the same one each time, and keeps what is pruned pruned."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError
from prunelimit.landscape import (
    bezier_connectivity,
    bezier_middle,
    bezier_point,
    interpolate,
    linear_mode_connectivity,
)
from prunelimit.landscape.connectivity import _curve_rate, _CurveStep
from prunelimit.models import build_model
from prunelimit.pruning.magnitude import magnitude_masks
from prunelimit.training import TrainSpec, fit

SPEC = TrainSpec(dataset="digits", model="fc3", epochs=15, batch_size=32, lr=0.1)


@pytest.fixture(scope="module")
def split(digits):
    return digits.on_device("train", size=400)


@pytest.fixture(scope="module")
def ends(split):
    """Two trainings from two initial networks with one mask."""
    masks = magnitude_masks(build_model("fc3", input_shape=(1, 8, 8), seed=0), 0.5)
    models = [build_model("fc3", input_shape=(1, 8, 8), seed=seed) for seed in (0, 1)]
    for model in models:
        fit(model, split, SPEC, masks=masks)
    return models


def test_a_curve_goes_around_the_barrier(ends, split):
    line = linear_mode_connectivity(*ends, split)
    before = copy.deepcopy([model.state_dict() for model in ends])
    curve = bezier_connectivity(*ends, split, epochs=15, lr=0.1, batch_size=32)
    assert line.lmc < -0.1
    assert curve.lmc > line.lmc / 3
    assert (curve.values[0], curve.values[-1]) == (line.values[0], line.values[-1])
    for old, model in zip(before, ends, strict=True):
        assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())


def test_an_untrained_curve_is_the_line(ends, split):
    line = linear_mode_connectivity(*ends, split, measure="loss", points=5)
    curve = bezier_connectivity(*ends, split, epochs=0, lr=0.1, measure="loss", points=5)
    assert curve.values == pytest.approx(line.values, rel=1e-5)


def test_the_same_seed_gives_the_same_curve(ends, split):
    torch.manual_seed(1)
    options = {"epochs": 2, "lr": 0.05, "augment": True}
    found = [bezier_middle(*ends, split, seed=seed, **options) for seed in (3, 3, 4)]
    first, again, other = (model.state_dict() for model in found)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(1))


def test_dropout_has_a_seed_too(split):
    models = [nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)) for _ in range(2)]
    found = []
    for _ in range(2):
        torch.rand(3)  # where the global generator stands does not matter
        found.append(bezier_middle(*models, split, epochs=1, lr=0.05)[2].weight)
    assert torch.equal(*found)


def test_pruned_weights_stay_zero(ends, split):
    middle = bezier_middle(*ends, split, epochs=2, lr=0.1, l2=1e-3)
    straight = interpolate(*ends, 0.5)
    for name, weight in middle.named_parameters():
        if weight.ndim == 2:
            pruned = (ends[0].get_parameter(name) == 0) & (ends[1].get_parameter(name) == 0)
            assert bool(pruned.any())
            assert bool((weight[pruned] == 0).all())
        assert not torch.equal(weight, straight.get_parameter(name))


def test_gradients_are_those_of_the_curve(ends, split):
    first, second = (copy.deepcopy(model).double() for model in ends)
    middle = interpolate(first, second, 0.5)
    images, labels = split.tensors(50)
    images = images.double()
    t, name = 0.3, "1.weight"
    step = _CurveStep(first, middle, second)
    loss = step.gradients(images, labels, t)
    where = torch.nonzero(first.get_parameter(name))[0]
    gradient = middle.get_parameter(name).grad[tuple(where)]
    values = []
    for shift in (1e-5, -1e-5):
        moved = copy.deepcopy(middle)
        with torch.no_grad():
            moved.get_parameter(name)[tuple(where)] += shift
            values.append(functional.cross_entropy(bezier_point(first, moved, second, t)(images), labels))
    assert float(gradient) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-5)
    assert float(loss) == pytest.approx(float(values[0] + values[1]) / 2, rel=1e-8)


def test_the_learning_rate_falls_from_half_to_nine_tenths():
    rates = [_curve_rate(epoch, 100) for epoch in (0, 50, 70, 90, 99)]
    assert rates == pytest.approx([1, 1, 0.505, 0.01, 0.01])


def test_batch_normalisation_is_trained_through(split):
    models = [build_model("resnet8-quick", input_shape=(1, 8, 8), seed=seed) for seed in (0, 1)]
    found = bezier_connectivity(*models, split, epochs=1, lr=0.05, batch_size=57, points=3, measure="loss")
    line = linear_mode_connectivity(*models, split, points=3, measure="loss")
    assert found.values[1] < line.values[1]


@pytest.mark.parametrize("options", [{"epochs": -1}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 1}])
def test_bad_settings_are_refused(ends, split, options):
    with pytest.raises(PruneLimitError, match=r"epochs=.*lr=.*batch_size="):
        bezier_middle(*ends, split, **{"epochs": 1, "lr": 0.1, **options})


def test_a_curve_that_diverges_is_refused(ends, split):
    with pytest.raises(PruneLimitError, match="lower lr"):
        bezier_middle(*ends, split, epochs=3, lr=1e30)
    with pytest.raises(PruneLimitError, match="architecture"):
        bezier_point(ends[0], nn.Linear(2, 2), ends[1], 0.5)
