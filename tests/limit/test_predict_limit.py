"""predict_limit: each method against a brute-force answer on networks small enough to have one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import apply_masks, layer_limits, magnitude_masks, predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.limit import default_epsilon, effective_dimension, exact_limit, removable_fraction, solve_limit
from prunelimit.path_limits import directional_limit
from prunelimit.pruning import MagnitudePath

EPSILONS = [0.005, 0.05, 0.3]


def dense_root(weights: Tensor, eigenvalues: np.ndarray, epsilon: float) -> float:
    """The continuous root of 1 - d / D = s, by Brent's method on the interpolated distance."""
    total = len(weights)
    squares = np.cumsum(np.sort(weights.numpy() ** 2))
    magnitudes = np.abs(eigenvalues)

    def gap(sparsity: float) -> float:
        square = np.interp(sparsity, np.arange(total + 1) / total, np.concatenate([[0], squares]))
        return 1 - float((magnitudes / (magnitudes + 2 * epsilon / square)).mean()) - sparsity

    return scipy.optimize.brentq(gap, 0.01, 1 - 1e-9, xtol=1e-12)


def measured_rise(model: nn.Module, data: tuple[Tensor, Tensor], sparsity: float) -> float:
    """Prune a copy for real and evaluate it in float64."""
    losses = []
    for s in (0.0, sparsity):
        pruned = copy.deepcopy(model).eval()
        apply_masks(pruned, magnitude_masks(pruned, s))
        with torch.no_grad():
            losses.append(float(functional.cross_entropy(pruned(data[0]).double(), data[1])))
    return losses[1] - losses[0]


@pytest.fixture
def regression() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Linear regression near its optimum: the loss is a quadratic, so its second-order expansion is the loss."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 150, generator=generator, dtype=torch.float64)
    model = nn.Linear(150, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 150, generator=generator, dtype=torch.float64))
        targets = inputs @ model.weight.T + 0.1 * torch.randn(200, 1, generator=generator, dtype=torch.float64)
    return model, (inputs, targets)


# The formula


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_exact_curvature_agrees_with_the_dense_root(
    digits_model: nn.Module, digits_eigenvalues: np.ndarray, digits_weights: Tensor, epsilon: float
) -> None:
    path = MagnitudePath(digits_model)

    def removable(radius: np.ndarray) -> np.ndarray:
        return removable_fraction(lambda mu: effective_dimension(digits_eigenvalues, mu), radius, epsilon, path.total)

    expected = dense_root(digits_weights, digits_eigenvalues, epsilon)
    assert solve_limit(path.distance, removable) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("seed", range(3))
def test_formula_with_64_products_agrees_with_the_dense_root(
    digits_model: nn.Module,
    digits_data: tuple[Tensor, Tensor],
    digits_eigenvalues: np.ndarray,
    digits_weights: Tensor,
    epsilon: float,
    seed: int,
) -> None:
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=epsilon, steps=64, seed=seed)
    expected = dense_root(digits_weights, digits_eigenvalues, epsilon)
    assert limit.sparsity == pytest.approx(expected, abs=0.01)
    assert limit.interval[0] <= expected <= limit.interval[1]
    assert limit.cost["products"] == 64


def test_more_steps_and_probes_resolve_the_formula(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], digits_eigenvalues: np.ndarray, digits_weights: Tensor
) -> None:
    limit = predict_limit(
        digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=160, probes=4, seed=1
    )
    expected = dense_root(digits_weights, digits_eigenvalues, 0.05)
    assert limit.resolved
    assert limit.interval[0] <= expected <= limit.interval[1]


def test_formula_is_repeatable_and_depends_on_the_seed(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    limits = [
        predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=10, seed=seed).spectrum
        for seed in (4, 4, 5)
    ]
    np.testing.assert_array_equal(limits[0].probes[0].alpha, limits[1].probes[0].alpha)
    assert not np.array_equal(limits[0].probes[0].alpha, limits[2].probes[0].alpha)


