"""SparseGPT against the optimal brain surgeon weight by weight with dense inverses; exact, repeatable, better than magnitude."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import HessianOperator
from prunelimit.path_limits import directional_limit, measured_limit
from prunelimit.pruning import MagnitudePath, SemiStructuredOrder, SparseGPTOrder, SparseGPTPath, WandaOrder
from prunelimit.pruning.controls import largest_remainder, uniform_masks
from prunelimit.pruning.magnitude import prunable_parameters, removed_count
from prunelimit.pruning.sparsegpt import sparsegpt

DAMPING = 0.05


def square(output: Tensor, targets: Tensor) -> Tensor:
    return output.square().mean() + 0 * targets.sum()


def correlated(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + 0.5


def damped(inputs: Tensor) -> Tensor:
    gram = inputs.T @ inputs
    alive = gram.diagonal() > 0
    mean = gram.diagonal()[alive].mean()
    return gram + mean * torch.diag((~alive).double() + DAMPING)


def brute_force(
    weight: Tensor, inputs: Tensor, block: int, counts: list[int], kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row by row, weight by weight: invert the matrix of what is to the right, remove, update."""
    new, gram = weight.clone(), damped(inputs)
    mask = torch.ones_like(weight, dtype=torch.bool) if kept is None else kept
    inverses = [torch.linalg.inv(gram[j:, j:]) for j in range(len(gram))]
    for number, start in enumerate(range(0, len(gram), block)):
        columns = range(start, min(start + block, len(gram)))
        if kept is None:
            rises = [
                (float(new[i, j] ** 2 / inverses[j][0, 0]) if bool(inputs[:, j].any()) else 0.0, i, j)
                for i in range(len(weight))
                for j in columns
            ]
            for _, i, j in sorted(rises)[: counts[number]]:
                mask[i, j] = False
        for i in range(len(weight)):
            for j in columns:
                if not mask[i, j]:
                    new[i, j:] -= new[i, j] / inverses[j][0, 0] * inverses[j][0]
    return torch.where(mask, new, 0.0), mask


def shares(rows: int, width: int, block: int, count: int) -> list[int]:
    sizes = [rows * min(block, width - start) for start in range(0, width, block)]
    return largest_remainder([count * size / sum(sizes) for size in sizes], count)


def linear(outputs: int, inputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).double()


@pytest.mark.parametrize("block", [1, 3, 5, 128])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.61, 0.99])
def test_masks_and_weights_are_those_of_dense_inverses(block: int, sparsity: float) -> None:
    layer, inputs = linear(4, 8), correlated(40, 8)
    inputs[:, 2] = 0  # an input that says nothing
    weight = layer.weight.detach().clone()
    count = removed_count(sparsity, weight.numel())
    expected, mask = brute_force(weight, inputs, block, shares(4, 8, block, count))
    found = sparsegpt(layer, square, (inputs, torch.zeros(40)), sparsity, block=block, damping=DAMPING)
    assert torch.equal(found.masks["weight"] == 1, mask)
    torch.testing.assert_close(found.weights["weight"], expected, rtol=1e-8, atol=1e-10)
    gram = inputs.T @ inputs
    change, output = (float(((m @ gram) * m).sum()) for m in (expected - weight, weight))
    assert found.history[0]["error"] == pytest.approx(change / output, abs=1e-12)


@pytest.mark.parametrize("block", [2, 128])
def test_given_masks_are_kept_and_the_rest_is_updated(block: int) -> None:
    layer, inputs = linear(4, 8), correlated(40, 8)
    mask = SemiStructuredOrder(layer).masks(0.3)
    expected, _ = brute_force(layer.weight.detach(), inputs, 8, [], mask["weight"] != 0)
    found = sparsegpt(layer, square, (inputs, torch.zeros(40)), masks=mask, block=block, damping=DAMPING)
    assert torch.equal(found.masks["weight"], mask["weight"])
    torch.testing.assert_close(found.weights["weight"], expected, rtol=1e-8, atol=1e-10)


