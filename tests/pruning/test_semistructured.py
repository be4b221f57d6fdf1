"""SemiStructuredOrder: groups against brute force, the pattern when all are done, exact to one group, in every method."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, apply_masks, predict_limit
from prunelimit.pruning import SemiStructuredOrder, WandaOrder, is_semistructured
from prunelimit.pruning.magnitude import removed_count

PATTERNS = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def network(*, inputs: int = 20) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(5, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 3))


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """The weights with their inputs last; a place of a convolution's kernel is a row of its own."""
    return {name: p.detach().movedim(1, -1).flatten(0, -2) for name, p in model.named_parameters() if p.ndim > 1}


def rows_of(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.movedim(1, -1).flatten(0, -2) for name, mask in masks.items()}


def groups_of(scores: dict[str, Tensor], n: int, m: int) -> list[tuple[str, int, list[int], float]]:
    """Every group that loses weights: layer, row, the columns that leave, and their mean square."""
    found = []
    for name, matrix in scores.items():
        for row, start in itertools.product(range(len(matrix)), range(0, matrix.shape[1], m)):
            columns = sorted(range(start, min(start + m, matrix.shape[1])), key=lambda c: float(matrix[row, c]))
            leaving = columns[: max(0, len(columns) - n)]
            if leaving:
                cost = sum(float(matrix[row, c]) ** 2 for c in leaving) / len(leaving)
                found.append((name, row, leaving, cost))
    return found


@given(pattern=PATTERNS, sparsity=st.integers(0, 999).map(lambda k: k / 1000))
def test_the_cheapest_groups_turn_first(pattern: tuple[int, int], sparsity: float) -> None:
    model, (n, m) = network(), pattern
    scores = {name: matrix.abs().double() for name, matrix in matrices(model).items()}
    groups = sorted(groups_of(scores, n, m), key=lambda group: group[3])
    order = SemiStructuredOrder(model, n, m)
    assert order.groups == len(groups)
    assert order.complete == pytest.approx(sum(len(g[2]) for g in groups) / order.total)
    masks = {name: torch.ones_like(matrix) for name, matrix in scores.items()}
    removed, turned = 0, 0
    for name, row, leaving, _ in groups:
        if removed >= sparsity * order.total - 1e-6:
            break
        masks[name][row, leaving] = 0
        removed, turned = removed + len(leaving), turned + 1
    found = rows_of(order.masks(sparsity))
    if sparsity <= order.complete:
        assert all(torch.equal(found[name].double(), mask) for name, mask in masks.items())
        assert order.share(sparsity) == pytest.approx(turned / order.groups)
    else:
        assert sum(int((mask == 0).sum()) for mask in found.values()) == removed_count(sparsity, order.total)
        assert all(bool((found[name] <= mask).all()) for name, mask in masks.items())
        assert order.share(sparsity) == 1


@given(pattern=PATTERNS, low=st.integers(0, 999), high=st.integers(0, 999))
def test_masks_are_nested_and_exact_to_one_group(pattern: tuple[int, int], low: int, high: int) -> None:
    order = SemiStructuredOrder(network(), *pattern)
    few, many = (order.masks(s / 1000) for s in sorted((low, high)))
    assert all(bool((few[name] >= many[name]).all()) for name in few)
    excess = sum(int((mask == 0).sum()) for mask in many.values()) - max(low, high) / 1000 * order.total
    assert -1e-6 <= excess < pattern[1] - pattern[0]