def test_formula_does_not_depend_on_how_the_data_are_cut(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = digits_data
    batches = list(zip(inputs.split([300, 300, 40]), targets.split([300, 300, 40]), strict=True))
    whole, parts = (
        predict_limit(digits_model, functional.cross_entropy, data, epsilon=0.05, steps=20)
        for data in (digits_data, batches)
    )
    assert whole.examples == parts.examples == 640
    assert parts.sparsity == pytest.approx(whole.sparsity, abs=0.001)


def test_prunable_restricts_the_limit_to_named_weights(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    limit = predict_limit(
        digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=5, prunable=["3.weight"]
    )
    assert limit.total == 768


def test_formula_with_other_masks_uses_their_distance(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    def masks(sparsity: float) -> dict[str, Tensor]:
        return magnitude_masks(digits_model, sparsity)

    own = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=20)
    given = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=20, masks=masks)
    # The distance of other masks is taken at 200 sparsities.
    assert given.sparsity == pytest.approx(own.sparsity, abs=1 / 200)


def test_random_masks_allow_less_than_magnitude(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    order = {
        n: torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) for n, p in digits_model.named_parameters()
    }

    def masks(sparsity: float) -> dict[str, Tensor]:
        return {name: (order[name] >= sparsity).float() for name in ("1.weight", "3.weight", "5.weight")}

    for method in ("formula", "directional", "measured"):
        options = {"epsilon": 0.05, "method": method, "steps": 20}
        own = predict_limit(digits_model, functional.cross_entropy, digits_data, **options)
        given = predict_limit(digits_model, functional.cross_entropy, digits_data, masks=masks, **options)
        assert given.sparsity < own.sparsity, method


# The second-order expansion along the path


def test_directional_equals_the_dense_quadratic(
    digits_model: nn.Module,
    digits_data: tuple[Tensor, Tensor],
    digits_hessian: Tensor,
    digits_loss: Callable[[Tensor], Tensor],
    digits_weights: Tensor,
) -> None:
    gradient = torch.func.grad(digits_loss)(digits_weights)
    order = digits_weights.abs().argsort(stable=True)
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="directional")
    for sparsity, rise in zip(limit.curve.sparsity, limit.curve.rise, strict=True):
        step = torch.zeros_like(digits_weights)
        removed = order[: int(np.ceil(sparsity * 3056))]
        step[removed] = -digits_weights[removed]
        assert rise == pytest.approx(float(gradient @ step + step @ digits_hessian @ step / 2), rel=1e-4, abs=1e-6)


def test_directional_brackets_epsilon(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    limit = predict_limit(
        digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="directional", tolerance=0.01
    )
    rises = dict(zip(limit.curve.sparsity, limit.curve.rise, strict=True))
    assert rises[limit.interval[0]] <= 0.05 < rises[limit.interval[1]]
    assert limit.interval[1] - limit.interval[0] <= 0.01
    assert limit.sparsity == limit.interval[0]


def test_directional_costs_one_product_per_point(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="directional")
    assert limit.cost["products"] == len(limit.curve) == 10


@pytest.mark.parametrize("epsilon", [0.5, 5.0, 50.0])
def test_directional_equals_measured_on_a_quadratic_loss(
    regression: tuple[nn.Module, tuple[Tensor, Tensor]], epsilon: float
) -> None:
    model, data = regression
    found = [
        predict_limit(model, functional.mse_loss, data, epsilon=epsilon, method=method)
        for method in ("directional", "measured")
    ]
    assert found[0].sparsity == found[1].sparsity
    np.testing.assert_allclose(found[0].curve.rise, found[1].curve.rise, rtol=1e-8, atol=1e-10)
    assert 0 < found[0].sparsity < 1


# The truth


@pytest.mark.parametrize("epsilon", [0.5, 5.0, 50.0])
def test_measured_is_the_brute_force_threshold(
    regression: tuple[nn.Module, tuple[Tensor, Tensor]], epsilon: float
) -> None:
    # Orthogonal inputs make the rise monotone, so that the threshold is one number.
    model, (inputs, _) = regression
    inputs = torch.linalg.qr(inputs)[0] * 20
    targets = inputs @ model.weight.detach().T
    total, rises = 150, []
    weights = model.weight.detach().reshape(-1)
    for m in range(total + 1):
        pruned = weights.clone()
        pruned[weights.abs().argsort()[:m]] = 0
        rises.append(float(((inputs @ pruned - targets[:, 0]) ** 2).mean()))
    threshold = max(m for m in range(total + 1) if rises[m] <= epsilon) / total
    limit = predict_limit(model, functional.mse_loss, (inputs, targets), epsilon=epsilon, method="measured")
    assert threshold - 0.001 <= limit.sparsity <= threshold


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_measured_brackets_the_real_rise(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], epsilon: float
) -> None:
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=epsilon, method="measured")
    low, high = limit.interval
    assert measured_rise(digits_model, digits_data, low) <= epsilon < measured_rise(digits_model, digits_data, high)
    assert high - low <= 0.001


