"""layer_limits: each layer alone against dense truth, and the split of a common cut."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import LayerLimits, PruneLimitError, layer_limits, magnitude_masks
from prunelimit.layers import left_out, left_out_line
from prunelimit.pruning import UnitOrder

EPSILON = 0.02
SIZES = {"1.weight": 64 * 32, "3.weight": 32 * 24, "5.weight": 24 * 10}
Data = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def expansion(
    digits_hessian: Tensor, digits_loss: Callable[[Tensor], Tensor], digits_weights: Tensor
) -> Callable[[Tensor], Tensor]:
    """What each coordinate of a step adds to g'd + d'Hd / 2, by the dense Hessian."""
    slope = torch.func.grad(digits_loss)(digits_weights)
    return lambda step: step * (slope + digits_hessian @ step / 2)


def place(layer: str) -> slice:
    """Where a layer's weights lie among all."""
    before = list(SIZES).index(layer)
    start = sum(list(SIZES.values())[:before])
    return slice(start, start + SIZES[layer])


def alone(weights: Tensor, layers: list[str], sparsity: float) -> Tensor:
    """The step of a magnitude cut through some layers, by sorting them by hand."""
    chosen = torch.cat([torch.arange(place(name).start, place(name).stop) for name in layers])
    order = chosen[weights[chosen].abs().argsort(stable=True)]
    removed = order[: -int(-sparsity * len(chosen) // 1)]
    step = torch.zeros_like(weights)
    step[removed] = -weights[removed]
    return step


def check_brackets(
    found: LayerLimits, groups: dict[str, list[str]], weights: Tensor, expansion: Callable[[Tensor], Tensor]
) -> None:
    for row in found.table.itertuples():
        low, high = (float(expansion(alone(weights, groups[row.layer], s)).sum()) for s in (row.low, row.high - 1e-9))
        assert low <= EPSILON * (1 + 1e-3)
        assert high > EPSILON * (1 - 1e-3) or row.high == 1
        assert row.high - row.low <= 0.001


def test_each_layer_alone_against_the_dense_hessian(
    digits_model: nn.Module, digits_data: Data, digits_weights: Tensor, expansion: Callable[[Tensor], Tensor]
) -> None:
    found = layer_limits(digits_model, functional.cross_entropy, digits_data, epsilon=EPSILON)
    assert dict(zip(found.table.layer, found.table.weights, strict=True)) == SIZES
    assert found.table.share.sum() == pytest.approx(1)
    check_brackets(found, {name: [name] for name in SIZES}, digits_weights, expansion)
    assert found.table.sparsity.nunique() == 3


def test_groups_are_cut_together(
    digits_model: nn.Module, digits_data: Data, digits_weights: Tensor, expansion: Callable[[Tensor], Tensor]
) -> None:
    groups = {"ends": ["1.weight", "5.weight"], "middle": ["3.weight"]}
    found = layer_limits(digits_model, functional.cross_entropy, digits_data, epsilon=EPSILON, groups=groups)
    check_brackets(found, groups, digits_weights, expansion)
    assert list(found.table.weights) == [SIZES["1.weight"] + SIZES["5.weight"], SIZES["3.weight"]]


def test_measured_prunes_one_layer_and_keeps_the_others(
    digits_model: nn.Module, digits_data: Data, digits_loss: Callable[[Tensor], Tensor], digits_weights: Tensor
) -> None:
    found = layer_limits(digits_model, functional.cross_entropy, digits_data, epsilon=EPSILON, method="measured")
    dense = float(digits_loss(digits_weights))
    for row in found.table.itertuples():
        rises = [
            float(digits_loss(digits_weights + alone(digits_weights, [row.layer], s))) - dense
            for s in (row.low, row.high - 1e-9)
        ]
        assert rises[0] <= EPSILON + 1e-5
        assert rises[1] > EPSILON - 1e-5
    assert found.cost["products"] == 0


def test_parts_of_a_common_cut_are_those_of_the_dense_hessian(
    digits_model: nn.Module, digits_data: Data, digits_weights: Tensor, expansion: Callable[[Tensor], Tensor]
) -> None:
    found = layer_limits(digits_model, functional.cross_entropy, digits_data, epsilon=EPSILON, common=0.8)
    masks = magnitude_masks(digits_model, 0.8)
    kept = torch.cat([masks[name].reshape(-1) for name in SIZES]).double()
    parts = expansion(-digits_weights * (1 - kept))
    for row in found.table.itertuples():
        assert row.rise == pytest.approx(float(parts[place(row.layer)].sum()), rel=1e-3, abs=1e-6)
        assert row.removed == pytest.approx(float(1 - masks[row.layer].mean()))
    assert found.table.rise.sum() == pytest.approx(float(parts.sum()), rel=1e-3)


def test_it_speaks_and_becomes_json(digits_model: nn.Module, digits_data: Data) -> None:
    found = layer_limits(digits_model, functional.cross_entropy, digits_data, method="measured", common=0.5)
    assert [row["layer"] for row in json.loads(json.dumps(found.to_dict()))["layers"]] == list(SIZES)
    for text in ("3.weight", "768 weights", "25.1% of all", "a cut of 50.0%"):
        assert text in repr(found)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "^groups must"),
        ({"a": []}, "^groups must"),
        ({"a": ["1.weight"], "b": ["1.weight"]}, "^groups must .* twice"),
        ({"a": ["1.wait"]}, "^prunable='1.wait' is unknown"),
    ],
)
def test_groups_that_cannot_be_used(
    digits_model: nn.Module, digits_data: Data, groups: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(PruneLimitError, match=message):
        layer_limits(digits_model, functional.cross_entropy, digits_data, groups=groups)


# Whole units, and what does not count


def test_units_of_each_layer_leave_together(digits_model: nn.Module, digits_data: Data) -> None:
    numbers = {name: torch.arange(2)[None, :].repeat(1, size) for name, size in (("1.weight", 32), ("3.weight", 16))}
    found = layer_limits(
        digits_model,
        functional.cross_entropy,
        digits_data,
        epsilon=1.0,
        method="measured",
        prunable=list(numbers),
        units=numbers,
    )
    # Every second column of a layer at once: nothing below a half of it can leave alone.
    assert list(found.table.layer) == list(numbers)
    for row in found.table.itertuples():
        order = UnitOrder(digits_model, {row.layer: numbers[row.layer]})
        assert order.sizes.tolist() == [SIZES[row.layer] // 2] * 2
        assert row.low in (0.0, 0.5) or row.high == 1


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place, self.embed = nn.Parameter(torch.ones(3, 4)), nn.Embedding(5, 4)
        self.mix, self.norm = nn.MultiheadAttention(4, 2), nn.LayerNorm(4)
        self.frozen, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.frozen.weight.requires_grad_(False)


def test_left_out_lists_every_other_parameter_and_why() -> None:
    model = Mixed()
    table = left_out(model).set_index("parameter")
    counted = {"mix.out_proj.weight", "head.weight"}
    assert set(table.index) | counted == {name for name, _ in model.named_parameters()}
    assert not set(table.index) & counted
    assert table.loc["place"].tolist() == [12, "Mixed", "in no linear or convolution layer"]
    assert table.loc["embed.weight"].tolist() == [20, "Embedding", "in no linear or convolution layer"]
    assert table.loc["mix.in_proj_weight"].tolist() == [48, "MultiheadAttention", "in no linear or convolution layer"]
    assert table.loc["frozen.weight", "why"] == "frozen"
    assert table.loc["norm.weight", "why"] == table.loc["head.bias", "why"] == "biases and normalisation"
    chosen = left_out(model, ["mix.in_proj_weight"]).set_index("parameter")
    assert chosen.loc["head.weight", "why"] == "not in prunable"


def test_left_out_line_is_one_line_that_adds_up() -> None:
    model = Mixed()
    table = left_out(model)
    line = left_out_line(table, 24, most=2)
    total = sum(p.numel() for p in model.parameters())
    assert line.startswith(f"Not counted as prunable: {total - 24:,} of {total:,} parameters; ")
    assert "mix.in_proj_weight (MultiheadAttention, 48), embed.weight (Embedding, 20), 1 more" in line
    assert "prunable=" in line
    assert "\n" not in line
    assert left_out_line(table[:0], 24) == ""