@pytest.mark.parametrize("compare", ["global", "layer"])
def test_two_of_four_when_all_groups_have_turned(compare: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    order = SemiStructuredOrder(model, compare=compare)
    assert order.complete == 0.5
    assert order.groups * 4 == order.total
    for sparsity in (0.5, 0.6, 0.9):
        assert all(is_semistructured(mask) for mask in order.masks(sparsity).values())
    assert not all(is_semistructured(mask) for mask in order.masks(0.49).values())
    assert all(is_semistructured(p) for p in apply_masks(model, order.masks(0.5)).parameters() if p.ndim > 1)
    half = order.masks(0.5)
    assert all(torch.equal(mask.sum(1), torch.full_like(mask.sum(1), mask.shape[1] / 2)) for mask in half.values())
    assert order.share(0.25) == pytest.approx(0.5, abs=1 / order.groups)


def test_layers_turn_together_if_asked_to() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(40, 4))
    with torch.no_grad():
        model[0].weight.mul_(100)
    apart, together = (SemiStructuredOrder(model, compare=compare).masks(0.2) for compare in ("global", "layer"))
    assert bool(apart["0.weight"].all())
    for mask in together.values():
        assert float((mask == 0).float().mean()) == pytest.approx(0.2, abs=4 / mask.numel())


def test_scores_decide_what_a_group_keeps() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4]]))
    data = torch.tensor([[100.0, 0.1, 10.0, 1.0]]), torch.zeros(1, 2)
    scores = WandaOrder(model, functional.mse_loss, data).scores
    masks = SemiStructuredOrder(model, scores=scores).masks(0.5)
    assert masks["weight"].tolist() == [[1, 0, 1, 0]] * 2
    assert SemiStructuredOrder(model).masks(0.5)["weight"].tolist() == [[0, 0, 1, 1]] * 2


def test_layers_with_transposed_weights_have_their_inputs_first() -> None:
    kind = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    layer, plain = kind(), nn.Linear(8, 3, bias=False)
    layer.weight = nn.Parameter(plain.weight.detach().T.clone())
    for sparsity in (0.2, 0.5):
        mask = SemiStructuredOrder(layer).masks(sparsity)["weight"]
        assert torch.equal(mask.T, SemiStructuredOrder(plain).masks(sparsity)["weight"])
    assert is_semistructured(mask, axis=0)


@given(pattern=PATTERNS, width=st.integers(1, 9), seed=st.integers(0, 20))
def test_the_check_counts_every_group(pattern: tuple[int, int], width: int, seed: int) -> None:
    (n, m), generator = pattern, torch.Generator().manual_seed(seed)
    mask = (torch.rand(2, width, 3, generator=generator) < 0.6).float() * -2.5
    groups = [mask[i, start : start + m, k] for i in range(2) for k in range(3) for start in range(0, width, m)]
    assert is_semistructured(mask, n, m) == all(int((group != 0).sum()) <= n for group in groups)
    assert is_semistructured(mask.movedim(1, 0), n, m, axis=0) == is_semistructured(mask, n, m)


@pytest.mark.parametrize("method", ["measured", "directional", "formula", "refit"])
def test_every_method_takes_the_masks(method: str) -> None:
    model = network()
    data = torch.randn(30, 5, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    before = copy.deepcopy(model.state_dict())
    order = SemiStructuredOrder(model)
    options: dict[str, Any] = {"epsilon": 0.002, "method": method, "steps": 6, "tolerance": 0.01}
    limit = predict_limit(model, functional.cross_entropy, data, masks=order.masks, **options)
    assert limit.total == order.total
    assert 0 < order.share(limit.sparsity) <= 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4}, r"^n=4 and m=4"),
        ({"n": 0}, r"^n=0 and m=4"),
        ({"compare": "output"}, r"^compare='output' is unknown"),
        (
            {"scores": {"0.weight": torch.ones(5, 5, 3, 3)}, "prunable": ["0.weight", "3.weight"]},
            r"^scores has none for",
        ),
        ({"scores": {"0.weight": torch.ones(5, 5)}}, r"^scores\['0.weight'\] has shape \(5, 5\)"),
        ({"scores": {"0.weight": -torch.ones(5, 5, 3, 3)}}, r"^scores\['0.weight'\] has entries"),
        ({"prunable": ["0.bias"]}, r"^prunable='0.bias' is no matrix"),
        ({"n": 20, "m": 30}, r"^n=20 and m=30: no layer reads more than 20 inputs"),
    ],
)
def test_patterns_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        SemiStructuredOrder(network(), **options)


def test_masks_without_such_a_dimension_are_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^axis=1 is no dimension of a mask of shape \(4,\)"):
        is_semistructured(torch.ones(4))
