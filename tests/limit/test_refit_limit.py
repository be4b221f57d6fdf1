"""refit_limit: against the dense Schur complement, the real loss, and what the search promises."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, magnitude_masks, predict_limit
from prunelimit.curvature import HessianOperator
from prunelimit.limit import PruningLimit
from prunelimit.pruning import MagnitudePath
from prunelimit.pruning.paths import MaskPath
from prunelimit.refit import refit_limit

Data = tuple[Tensor, Tensor]


@pytest.fixture
def quadratic() -> tuple[nn.Module, Data]:
    """Linear regression away from its optimum: the loss is its own quadratic, with a positive definite Hessian."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 60, generator=generator, dtype=torch.float64)
    inputs[:, 1:] += 0.5 * inputs[:, :-1]  # without correlation the kept weights could not help
    model = nn.Linear(60, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 60, generator=generator, dtype=torch.float64))
        targets = inputs @ (model.weight + 0.02 * torch.randn(1, 60, generator=generator, dtype=torch.float64)).T
    return model, (inputs, targets)


def dense_refit(model: nn.Module, data: Data, sparsity: float, control: str) -> tuple[float, float, float]:
    """Rise by the Schur complement, the norm of the refitting step, and R."""
    inputs, targets = data
    weights = model.weight.detach()[0]
    hessian = 2 * inputs.T @ inputs / len(inputs)
    gradient = 2 * inputs.T @ (inputs @ weights - targets[:, 0]) / len(inputs)
    order = weights.abs().argsort(stable=True)
    p, k = order.tensor_split([int(np.ceil(sparsity * len(order) - 1e-9))])
    pruned, inverse = -weights[p], torch.linalg.inv(hessian[k][:, k])
    cross = hessian[k][:, p]
    schur = hessian[p][:, p] - cross.T @ inverse @ cross
    rise = gradient[p] @ pruned + pruned @ schur @ pruned / 2 - gradient[k] @ inverse @ cross @ pruned
    pull = cross @ pruned
    if control != "stationary":
        rise = rise - gradient[k] @ inverse @ gradient[k] / 2
        pull = pull + gradient[k]
    if control == "step":
        rise = rise + gradient @ torch.linalg.solve(hessian, gradient) / 2
    return float(rise), float((inverse @ pull).norm()), float(pruned.norm())


def find(model: nn.Module, data: Data, epsilon: float, **options: object) -> PruningLimit:
    loss = functional.mse_loss if data[1].is_floating_point() else functional.cross_entropy
    options = {"tolerance": 0.01} | options
    return refit_limit(HessianOperator(model, loss, data), MagnitudePath(model), epsilon, **options)


# Against dense truth


@pytest.mark.parametrize("control", ["stationary", "step", "none"])
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 5.0])
def test_prediction_is_the_schur_complement_where_no_radius_acts(
    quadratic: tuple[nn.Module, Data], control: str, epsilon: float
) -> None:
    model, data = quadratic
    limit = find(model, data, epsilon, rounds=0, control=control, accuracy=1e-9)
    checked = 0
    for sparsity, rise in zip(limit.curve.sparsity, limit.curve.rise, strict=True):
        expected, norm, radius = dense_refit(model, data, sparsity, control)
        if norm < radius:
            assert rise == pytest.approx(expected, rel=1e-4)
            checked += 1
    assert checked >= 3
    assert 0 < limit.sparsity < 1


def test_prediction_is_reached_on_a_quadratic_loss(quadratic: tuple[nn.Module, Data]) -> None:
    for control in ("stationary", "none"):
        limit = find(*quadratic, 1.0, rounds=0, control=control)
        np.testing.assert_allclose(limit.curve.rise, limit.curve.reached, rtol=1e-6)


def test_renewed_steps_end_at_the_schur_complement(quadratic: tuple[nn.Module, Data]) -> None:
    model, data = quadratic
    limit = find(model, data, 1.0, control="none", accuracy=1e-9, rounds=30)
    failed = limit.curve[limit.curve.rise > 1.0]
    assert len(failed) >= 2
    for sparsity, rise in zip(failed.sparsity, failed.rise, strict=True):
        assert rise == pytest.approx(dense_refit(model, data, sparsity, "none")[0], rel=1e-4)


def test_prediction_on_a_network_is_bracketed_by_no_and_by_the_best_step(
    digits_model: nn.Module, digits_data: Data, digits_hessian: Tensor, digits_weights: Tensor
) -> None:
    limit = find(digits_model, digits_data, 0.05, rounds=0, control="none")
    directional = predict_limit(
        digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="directional", tolerance=0.01
    )
    both = limit.curve.merge(directional.curve, on="sparsity")
    assert (both.rise_x <= both.rise_y).all()
    assert limit.sparsity > directional.sparsity


