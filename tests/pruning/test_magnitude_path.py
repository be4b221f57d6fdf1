"""MagnitudePath, removed_count and magnitude_masks: one sort gives every mask and every distance."""

from __future__ import annotations

import copy
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp
from prunelimit.pruning import MagnitudePath, apply_masks, magnitude_masks
from prunelimit.pruning.magnitude import prunable_parameters, removed_count

sparsities = st.floats(0, 1, exclude_max=True)


def layers(*weights: list[list[float]]) -> nn.Sequential:
    """A network of bias-free linear layers with given weights."""
    model = nn.Sequential(*[nn.Linear(len(w[0]), len(w), bias=False) for w in weights])
    with torch.no_grad():
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    return model


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Two layers whose weights are drawn from few values, so that ties and zeros are frequent."""
    value = st.sampled_from([0.0, -0.5, 0.5, 1.0, -1.0, 2.5]) | st.floats(-3, 3, width=32)
    first = draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=1, max_size=4))
    second = draw(st.lists(st.lists(value, min_size=len(first), max_size=len(first)), min_size=1, max_size=4))
    return layers(first, second)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors.values()])


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@given(sparsity=sparsities, total=st.integers(1, 10**7))
def test_removed_count_is_the_ceiling(sparsity: float, total: int) -> None:
    exact = Fraction(sparsity) * total
    found = removed_count(sparsity, total)
    # The one exception: a product that misses an integer by rounding alone is that integer.
    if abs(exact - round(exact)) <= Fraction(1, 10**12) * exact:
        assert found == round(exact)
    else:
        assert found == ceil(exact)


@given(total=st.integers(1, 10**7), data=st.data())
def test_k_out_of_d_removes_exactly_k(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total - 1))
    assert removed_count(count / total, total) == count


@given(model=networks(), sparsity=sparsities)
def test_masks_remove_the_exact_number(model: nn.Sequential, sparsity: float) -> None:
    masks = magnitude_masks(model, sparsity)
    keep = flat(masks)
    assert set(keep.tolist()) <= {0.0, 1.0}
    assert int((keep == 0).sum()) == removed_count(sparsity, keep.numel())


@given(model=networks(), sparsity=sparsities)
def test_no_removed_weight_is_larger_than_a_kept_one(model: nn.Sequential, sparsity: float) -> None:
    keep, magnitude = flat(magnitude_masks(model, sparsity)), weights_of(model).abs()
    if keep.all():
        return
    kept = magnitude[keep == 1].tolist()
    assert float(magnitude[keep == 0].max()) <= min(kept, default=float("inf"))


@given(model=networks(), one=sparsities, other=sparsities)
def test_masks_are_nested(model: nn.Sequential, one: float, other: float) -> None:
    dense, sparse = (flat(magnitude_masks(model, s)) for s in sorted((one, other)))
    assert not ((sparse == 1) & (dense == 0)).any()


@given(model=networks())
def test_distance_of_every_count_equals_brute_force(model: nn.Sequential) -> None:
    path = MagnitudePath(model)
    sizes = sorted(abs(w) for w in weights_of(model).double().tolist())
    expected = [sum(w * w for w in sizes[:m]) ** 0.5 for m in range(len(sizes) + 1)]
    np.testing.assert_allclose(path.distance, expected, rtol=1e-12)
    assert len(path.distance) == path.total + 1


@given(model=networks(), sparsity=sparsities)
def test_distance_is_that_of_the_really_pruned_network(model: nn.Sequential, sparsity: float) -> None:
    before = weights_of(model).double()
    radius = MagnitudePath(model).radius(sparsity)
    apply_masks(model, magnitude_masks(model, sparsity))
    assert radius == pytest.approx(float((weights_of(model).double() - before).norm()), rel=1e-12, abs=1e-300)


@given(model=networks(), values=st.lists(sparsities, min_size=2, max_size=20))
def test_distance_rises_with_sparsity(model: nn.Sequential, values: list[float]) -> None:
    radius = MagnitudePath(model).radius(np.sort(values))
    assert (np.diff(radius) >= 0).all()


@given(model=networks(), sparsity=sparsities)
def test_displacement_leads_to_the_masked_weights(model: nn.Sequential, sparsity: float) -> None:
    path = MagnitudePath(model)
    expected = weights_of(model) * flat(path.masks(sparsity))
    assert torch.equal(weights_of(model) + path.displacement(sparsity), expected)


def test_threshold_is_global_not_per_layer() -> None:
    model = layers([[10.0, 20.0]], [[1.0], [2.0]])
    masks = magnitude_masks(model, 0.5)
    assert masks["0.weight"].tolist() == [[1, 1]]
    assert masks["1.weight"].tolist() == [[0], [0]]


def test_ties_leave_in_the_order_of_the_model() -> None:
    model = layers([[1.0, -1.0]], [[1.0], [-1.0]])
    assert flat(magnitude_masks(model, 0.25)).tolist() == [0, 1, 1, 1]
    assert flat(magnitude_masks(model, 0.75)).tolist() == [0, 0, 0, 1]


def test_sparsity_zero_keeps_everything() -> None:
    assert flat(magnitude_masks(mlp([4, 3, 2]), 0)).all()


def test_masks_have_shape_and_type_of_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    masks = magnitude_masks(model, 0.3)
    assert {name: mask.shape for name, mask in masks.items()} == {"0.weight": (2, 1, 3, 3), "3.weight": (3, 8)}
    assert all(mask.dtype == torch.float64 for mask in masks.values())


def test_model_is_not_changed() -> None:
    model = mlp([4, 3, 2])
    before = copy.deepcopy(model.state_dict())
    magnitude_masks(model, 0.5)["1.weight"].zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_path_keeps_the_weights_that_it_was_made_from() -> None:
    model = layers([[1.0, 2.0]])
    path = MagnitudePath(model)
    with torch.no_grad():
        model[0].weight.fill_(9)
    assert path.displacement(0.5).tolist() == [-1, 0]


def test_prunable_restricts_the_cut() -> None:
    model = layers([[10.0, 20.0]], [[1.0], [2.0]])
    assert {n: m.tolist() for n, m in magnitude_masks(model, 0.5, ["0.weight"]).items()} == {"0.weight": [[0, 1]]}


def test_radius_of_an_array_has_its_shape() -> None:
    path = MagnitudePath(layers([[3.0, 4.0]]))
    np.testing.assert_allclose(path.radius(np.array([[0.0, 0.5], [0.9, 0.1]])), [[0, 3], [5, 3]])
    assert path.radius(0.9) == 5
    assert isinstance(path.radius(0.5), float)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(PruneLimitError, match=f"sparsity={sparsity}"):
        magnitude_masks(mlp([4, 3, 2]), sparsity)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    model = mlp([4, 3, 2])
    with torch.no_grad():
        model[3].weight[0, 0] = bad
    with pytest.raises(PruneLimitError, match=r"'3\.weight'"):
        magnitude_masks(model, 0.5)


def test_tied_parameter_goes_by_any_of_its_names() -> None:
    # Once wrong: only the first name was known, and the error proposed another layer.
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    assert list(prunable_parameters(model, ["1.weight"])) == ["0.weight"]
    assert list(prunable_parameters(model, ["1.weight", "0.weight"])) == ["0.weight"]


def test_first_bad_name_is_the_one_that_is_named() -> None:
    model, names = mlp([2, 2, 2]), [f"no{number}.weight" for number in range(8)]
    for shift in range(8):
        chosen = ["1.weight", *names[shift:], *names[:shift]]
        with pytest.raises(PruneLimitError, match=rf"^prunable='{names[shift]}' is unknown"):
            prunable_parameters(model, chosen)
