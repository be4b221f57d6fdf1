"""Mode connectivity equals values found by hand, and the statistics behind it those of the whole data."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.landscape import (
    Connectivity,
    interpolate,
    linear_mode_connectivity,
    reestimate_statistics,
)
from prunelimit.models import build_model, mlp
from prunelimit.pruning.magnitude import apply_masks, magnitude_masks
from prunelimit.training import TrainSpec, evaluate, fit


class Parabola(nn.Module):
    """Class one is predicted where the square of the only weight exceeds the pixel."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        score = self.weight**2 - x.flatten(1)[:, 0]
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.fixture
def pixels() -> DeviceSplit:
    """One pixel per image, 0 to 0.9 in tenths, all of class one."""
    return DeviceSplit(
        torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1), torch.ones(10, dtype=torch.int64), (0.0,), (1.0,), 10
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_known_barrier(pixels):
    # The weight is 2 t - 1, and 10 images are at 0, 0.1, ..., 0.9: count those that its square does not exceed.
    found = linear_mode_connectivity(Parabola(-1.0), Parabola(1.0), pixels, batch_size=3)
    assert found.points == pytest.approx([k / 10 for k in range(11)])
    assert found.values == pytest.approx([0, 0.3, 0.6, 0.8, 0.9, 1, 0.9, 0.8, 0.6, 0.3, 0])
    assert (found.lmc, found.barrier, found.t) == pytest.approx((-1.0, 1.0, 0.5))


def test_unequal_ends(pixels):
    # From 0 to 1 the square is t^2: e = 1, .9, .9, .9, .8, .7, .6, .5, .3, .1, 0. The ends are farthest from their mean.
    found = linear_mode_connectivity(Parabola(0.0), Parabola(1.0), pixels)
    assert found.values == pytest.approx([1, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1, 0])
    assert (found.lmc, found.t) == pytest.approx((-0.5, 0.0))
    assert found.barrier == pytest.approx(0.2)


def test_the_loss_variant_by_hand(pixels):
    found = linear_mode_connectivity(Parabola(-1.0), Parabola(0.5), pixels, points=4, measure="loss")
    pixel = np.arange(10) / 10
    expected = [np.log1p(np.exp(pixel - w**2)).mean() for w in (-1.0, -0.5, 0.0, 0.5)]
    assert found.values == pytest.approx(expected, rel=1e-6)
    deviation = (expected[0] + expected[3]) / 2 - np.array(expected)
    assert found.lmc == pytest.approx(deviation[2], rel=1e-5)
    assert found.t == pytest.approx(2 / 3)
    assert found.barrier == pytest.approx(expected[2] - expected[0] / 3 - 2 * expected[3] / 3, rel=1e-5)


def test_a_better_middle_is_positive():
    found = Connectivity((0.0, 0.5, 1.0), (0.4, 0.1, 0.2), "error")
    assert (found.lmc, found.t, found.barrier) == (pytest.approx(0.2), 0.5, 0.0)


@pytest.fixture(scope="module")
def split(digits) -> DeviceSplit:
    return digits.on_device("train", size=301)


@pytest.mark.parametrize("name", ["fc3", "resnet8-quick"])
@pytest.mark.parametrize("measure", ["error", "loss"])
def test_a_network_is_connected_with_itself(split, name, measure):
    model = build_model(name, input_shape=(1, 8, 8), seed=0)
    before = state(model)
    found = linear_mode_connectivity(model, copy.deepcopy(model), split, points=5, measure=measure)
    assert len(set(found.values)) == 1
    assert found.lmc == 0
    assert found.barrier == 0
    assert same(before, state(model))
    assert model.training