def test_each_layer_reads_what_the_pruned_layers_before_it_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    inputs = correlated(50, 6)
    found = sparsegpt(model, square, (inputs, torch.zeros(50)), 0.5, damping=DAMPING)
    expected, _ = brute_force(model[0].weight.detach(), inputs, 128, [15])
    torch.testing.assert_close(found.weights["0.weight"], expected, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        hidden = torch.tanh(functional.linear(inputs, expected, model[0].bias))
    expected, _ = brute_force(model[2].weight.detach(), hidden, 128, [10])
    torch.testing.assert_close(found.weights["2.weight"], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("piece", [1, 300, 2**24])
def test_groups_of_a_convolution_are_layers_of_their_own(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunelimit.pruning.layerwise.PIECE", piece)
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 2, groups=2, padding=1).double()
    images = correlated(10, 4 * 9).reshape(10, 4, 3, 3)
    found = sparsegpt(layer, square, (images, torch.zeros(10)), 0.5, damping=DAMPING)
    for group in range(2):
        read = functional.unfold(images[:, 2 * group : 2 * group + 2], 2, padding=1).transpose(1, 2).reshape(-1, 8)
        rows = slice(3 * group, 3 * group + 3)
        expected, mask = brute_force(layer.weight.detach()[rows].flatten(1), read, 128, [12])
        assert torch.equal(found.masks["weight"][rows].flatten(1) == 1, mask)
        torch.testing.assert_close(found.weights["weight"][rows].flatten(1), expected, rtol=1e-8, atol=1e-10)


def test_layers_with_transposed_weights_give_the_same() -> None:
    kind = type(
        "Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils", "forward": lambda s, x: x @ s.weight}
    )
    layer, turned, data = linear(4, 8), kind(), (correlated(40, 8), torch.zeros(40))
    turned.weight = nn.Parameter(layer.weight.detach().T.clone())
    found, expected = (sparsegpt(m, square, data, 0.4, block=3) for m in (turned, layer))
    torch.testing.assert_close(found.weights["weight"].T, expected.weights["weight"])
    masks = [SparseGPTOrder(m, square, data, block=3).masks(0.4)["weight"] for m in (turned, layer)]
    assert torch.equal(masks[0].T, masks[1])


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(10))
def test_the_output_changes_less_than_under_magnitude_pruning(seed: int, sparsity: float) -> None:
    """No theorem, greedy as it is, and with all columns in one block not true of every draw."""
    layer, inputs = linear(12, 20, seed), correlated(200, 20, seed)
    weight, data = layer.weight.detach(), (inputs, torch.zeros(200))
    masks = uniform_masks(layer, sparsity)

    def error(new: Tensor) -> float:
        return float((inputs @ (new - weight).T).square().sum())

    plain = error(weight * masks["weight"])
    assert error(sparsegpt(layer, square, data, sparsity, block=4).weights["weight"]) < plain


def test_the_update_alone_helps_masks_of_magnitude() -> None:
    ratios = []
    for seed in range(20):
        layer, inputs = linear(12, 20, seed), correlated(200, 20, seed)
        weight, masks = layer.weight.detach(), uniform_masks(layer, 0.5)
        new = sparsegpt(layer, square, (inputs, torch.zeros(200)), masks=masks).weights["weight"]
        plain = weight * masks["weight"]
        ratios.append(float((inputs @ (new - weight).T).norm() / (inputs @ (plain - weight).T).norm()))
    assert max(ratios) < 1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))


def images(count: int = 60) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 3