def test_measured_curve_holds_real_rises(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="measured")
    assert limit.curve.sparsity.is_monotonic_increasing
    assert limit.cost["evaluations"] == len(limit.curve) + 1
    for sparsity, rise in zip(limit.curve.sparsity, limit.curve.rise, strict=True):
        assert rise == pytest.approx(measured_rise(digits_model, digits_data, sparsity), rel=1e-4, abs=1e-6)


def test_measured_with_masks_prunes_by_them(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    # The path must take its step from the trained weights, not from those that the evaluation before has pruned.
    asked, trained = [], copy.deepcopy(digits_model)

    def masks(sparsity: float) -> dict[str, Tensor]:
        asked.append(sparsity)
        return magnitude_masks(trained, sparsity)

    options = {"epsilon": 0.05, "method": "measured"}
    own = predict_limit(digits_model, functional.cross_entropy, digits_data, **options)
    given = predict_limit(digits_model, functional.cross_entropy, digits_data, masks=masks, **options)
    assert given.sparsity == own.sparsity
    assert given.sparsity in asked


def test_masks_that_read_the_model_see_the_trained_weights(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    # The obvious callable; during a measurement it must not see weights that are pruned already.
    def masks(sparsity: float) -> dict[str, Tensor]:
        return magnitude_masks(digits_model, sparsity)

    options = {"epsilon": 0.05, "method": "measured"}
    own = predict_limit(digits_model, functional.cross_entropy, digits_data, **options)
    given = predict_limit(digits_model, functional.cross_entropy, digits_data, masks=masks, **options)
    np.testing.assert_allclose(given.curve.rise, own.curve.rise)


# The model is left exactly as it was


@pytest.mark.parametrize("method", ["formula", "directional", "refit", "measured"])
def test_model_is_left_as_it_was(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], method: str) -> None:
    digits_model.train()
    functional.cross_entropy(digits_model(digits_data[0]), digits_data[1]).backward()
    before = copy.deepcopy(digits_model.state_dict())
    gradients = [p.grad.clone() for p in digits_model.parameters()]
    predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method=method, steps=4)
    assert all(torch.equal(before[name], value) for name, value in digits_model.state_dict().items())
    assert all(torch.equal(p.grad, old) for p, old in zip(digits_model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in digits_model.parameters())
    assert all(module.training for module in digits_model.modules())


def test_weights_are_restored_when_a_measurement_fails(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    before, calls = copy.deepcopy(digits_model.state_dict()), []

    def failing(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return functional.cross_entropy(output, targets)

    digits_model.train()
    with pytest.raises(KeyboardInterrupt):
        predict_limit(digits_model, failing, digits_data, epsilon=0.05, method="measured")
    assert all(torch.equal(before[name], value) for name, value in digits_model.state_dict().items())
    assert digits_model.training
    assert torch.is_grad_enabled()


def test_an_operator_made_before_a_measurement_still_works(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    operator = HessianOperator(digits_model, functional.cross_entropy, digits_data)
    vector = torch.ones(operator.dimension)
    before = operator @ vector
    predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method="measured", tolerance=0.2)
    torch.testing.assert_close(operator @ vector, before)


def test_global_random_state_is_not_touched(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    state = torch.get_rng_state()
    predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=3)
    assert torch.equal(torch.get_rng_state(), state)


# Epsilon and the report


def test_default_epsilon_is_the_deviation_over_full_batches_of_128(digits_model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(300, 64, generator=generator), torch.randint(0, 10, (300,), generator=generator)
    with torch.no_grad():
        losses = [
            float(functional.cross_entropy(digits_model(inputs[a : a + 128]), targets[a : a + 128])) for a in (0, 128)
        ]
    # The last 44 examples make no full batch; their loss is noisier by its size alone.
    expected = abs(losses[0] - losses[1]) / np.sqrt(2)
    assert default_epsilon(digits_model, functional.cross_entropy, [(inputs, targets)]) == pytest.approx(
        expected, rel=1e-4
    )


def test_default_epsilon_does_not_depend_on_how_the_data_are_cut(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = digits_data
    odd = list(zip(inputs.split(50), targets.split(50), strict=True))
    whole = default_epsilon(digits_model, functional.cross_entropy, [digits_data])
    assert default_epsilon(digits_model, functional.cross_entropy, odd) == pytest.approx(whole, rel=1e-5)


def test_default_epsilon_is_used_and_reported(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, method="measured", tolerance=0.1)
    assert limit.epsilon == default_epsilon(digits_model, functional.cross_entropy, [digits_data])


def test_default_epsilon_needs_two_batches(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    few = digits_data[0][:100], digits_data[1][:100]
    with pytest.raises(PruneLimitError, match="epsilon=None"):
        predict_limit(digits_model, functional.cross_entropy, few)


@pytest.mark.parametrize("method", ["formula", "directional", "refit", "measured"])
def test_report_is_complete_and_plain(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], method: str) -> None:
    limit = predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, method=method, steps=8)
    values = json.loads(json.dumps(limit.to_dict(), allow_nan=False))
    assert values["method"] == method
    assert values["total"] == 3056
    assert values["examples"] == 640
    assert values["radius"] == pytest.approx(float(MagnitudePath(digits_model).radius(limit.sparsity)), rel=1e-6)
    assert (limit.spectrum is None, limit.dimension is None, limit.lower is None) == ((method != "formula"),) * 3
    assert method in repr(limit)


def test_nothing_is_printed_unless_asked(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=3)
    assert capfd.readouterr() == ("", "")
    predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=0.05, steps=3, progress=True)
    assert "Lanczos" in capfd.readouterr().err


def test_low_rank_hessian_with_a_complete_krylov_space_is_exact() -> None:
    # Once wrong: see test_low_rank_matrix_with_few_steps_is_exact_for_its_probe; here it costs the user's limit.
    torch.manual_seed(0)
    model = nn.Linear(400, 1, bias=False).double()
    inputs = torch.randn(3, 400, dtype=torch.float64) * torch.tensor([[1.0], [5.0], [30.0]], dtype=torch.float64)
    data = inputs, torch.zeros(3, 1, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(2 * inputs.T @ inputs / 3).numpy()
    limit = predict_limit(model, functional.mse_loss, data, epsilon=0.05, steps=64, probes=20)
    expected = dense_root(model.weight.detach().reshape(-1), eigenvalues, 0.05)
    assert limit.sparsity == pytest.approx(expected, abs=0.003)


def test_directional_limit_takes_a_gradient_of_more_data(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]
) -> None:
    few = digits_data[0][:200], digits_data[1][:200]
    curved = HessianOperator(digits_model, functional.cross_entropy, few)
    slope = HessianOperator(digits_model, functional.cross_entropy, digits_data).gradient
    path = MagnitudePath(digits_model)
    limit = directional_limit(curved, path, 0.05, gradient=slope, tolerance=0.05)
    for sparsity, rise in zip(limit.curve.sparsity, limit.curve.rise, strict=True):
        step = path.displacement(sparsity)
        assert rise == pytest.approx(float(slope @ step + step @ (curved @ step) / 2), rel=1e-4, abs=1e-6)
    assert limit.examples == 200


@pytest.mark.parametrize(("rows", "said"), [(300, "2 batches only, uncertain by 71 %"), (1300, "")])
def test_default_epsilon_from_few_batches_is_called_uncertain(
    digits_model: nn.Module,
    digits_data: tuple[Tensor, Tensor],
    rows: int,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Once in silence: on 300 examples in another order epsilon, the deviation of two numbers, was a hundred times another.
    inputs, targets = (torch.cat([part] * 3)[:rows] for part in digits_data)
    assert len(targets) == rows
    default_epsilon(digits_model, functional.cross_entropy, [(inputs, targets)])
    assert said in caplog.text
    assert bool(caplog.text) is bool(said)


def perfect() -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    """A network that is so sure of the right class that its loss is zero to the last digit."""
    inputs = torch.eye(3).repeat(20, 1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(1000 * torch.eye(3) + torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))
            layer.bias.zero_()
    return model, functional.cross_entropy, (inputs, torch.arange(3).repeat(20))


def straight() -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    """Absolute errors of a linear model."""
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 1), torch.randn(50, 3)
    return model, functional.l1_loss, (inputs, model(inputs).detach())


@pytest.mark.parametrize("method", ["formula", "cone", "cut"])
@pytest.mark.parametrize("make", [perfect, straight])
def test_a_loss_without_curvature_has_no_limit_but_the_measured(make: Callable[[], Any], method: str) -> None:
    # Once wrong: the formula allowed 100 % of the weights to go, called resolved; cone and cut failed on sparsity=1.0.
    with pytest.raises(PruneLimitError, match=r"^loss_fn has no curvature here.*method='measured'\.$"):
        predict_limit(*make(), epsilon=0.1, method=method)
    assert predict_limit(*make(), epsilon=0.1, method="measured").sparsity < 0.9


def test_a_perfect_fit_has_no_directional_limit_either() -> None:
    with pytest.raises(PruneLimitError, match=r"^loss_fn has no curvature here"):
        predict_limit(*perfect(), epsilon=0.1, method="directional")
    layers = layer_limits(*perfect(), epsilon=0.1)
    measured = layer_limits(*perfect(), epsilon=0.1, method="measured")
    assert layers.table.sparsity.tolist() == measured.table.sparsity.tolist()


def test_a_search_that_finds_no_end_says_so(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> None:
    endless, usual = (
        predict_limit(digits_model, functional.cross_entropy, digits_data, epsilon=epsilon, method="measured")
        for epsilon in (100.0, 0.02)
    )
    assert endless.unbounded
    assert "epsilon is too large" in repr(endless)
    assert not usual.unbounded
    assert "too large" not in repr(usual)


def test_default_epsilon_of_batches_that_cannot_be_cut_is_said_to_depend_on_them(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    # Once silent: targets that do not count keep batches whole, and the spread over batches of 16 is that much larger.
    inputs, targets = digits_data[0], digits_data[1].clone()
    targets[::7] = -100
    for size, told in ((16, True), (128, False)):
        rows = len(targets) - len(targets) % size
        batches = list(zip(inputs[:rows].split(size), targets[:rows].split(size), strict=True))
        adapted = adapt(digits_model, functional.cross_entropy, batches)
        caplog.clear()
        default_epsilon(adapted.model, adapted.loss_fn, adapted.batches)
        assert ("as they were given" in caplog.text) is told


def test_one_raw_input_column_is_not_called_resolved(caplog: pytest.LogCaptureFixture) -> None:
    # Once wrong: float32 sees four eigenvalues and takes the rest for rounding; the limit was 32 points off, and resolved.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 20, generator=generator)
    inputs[:, 0] = 20_000 + 3_000 * inputs[:, 0]
    targets = inputs[:, 1:2] * inputs[:, 2:3]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 1))
    limit = predict_limit(model, functional.mse_loss, (inputs, targets), epsilon=0.1)
    double = model.double()
    data = inputs.double(), targets.double()
    eigenvalues = torch.linalg.eigvalsh(HessianOperator(double, functional.mse_loss, data).dense()).numpy()
    exact = exact_limit(eigenvalues, MagnitudePath(double).distance, 0.1)
    assert limit.spectrum.steps < 20  # it came to an end before its time
    assert limit.interval[0] <= exact <= limit.interval[1]
    assert not limit.resolved
    assert "Rounding of the products" in caplog.text
    assert "rounding hides the small eigenvalues" in str(limit)


def test_prunable_takes_patterns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    data = torch.randn(32, 4), torch.randn(32, 2)
    options = {"epsilon": 0.05, "method": "directional"}
    named = predict_limit(model, functional.mse_loss, data, prunable=["0.weight"], **options)
    fitted = predict_limit(model, functional.mse_loss, data, prunable=["0.w*"], **options)
    assert (fitted.total, fitted.sparsity) == (named.total, named.sparsity)
    assert predict_limit(model, functional.mse_loss, data, prunable=["*.weight"], **options).total == 36
    with pytest.raises(PruneLimitError, match=r"prunable='1\.w'"):
        predict_limit(model, functional.mse_loss, data, prunable=["1.w"], **options)
