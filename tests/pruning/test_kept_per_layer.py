"""kept_per_layer and random_masks: Smart-Ratio's densities against the formula, the exact total, the excess."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.pruning.magnitude import removed_count
from prunelimit.pruning.smart_ratio import SmartRatioSpec, kept_per_layer, random_masks
from prunelimit.training import TrainSpec

TRAIN = TrainSpec(dataset="digits", model="fc3", epochs=1)


def spec(**values: object) -> SmartRatioSpec:
    return SmartRatioSpec(train=TRAIN, **values)


def convolutions(*channels: int) -> nn.Sequential:
    """Convolutions 3x3 without a classifier, so that every layer follows the formula."""
    pairs = itertools.pairwise(channels)
    return nn.Sequential(*[nn.Conv2d(before, after, 3, bias=False) for before, after in pairs])


def test_densities_are_in_the_ratio_of_the_formula() -> None:
    # Three layers: (3^2 + 3) : (2^2 + 2) : (1^2 + 1) = 6 : 3 : 1, and 9 c^2 weights each.
    model = convolutions(20, 20, 20, 20)
    size = 9 * 400
    assert list(kept_per_layer(model, 1 - 10 / 30, spec()).values()) == [0.6 * size, 0.3 * size, 0.1 * size]


def test_vgg_divides_by_the_square_of_the_depth() -> None:
    model = convolutions(20, 20, 20, 20)
    found = list(kept_per_layer(model, 0.9, spec(divide_by_square=True)).values())
    ratios = [Fraction(12, 1), Fraction(6, 4), Fraction(2, 9)]
    expected = [r / sum(ratios) * 1080 for r in ratios]
    assert sum(found) == 1080
    assert all(abs(a - e) < 1 for a, e in zip(found, expected, strict=True))


def by_formula(sizes: list[int], kept: int, classifier: float | None) -> list[Fraction]:
    """The rule in exact arithmetic, by another route: fill the first layers one by one until the rest fits."""
    layers = len(sizes)
    head = Fraction(0) if classifier is None else Fraction(classifier) * sizes[-1]
    inner = sizes if classifier is None else sizes[:-1]
    share = [((layers - l + 1) ** 2 + layers - l + 1) * n for l, n in enumerate(inner, 1)]  # noqa: E741
    wanted = [(kept - head) * Fraction(s, sum(share)) for s in share]
    got: list[Fraction] = []
    for depth, size in enumerate(inner):
        # All that was wanted up to here, less what the layers before could hold.
        got.append(min(Fraction(size), sum(wanted[: depth + 1]) - sum(got)))
    return got if classifier is None else [*got, kept - sum(got)]


@given(
    widths=st.lists(st.integers(1, 30), min_size=3, max_size=7),
    sparsity=st.floats(0, 1, exclude_max=True),
    dense=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_fully_connected_networks_follow_the_formula_but_for_the_classifier(
    widths: list[int], sparsity: float, dense: float
) -> None:
    model = mlp(widths)
    sizes = [a * b for a, b in itertools.pairwise(widths)]
    kept = sum(sizes) - removed_count(sparsity, sum(sizes))
    assume(kept >= dense * sizes[-1])
    found = list(kept_per_layer(model, sparsity, spec(classifier_density=dense)).values())
    assert sum(found) == kept
    assert all(0 <= f <= n for f, n in zip(found, sizes, strict=True))
    assert all(abs(f - e) < 1 for f, e in zip(found, by_formula(sizes, kept, dense), strict=True))


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.9, 0.98])
def test_a_residual_network_keeps_its_classifier_at_three_tenths(sparsity: float) -> None:
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    found = kept_per_layer(model, sparsity, spec())
    sizes = {n: p.numel() for n, p in model.named_parameters() if n in found}
    kept = sum(sizes.values()) - removed_count(sparsity, sum(sizes.values()))
    expected = by_formula(list(sizes.values()), kept, 0.3)
    assert sum(found.values()) == kept
    assert all(abs(f - e) < 1 for f, e in zip(found.values(), expected, strict=True))
    if sparsity >= 0.2:
        last = list(found)[-1]
        assert abs(found[last] - 0.3 * sizes[last]) < 1


def test_what_a_layer_cannot_hold_goes_to_the_next() -> None:
    # 6 : 3 : 1 of 2 n weights are 1.2 n, 0.6 n, 0.2 n: the first is full and hands 0.2 n on to the second.
    model = convolutions(20, 20, 20, 20)
    assert list(kept_per_layer(model, 1 / 3, spec()).values()) == [3600, 2880, 720]


def test_nothing_is_lost_if_everything_is_kept() -> None:
    model = mlp([5, 4, 3])
    assert list(kept_per_layer(model, 0, spec()).values()) == [20, 12]


def test_a_classifier_that_takes_more_than_is_left_is_refused() -> None:
    with pytest.raises(PruneLimitError, match="classifier_density"):
        kept_per_layer(mlp([5, 4, 30]), 0.9, spec())


def test_a_density_above_one_is_refused() -> None:
    with pytest.raises(PruneLimitError, match="classifier_density"):
        spec(classifier_density=1.2)


def test_masks_keep_the_numbers_and_spread_evenly() -> None:
    model = mlp([30, 20, 10])
    kept = {"1.weight": 150, "3.weight": 70}
    draws = [random_masks(model, kept, seed) for seed in range(200)]
    for name, count in kept.items():
        assert all(int(masks[name].sum()) == count for masks in draws)
        density = count / draws[0][name].numel()
        mean = sum(masks[name] for masks in draws) / len(draws)
        assert float((mean - density).abs().max()) < 5 * (density * (1 - density) / len(draws)) ** 0.5
    assert all(torch.equal(a, b) for a, b in zip(draws[3].values(), random_masks(model, kept, 3).values(), strict=True))