@given(sparsity=st.integers(0, 999).map(lambda k: k / 1000), block=st.integers(1, 30))
def test_sparsity_is_exact_and_every_layer_has_its_share(sparsity: float, block: int) -> None:
    found = sparsegpt(network(), functional.cross_entropy, images(), sparsity, block=block)
    total = sum(mask.numel() for mask in found.masks.values())
    assert sum(int((mask == 0).sum()) for mask in found.masks.values()) == removed_count(sparsity, total)
    for name, mask in found.masks.items():
        assert abs(int((mask == 0).sum()) - mask.numel() * removed_count(sparsity, total) / total) < 1
        assert bool((found.weights[name][mask == 0] == 0).all())


def test_repeatable_and_the_network_stays_as_it_was() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    once, again = (sparsegpt(model, functional.cross_entropy, images(), 0.5) for _ in range(2))
    assert all(torch.equal(once.weights[name], again.weights[name]) for name in once.weights)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned = once.applied(model)
    assert all(torch.equal(pruned.state_dict()[name], value) for name, value in once.weights.items())
    assert [entry["layer"] for entry in once.history] == ["0.weight", "3.weight", "5.weight"]


class Routed(nn.Module):
    """Each batch goes through one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) if float(x[0, 0]) < 0 else self.right(x)


def test_layers_that_only_some_batches_reach() -> None:
    inputs = correlated(60, 6)
    inputs[:30, 0], inputs[30:, 0] = 1.0, -1.0
    found = sparsegpt(Routed(), square, [(part, torch.zeros(30)) for part in inputs.split(30)], 0.5, damping=DAMPING)
    expected, _ = brute_force(Routed().left.weight.detach(), inputs[30:], 128, [12])
    torch.testing.assert_close(found.weights["left.weight"], expected, rtol=1e-8, atol=1e-10)
    assert [entry["layer"] for entry in found.history] == ["right.weight", "left.weight"]


def test_weights_are_put_back_when_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    gram = "prunelimit.pruning.layerwise.Calibration.gram"
    calls = iter([torch.eye(18)[None].double()])
    monkeypatch.setattr(gram, lambda *_: next(calls))
    with pytest.raises(StopIteration):
        sparsegpt(model, functional.cross_entropy, images(), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_correlations_the_criterion_is_wandas() -> None:
    layer = linear(5, 8)
    inputs = torch.eye(8, dtype=torch.float64) * torch.arange(1, 9)
    data = inputs, torch.zeros(8)
    order = SparseGPTOrder(layer, square, data, damping=1e-9)
    wanda = WandaOrder(layer, square, data, compare="layer")
    torch.testing.assert_close(order.scores["weight"], wanda.scores["weight"], rtol=1e-6, atol=1e-9)
    assert torch.equal(order.masks(0.4)["weight"], wanda.masks(0.4)["weight"])


@given(low=st.integers(0, 999), high=st.integers(0, 999), block=st.integers(1, 30))
def test_masks_of_the_criterion_are_exact_and_nested(low: int, high: int, block: int) -> None:
    order = SparseGPTOrder(network(), functional.cross_entropy, images(), block=block)
    low, high = sorted((low, high))
    few, many = (order.masks(s / 1000) for s in (low, high))
    for masks, s in ((few, low), (many, high)):
        assert sum(int((mask == 0).sum()) for mask in masks.values()) == removed_count(s / 1000, order.total)
    assert all(bool((few[name] >= many[name]).all()) for name in few)


def test_the_criterion_is_the_rise_with_the_best_weights_to_the_right() -> None:
    layer, inputs = linear(3, 6), correlated(30, 6)
    found = SparseGPTOrder(layer, square, (inputs, torch.zeros(30)), damping=DAMPING).scores["weight"]
    gram, weight = damped(inputs), layer.weight.detach()
    for i, j in torch.ones(3, 6).nonzero().tolist():
        # Only w_ij and the weights to its right may move: minimise the change of the output with w_ij gone.
        others = torch.arange(j + 1, 6)
        left = gram[j, j] - (gram[j, others] @ torch.linalg.solve(gram[others][:, others], gram[others, j]))
        assert float(found[i, j]) == pytest.approx(float(weight[i, j].abs() * left.sqrt()), rel=1e-8)


@pytest.mark.parametrize("method", ["measured", "directional", "formula", "refit"])
def test_every_method_takes_the_masks(method: str) -> None:
    model = network()
    order = SparseGPTOrder(model, functional.cross_entropy, images())
    options: dict[str, Any] = {"epsilon": 0.01, "method": method, "steps": 6, "tolerance": 0.01}
    limit = predict_limit(model, functional.cross_entropy, images(), masks=order.masks, **options)
    assert limit.total == order.total
    assert 0 < limit.sparsity < 1


@pytest.mark.parametrize("given_masks", [False, True])
def test_the_path_is_measured_with_the_new_weights(given_masks: bool) -> None:
    model, data = network(), images()
    adapted = adapt(model, functional.cross_entropy, data)
    masks = MagnitudePath(model).masks if given_masks else None
    path = SparseGPTPath(model, functional.cross_entropy, data, masks=masks, points=4)
    limit = measured_limit(*_parts(adapted), path, prunable_parameters(model), 0.005, tolerance=0.01)
    for row in limit.curve.itertuples():
        goal = {"masks": masks(row.sparsity)} if masks else {"sparsity": row.sparsity}
        pruned = sparsegpt(model, functional.cross_entropy, data, **goal).applied(model)
        rise = functional.cross_entropy(pruned(data[0]), data[1]) - functional.cross_entropy(model(data[0]), data[1])
        assert row.rise == pytest.approx(rise.item(), abs=1e-5)
    predicted = directional_limit(HessianOperator(*_parts(adapted)), path, 0.005, tolerance=0.01)
    assert 0 < predicted.sparsity < 1
    assert path.distance[-1] == pytest.approx(float(MagnitudePath(model).distance[-1]))


def test_a_cut_is_seen_without_what_stays_in_its_subspace() -> None:
    # Once wrong: the theorem about a perpendicular subspace was given a step that also moves the kept weights.
    model, data = network(), images()
    path = SparseGPTPath(model, functional.cross_entropy, data, points=4)
    gone = torch.cat([1 - mask.reshape(-1) for mask in path.masks(0.6).values()])
    step, part = path.displacement(0.6), path.perpendicular(0.6)
    torch.testing.assert_close(part, step * gone)
    assert part.norm() < 0.99 * step.norm()
    limit = predict_limit(model, functional.cross_entropy, data, epsilon=0.01, method="cut", masks=path)
    for row in limit.curve.itertuples():
        assert row.radius == pytest.approx(float(path.perpendicular(row.sparsity).norm()), rel=1e-5)


def _parts(adapted: Any) -> tuple[Any, Any, Any]:
    return adapted.model, adapted.loss_fn, adapted.batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^sparsity and masks: give one"),
        ({"sparsity": 0.5, "masks": {}}, r"^sparsity and masks: give one"),
        ({"sparsity": 1.0}, r"^sparsity=1.0"),
        ({"sparsity": 0.5, "block": 0}, r"^block=0"),
        ({"sparsity": 0.5, "damping": 0.0}, r"^damping=0.0"),
        ({"sparsity": 0.5, "damping": 1e-30}, r"^damping=1e-30 is too small for the inputs of '.*': raise it"),
        ({"masks": {"0.weight": torch.ones(3)}}, r"^masks has no mask of shape \(5, 2, 3, 3\) for '0.weight'"),
        ({"sparsity": 0.5, "prunable": ["0.bias"]}, r"^prunable='0.bias' belongs to no linear"),
    ],
)
def test_what_cannot_be_pruned(options: dict[str, Any], message: str) -> None:
    inputs, targets = images()
    with pytest.raises(PruneLimitError, match=message):
        sparsegpt(network(), functional.cross_entropy, (inputs[:3], targets[:3]), **options)