def test_a_convex_loss_has_no_barrier(split):
    ends = [build_model("fc3", input_shape=(1, 8, 8), seed=seed) for seed in (0, 1)]
    linear = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        linear.append(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        nn.init.normal_(linear[-1][1].weight)
    found = linear_mode_connectivity(*linear, split, measure="loss")
    assert found.barrier == 0
    assert min(found.values) < min(found.values[0], found.values[-1])
    # The same number of points does show barriers where there are any.
    for model in ends:
        fit(model, split, TrainSpec(dataset="digits", model="fc3", epochs=15, batch_size=32, lr=0.1))
    assert linear_mode_connectivity(*ends, split, measure="loss").barrier > 0.1


def test_children_of_one_parent_stay_pruned_between_them(split):
    parent = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    masks = magnitude_masks(parent, 0.7)
    children = []
    for seed in (1, 2):
        child = apply_masks(copy.deepcopy(parent), masks)
        fit(
            child,
            split,
            TrainSpec(dataset="digits", model="x", epochs=1, batch_size=64, lr=0.05, seed=seed),
            masks=masks,
        )
        children.append(child)
    before = [state(child) for child in children]
    middle = interpolate(*children, 0.3)
    named = dict(middle.named_parameters())
    for name, mask in masks.items():
        assert bool((named[name][mask == 0] == 0).all())
        assert bool((named[name][mask == 1] != 0).all())
    found = linear_mode_connectivity(*children, split, points=3)
    assert all(same(*pair) for pair in zip(before, map(state, children), strict=True))
    # Each point is measured with statistics of its own.
    expected = evaluate(reestimate_statistics(interpolate(*children, 0.5), split), split)[1]
    assert found.values[1] == pytest.approx(1 - expected)


def test_interpolation_is_exact_at_the_ends():
    first, second = (build_model("resnet8-quick", input_shape=(1, 8, 8), seed=seed) for seed in (0, 1))
    assert same(state(interpolate(first, second, 0.0)), state(first))
    assert same(state(interpolate(first, second, 1.0)), state(second))
    quarter = interpolate(first, second, 0.25).get_parameter("0.weight")
    expected = 0.75 * first.get_parameter("0.weight") + 0.25 * second.get_parameter("0.weight")
    torch.testing.assert_close(quarter, expected)


def test_the_first_layer_has_the_statistics_of_all_images(split):
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    assert reestimate_statistics(model, split, batch_size=70) is model
    norm = model[1]
    with torch.no_grad():
        reach = functional.conv2d(split.tensors()[0].double(), model[0].weight.double(), padding=1)
    values = reach.transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), values.mean(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), values.var(dim=1), rtol=1e-5, atol=1e-6)


def test_one_batch_is_what_torch_measures(split):
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    reference = copy.deepcopy(model).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference(split.tensors()[0])
    reestimate_statistics(model, split, batch_size=1000)
    for one, other in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_batches_and_what_was_there_before_do_not_matter(digits):
    split = digits.on_device("train", size=300)
    order = torch.cat([torch.arange(200, 300), torch.arange(100), torch.arange(100, 200)])
    turned = digits.on_device("train", size=300)
    turned.images, turned.labels = split.images[order], split.labels[order]
    found = []
    for data, earlier in ((split, 0.0), (turned, 5.0)):
        model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.fill_(earlier)
        found.append(reestimate_statistics(model, data, batch_size=100))
    for one, other in zip(found[0].buffers(), found[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_modes_momenta_and_dropout_are_left_alone(split):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 6), nn.BatchNorm1d(6, momentum=None))
    model[1].eval()
    model[2].eval()
    reestimate_statistics(model, split, batch_size=150)  # 301 images: the last one would be alone
    assert [m.training for m in model] == [True, False, False, True]
    assert model[3].momentum is None
    assert not model[3]._forward_hooks
    with torch.no_grad():
        reach = model[2](split.tensors()[0].flatten(1)).double()
    torch.testing.assert_close(model[3].running_var.double(), reach.var(dim=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "batch_size"), [(3, 2), (7, 2), (5, 4), (2, 9)])
def test_no_image_is_normalised_by_itself(digits, count, batch_size):
    split = digits.on_device("train", size=count)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    reestimate_statistics(model, split, batch_size)
    expected = split.tensors()[0].flatten(1).double()
    torch.testing.assert_close(model[1].running_mean.double(), expected.mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), expected.var(dim=0), rtol=1e-5, atol=1e-6)


def test_nothing_happens_without_batch_normalisation(split):
    model = mlp([64, 8, 10])
    before = state(model)
    assert same(before, state(reestimate_statistics(model, split, 1)))


def test_what_cannot_be_joined_is_refused(pixels, split):
    one = mlp([64, 8, 10])
    with pytest.raises(PruneLimitError, match="weight"):
        linear_mode_connectivity(one, mlp([64, 9, 10]), split)
    with pytest.raises(PruneLimitError, match="architecture"):
        interpolate(one, mlp([64, 8, 8, 10]), 0.5)
    with pytest.raises(PruneLimitError, match=r"t=1\.5"):
        interpolate(one, one, 1.5)
    with pytest.raises(PruneLimitError, match="points=2"):
        linear_mode_connectivity(one, one, split, points=2)
    with pytest.raises(PruneLimitError, match="measure"):
        linear_mode_connectivity(one, one, split, measure="accuracy")
    with pytest.raises(PruneLimitError, match="batch_size"):
        reestimate_statistics(nn.BatchNorm2d(1), pixels, 1)


def test_a_result_is_plain_values(pixels):
    found = linear_mode_connectivity(Parabola(-1.0), Parabola(1.0), pixels, points=3)
    assert Connectivity(**dataclasses.asdict(found)) == found