# What the search promises


@pytest.mark.parametrize("control", ["stationary", "none"])
def test_interval_brackets_epsilon_and_every_rise_is_real(
    digits_model: nn.Module, digits_data: Data, control: str
) -> None:
    limit = find(digits_model, digits_data, 0.05, control=control)
    rises = dict(zip(limit.curve.sparsity, limit.curve.rise, strict=True))
    low, high = limit.interval
    assert rises[low] <= 0.05 < rises[high]
    assert high - low <= 0.01
    assert limit.sparsity == low
    assert list(limit.curve.columns) == ["sparsity", "radius", "rise", "reached"]
    np.testing.assert_array_equal(limit.curve.rise, limit.curve.reached)


def test_limit_is_at_least_that_of_one_shot_pruning(digits_model: nn.Module, digits_data: Data) -> None:
    for epsilon in (0.005, 0.05):
        options = {"epsilon": epsilon, "tolerance": 0.01}
        measured, refit = (
            predict_limit(digits_model, functional.cross_entropy, digits_data, method=method, **options)
            for method in ("measured", "refit")
        )
        assert refit.sparsity > measured.sparsity


def test_rise_is_reached_with_the_mask_kept(digits_model: nn.Module, digits_data: Data) -> None:
    # An independent witness: the weights at every evaluation, re-evaluated here.
    trained, seen = copy.deepcopy(digits_model), []

    def watched(output: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(output, targets)
        weights = torch.cat([p.detach().reshape(-1) for n, p in digits_model.named_parameters() if "weight" in n])
        seen.append((float(loss.detach()), weights))
        return loss

    operator = HessianOperator(digits_model, watched, [digits_data])
    limit = refit_limit(operator, MagnitudePath(digits_model), 0.05, tolerance=0.1)
    with torch.no_grad():
        dense = float(functional.cross_entropy(trained(digits_data[0]), digits_data[1]))
    for sparsity, reached in zip(limit.curve.sparsity, limit.curve.reached, strict=True):
        keep = torch.cat([m.reshape(-1) for m in magnitude_masks(trained, sparsity).values()])
        losses = [loss for loss, weights in seen if not bool(weights[keep == 0].any())]
        assert min(abs(loss - dense - reached) for loss in losses) < 1e-6


def test_weights_that_were_zero_stay_removed(digits_model: nn.Module, digits_data: Data) -> None:
    # Their step is zero, which must not be taken for a weight that is kept.
    with torch.no_grad():
        for parameter in digits_model.parameters():
            parameter[parameter.abs() < 0.01] = 0
    zeros = []

    def watched(output: Tensor, targets: Tensor) -> Tensor:
        zeros.append(sum(int((p == 0).sum()) for n, p in digits_model.named_parameters() if "weight" in n))
        return functional.cross_entropy(output, targets)

    operator = HessianOperator(digits_model, watched, digits_data)
    path = MagnitudePath(digits_model)
    share = float((path.distance == 0).mean())
    limit = refit_limit(operator, path, 0.01, tolerance=0.3)
    assert limit.curve.sparsity.min() <= share
    assert min(zeros) >= limit.curve.sparsity.min() * path.total


def test_more_rounds_never_find_less(digits_model: nn.Module, digits_data: Data) -> None:
    curves = [find(digits_model, digits_data, 0.005, rounds=rounds).curve for rounds in (1, 3, 6)]
    for few, many in itertools.pairwise(curves):
        both = few.merge(many, on="sparsity")
        assert (both.rise_y <= both.rise_x + 1e-6).all()


def test_dense_gain_is_subtracted_by_the_control(digits_model: nn.Module, digits_data: Data) -> None:
    # Trained with a penalty, the dense network gains by dropping it: comparing with the start flatters pruning.
    step, none = (find(digits_model, digits_data, 0.05, control=control, rounds=2) for control in ("step", "none"))
    assert step.sparsity < none.sparsity
    assert (step.curve.rise > step.curve.reached).all()


def test_stationary_control_asks_nothing_of_the_dense_network(quadratic: tuple[nn.Module, Data]) -> None:
    # The tilted loss of the dense network is at its minimum, so a loss without slope behaves like one with it.
    model, (inputs, targets) = quadratic
    with torch.no_grad():
        shifted = inputs @ model.weight.T
    flat = find(model, (inputs, shifted), 1.0, rounds=0, accuracy=1e-9)
    tilted = find(model, (inputs, targets), 1.0, rounds=0, accuracy=1e-9)
    both = flat.curve.merge(tilted.curve, on="sparsity")
    path = MagnitudePath(model)
    gradient = HessianOperator(model, functional.mse_loss, (inputs, targets)).gradient
    for sparsity, plain, full in zip(both.sparsity, both.rise_x, both.rise_y, strict=True):
        _, norm, radius = dense_refit(model, (inputs, targets), sparsity, "stationary")
        if norm < radius:
            assert full - plain == pytest.approx(_slope_part(model, inputs, gradient, path, sparsity), abs=1e-6)


def _slope_part(model: nn.Module, inputs: Tensor, gradient: Tensor, path: MagnitudePath, sparsity: float) -> float:
    """g'd with the step that pruning alone causes."""
    pruned = path.displacement(sparsity)
    keep = path.masks(sparsity)["weight"][0].bool()
    hessian = 2 * inputs.T @ inputs / len(inputs)
    step = pruned.clone()
    step[keep] = -torch.linalg.solve(hessian[keep][:, keep], (hessian @ pruned)[keep])
    return float(gradient @ step)


# Inputs, cost and what is left behind


def test_other_data_can_decide(digits_model: nn.Module, digits_data: Data) -> None:
    few = digits_data[0][:200], digits_data[1][:200]
    operator = HessianOperator(digits_model, functional.cross_entropy, few)
    limit = refit_limit(operator, MagnitudePath(digits_model), 0.05, batches=[digits_data], tolerance=0.5)
    pruned = predict_limit(
        digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="measured", tolerance=0.5
    )
    assert limit.curve.reached[0] <= pruned.curve.rise[0] + 1e-6  # at s = 0.5 no step is needed
    assert limit.examples == 200


def test_masks_are_followed(digits_model: nn.Module, digits_data: Data) -> None:
    def masks(sparsity: float) -> dict[str, Tensor]:
        return magnitude_masks(digits_model, sparsity)  # reads the network, which is moved meanwhile

    operator = HessianOperator(digits_model, functional.cross_entropy, digits_data)
    other = MaskPath(operator.names, operator.parameters, masks)
    found = [refit_limit(operator, path, 0.05, tolerance=0.05) for path in (MagnitudePath(digits_model), other)]
    np.testing.assert_allclose(found[0].curve.reached, found[1].curve.reached, rtol=1e-4)


def test_cost_is_what_was_spent(digits_model: nn.Module, digits_data: Data) -> None:
    calls = []

    def counting(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return functional.cross_entropy(output, targets)

    operator = HessianOperator(digits_model, counting, [digits_data])
    operator @ torch.ones(operator.dimension)
    before, calls_before = operator.products, len(calls)
    limit = refit_limit(operator, MagnitudePath(digits_model), 0.05, tolerance=0.1)
    assert limit.cost["products"] == operator.products - before > 0
    assert limit.cost["seconds"] > 0
    # A product may evaluate the loss once more, never less.
    assert len(limit.curve) < limit.cost["evaluations"] <= len(calls) - calls_before + 1


@pytest.mark.parametrize("method", ["formula", "directional", "refit", "measured"])
def test_every_method_tells_products_and_seconds(digits_model: nn.Module, digits_data: Data, method: str) -> None:
    limit = predict_limit(
        digits_model,
        functional.cross_entropy,
        digits_data,
        epsilon=0.05,
        method=method,
        steps=6,
        tolerance=0.1,
    )
    assert (limit.cost["products"] > 0) == (method != "measured")
    assert limit.cost["seconds"] > 0


def test_operator_works_on_afterwards(digits_model: nn.Module, digits_data: Data) -> None:
    operator = HessianOperator(digits_model, functional.cross_entropy, digits_data)
    vector = torch.ones(operator.dimension)
    before = operator @ vector
    refit_limit(operator, MagnitudePath(digits_model), 0.05, tolerance=0.3)
    torch.testing.assert_close(operator @ vector, before)


def failing_at(call: int) -> Callable[[Tensor, Tensor], Tensor]:
    calls = []

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return functional.cross_entropy(output, targets)

    return loss


@pytest.mark.parametrize("call", [2, 8, 15])
def test_weights_are_restored_when_it_fails(digits_model: nn.Module, digits_data: Data, call: int) -> None:
    before = copy.deepcopy(digits_model.state_dict())
    digits_model.train()
    with pytest.raises(KeyboardInterrupt):
        predict_limit(digits_model, failing_at(call), digits_data, epsilon=0.001, method="refit")
    assert all(torch.equal(before[name], value) for name, value in digits_model.state_dict().items())
    assert digits_model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "stationery"}, "control='stationery'.*'stationary'"),
        ({"rounds": -1}, "rounds=-1"),
        ({"accuracy": 0.0}, "accuracy=0"),
        ({"accuracy": 1.0}, "accuracy=1"),
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"tolerance": 0.0}, "tolerance=0"),
    ],
)
def test_bad_arguments_are_named(
    digits_model: nn.Module, digits_data: Data, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PruneLimitError, match=message):
        find(digits_model, digits_data, **({"epsilon": 0.1} | options))
