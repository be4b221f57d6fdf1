"""UnitOrder: units against brute force, exact to one unit, in every method that takes masks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, predict_limit
from prunelimit.pruning import UnitOrder

HEADS, SIZE = 3, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))


class Attention(nn.Module):
    """Self-attention in plain pieces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = HEADS * SIZE
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(mixed).mean(1))


def head_numbers() -> dict[str, Tensor]:
    rows = torch.arange(HEADS).repeat_interleave(SIZE)
    return {f"{name}.weight": rows[:, None] for name in "qkv"} | {"out.weight": rows[None, :]}


def brute_force(units: list[list[tuple[str, Tensor]]], total: int, sparsity: float) -> tuple[set[int], int]:
    """Remove one unit after the other until enough weights are gone."""
    means = [float(torch.cat([part.flatten() for _, part in unit]).double().square().mean()) for unit in units]
    gone: set[int] = set()
    removed = 0
    for number in sorted(range(len(units)), key=means.__getitem__):
        if removed >= sparsity * total - 1e-9:
            break
        gone.add(number)
        removed += sum(part.numel() for _, part in units[number])
    return gone, removed


@pytest.mark.parametrize("axis", [0, 1])
@given(sparsity=st.integers(0, 999).map(lambda k: k / 1000))
def test_units_leave_by_their_mean_square(axis: int, sparsity: float) -> None:
    model = network()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    units = [[(name, part)] for name, w in weights.items() for part in w.unbind(axis)]
    total = sum(w.numel() for w in weights.values())
    gone, removed = brute_force(units, total, sparsity)
    masks = UnitOrder(model, ("channel", "input")[axis]).masks(sparsity)
    found = [part for name in weights for part in masks[name].unbind(axis)]
    assert {number for number, part in enumerate(found) if not bool(part.any())} == gone
    assert all(bool(part.all()) or not bool(part.any()) for part in found)
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == removed
    last = max((part.numel() for number in gone for _, part in units[number]), default=0)
    assert sparsity * total - 1e-6 <= removed < sparsity * total + last + 1e-6


@pytest.mark.parametrize("unit", ["channel", "input"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_unit_is_one_output_or_one_input_of_a_convolution(kind: type[nn.Module], groups: int, unit: str) -> None:
    # Once wrong: outputs and inputs changed places where the layer is transposed, and inputs of all groups were one unit.
    layer = kind(4, 8, 2, groups=groups, bias=False)
    order = UnitOrder(layer, unit, ["weight"])
    assert len(order.sizes) == (8 if unit == "channel" else 4)
    with torch.no_grad():
        layer.weight.mul_(1 - order.masks(1e-9)["weight"])  # the first unit alone is left
    inputs = torch.randn(1, 4, 3, 3).requires_grad_()
    outputs = layer(inputs)
    outputs.square().sum().backward()
    seen = outputs if unit == "channel" else inputs.grad
    assert seen is not None
    assert int(seen.flatten(2).any(2).sum()) == 1


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.34, 0.99])
def test_heads_leave_whole_with_all_their_weights(sparsity: float) -> None:
    model, numbers = Attention(), head_numbers()
    named = dict(model.named_parameters())
    units = []
    for head in range(HEADS):
        places = slice(head * SIZE, (head + 1) * SIZE)
        rows = [(f"{name}.weight", named[f"{name}.weight"].detach()[places]) for name in "qkv"]
        units.append([*rows, ("out.weight", named["out.weight"].detach()[:, places])])
    total = 4 * (HEADS * SIZE) ** 2
    gone, removed = brute_force(units, total, sparsity)
    masks = UnitOrder(model, numbers).masks(sparsity)
    for head in range(HEADS):
        places = slice(head * SIZE, (head + 1) * SIZE)
        parts = [masks[f"{name}.weight"][places] for name in "qkv"] + [masks["out.weight"][:, places]]
        assert {float(part.mean()) for part in parts} == {0.0 if head in gone else 1.0}
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == removed


def test_numbers_may_have_gaps() -> None:
    model = nn.Linear(3, 4)
    numbers = torch.tensor([[7], [-2], [1000], [7]])
    found = UnitOrder(model, {"weight": numbers}).masks(0.2)["weight"]
    expected = UnitOrder(model, {"weight": torch.tensor([[1], [0], [2], [1]])}).masks(0.2)["weight"]
    assert torch.equal(found, expected)
    assert torch.equal(found[0], found[3])


def test_equal_units_leave_in_order() -> None:
    model = nn.Linear(2, 4)
    nn.init.ones_(model.weight)
    assert UnitOrder(model).masks(0.5)["weight"].sum(1).tolist() == [0, 0, 2, 2]


def test_layers_with_transposed_weights_know_their_outputs() -> None:
    layer = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})()
    layer.weight = nn.Parameter(torch.tensor([[1.0, 5.0], [1.0, 5.0], [9.0, 5.0]]))  # (in, out)
    assert UnitOrder(nn.Sequential(layer)).masks(0.1)["0.weight"].sum(0).tolist() == [3, 0]


def test_measured_limit_is_the_last_unit_that_can_go() -> None:
    model, inputs = network(), torch.randn(60, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model[-1].weight.mul_(20)  # sure of its classes, so that pruning costs something
    data = inputs, model(inputs).argmax(1)

    def loss(masks: dict[str, Tensor]) -> float:
        values = {name: p * masks.get(name, 1) for name, p in model.named_parameters()}
        with torch.no_grad():
            return float(functional.cross_entropy(torch.func.functional_call(model, values, (inputs,)), data[1]))

    order = UnitOrder(model)
    found = predict_limit(
        model, functional.cross_entropy, data, epsilon=0.01, method="measured", masks=order.masks, tolerance=1e-4
    )
    reached = [count / order.total for count in [0, *order.sizes.cumsum(0).tolist()]]
    rises = [loss(order.masks(s)) - loss(order.masks(0.0)) for s in [*reached[:-1], 0.9999]]
    ends = [s for s, (now, after) in zip(reached, itertools.pairwise(rises), strict=False) if now <= 0.01 < after]
    assert min(abs(found.sparsity - end) for end in ends) < 2e-4


@pytest.mark.parametrize("method", ["directional", "formula", "refit"])
def test_every_method_takes_units(method: str) -> None:
    model, numbers = Attention(), head_numbers()
    data = torch.randn(30, 5, HEADS * SIZE, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    options: dict[str, Any] = {
        "epsilon": 0.002,
        "method": method,
        "steps": 6,
        "prunable": list(numbers),
        "tolerance": 0.01,
    }
    limit = predict_limit(model, functional.cross_entropy, data, masks=UnitOrder(model, numbers).masks, **options)
    assert limit.total == 4 * (HEADS * SIZE) ** 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "chanel"}, r"^unit='chanel' is unknown.*Did you mean 'channel'"),
        ({"unit": {"0.weight": torch.zeros(3, 1, 1, 1).long()}}, r"^unit\['0.weight'\] has shape .* broadcast"),
        ({"unit": {"0.weight": torch.zeros(5, 1, 1, 1)}}, r"^unit\['0.weight'\] has type torch.float32"),
        ({"unit": {"0.weight": torch.zeros(1).long()}, "prunable": ["0.weight", "3.weight"]}, r"^unit and prunable"),
        ({"prunable": ["0.bias"]}, r"^prunable='0.bias' is no matrix"),
    ],
)
def test_units_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        UnitOrder(network(), **options)


def test_a_sparsity_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^sparsity=1.0"):
        UnitOrder(network()).masks(1.0)
