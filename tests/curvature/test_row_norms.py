"""Row norms: right against dense matrices, error bars that cover, and zero rows are found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature import HessianOperator
from prunelimit.curvature.rows import (
    LEVEL,
    RowNorms,
    cauchy_scale,
    exact_rows,
    row_norm_bound,
    row_norms,
    zero_rows,
)
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp

Operator = Callable[[Tensor], Any]
Data = tuple[Tensor, Tensor]


def symmetric(dimension: int, seed: int = 0) -> Tensor:
    """A matrix whose rows differ in norm by two decades."""
    matrix = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.logspace(-2, 0, dimension, dtype=torch.float64)
    return scale[:, None] * (matrix + matrix.T) * scale


def dead_network() -> tuple[nn.Module, Data, Tensor]:
    """A network with one dead unit and one pixel that is always zero, and which weights have zero rows."""
    torch.manual_seed(3)
    model = mlp([5, 6, 3])
    inputs = torch.randn(40, 5)
    inputs[:, 2] = 0
    with torch.no_grad():
        model[1].bias[4] = -100.0
    first, last = torch.zeros(6, 5, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool)
    first[:, 2], first[4], last[:, 4] = True, True, True
    return model, (inputs, torch.arange(40) % 3), torch.cat([first.reshape(-1), last.reshape(-1)])


@pytest.fixture(scope="module")
def dense(matrix_operator: Operator) -> Any:
    return matrix_operator(symmetric(120))


def relative_errors(operator: Any, order: int, probes: int, seeds: int = 40) -> np.ndarray:
    exact = operator.matrix.norm(p=order, dim=1).numpy()
    return np.array([row_norms(operator, probes=probes, seed=s, order=order).values / exact - 1 for s in range(seeds)])


@pytest.mark.parametrize("order", [1, 2])
def test_many_probes_find_the_norms_of_the_digits_hessian(
    digits_model: nn.Module, digits_data: Data, digits_hessian: Tensor, order: int
) -> None:
    operator = HessianOperator(digits_model, functional.cross_entropy, digits_data)
    found = row_norms(operator, probes=24, order=order)
    exact = digits_hessian.norm(p=order, dim=1).numpy()
    alive = exact > 1e-6 * exact.max()
    error = np.sqrt(np.mean((found.values[alive] / exact[alive] - 1) ** 2))
    # sqrt(1 / 48) = 0.14 and sqrt(2 / 24) = 0.29; rows share their probes, so the mean over rows scatters too.
    assert error < {1: 0.45, 2: 0.2}[order]
    assert found.products == operator.products == 24
    covered = ((found.low <= exact) & (exact <= found.high))[alive].mean()
    assert covered > 0.85


@pytest.mark.parametrize(("order", "probes", "expected"), [(2, 2, 0.48), (2, 8, 0.25), (2, 32, 0.125), (1, 8, 0.56)])
def test_standard_error_is_the_one_of_the_docstring(dense: Any, order: int, probes: int, expected: float) -> None:
    errors = relative_errors(dense, order, probes, 100)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("order", "probes"), [(1, 2), (1, 4), (1, 8), (1, 16), (2, 4), (2, 8), (2, 16)])
def test_error_bars_cover_at_their_level(dense: Any, order: int, probes: int) -> None:
    exact = dense.matrix.norm(p=order, dim=1).numpy()
    covered = []
    for seed in range(150):
        found = row_norms(dense, probes=probes, seed=seed, order=order)
        covered.append(((found.low <= exact) & (exact <= found.high)).mean())
    # Over 150 seeds and 120 correlated rows the mean scatters by less than 0.005.
    assert np.mean(covered) == pytest.approx(LEVEL, abs=0.02)


def test_error_bars_of_a_diagonal_matrix_cover_always(matrix_operator: Operator) -> None:
    operator = matrix_operator(torch.diag(torch.linspace(-1, 3, 50, dtype=torch.float64)))
    found = row_norms(operator, probes=4)
    exact = operator.matrix.diag().abs().numpy()
    np.testing.assert_allclose(found.values, exact, rtol=1e-14)  # the square of a sign is one
    assert np.all((found.low <= exact) & (exact <= found.high))


def test_values_are_unbiased(dense: Any) -> None:
    exact = dense.matrix.norm(dim=1).numpy()
    squares = np.mean([row_norms(dense, probes=1, seed=s).values ** 2 for s in range(2000)], axis=0) / exact**2
    assert abs(squares.mean() - 1) < 4 * np.sqrt(2 / 2000 / 20)
    errors = relative_errors(dense, 1, 8, 300)
    assert abs(errors.mean()) < 0.03


def test_likelihood_is_the_best_of_the_estimators_with_few_probes() -> None:
    draws = np.abs(np.random.default_rng(0).standard_cauchy((100_000, 8)))
    likelihood = cauchy_scale(draws) * (1 - 1 / 8)
    geometric = np.exp(np.log(draws).mean(1)) * np.cos(np.pi / 16) ** 8  # unbiased (Li, Hastie and Church 2007)
    median = np.median(draws, 1)
    median /= median.mean()
    errors = [np.sqrt(np.mean((x - 1) ** 2)) for x in (likelihood, geometric, median)]
    assert errors[0] == pytest.approx(0.565, abs=0.01)
    assert errors[0] < 0.95 * errors[1] < 0.99 * errors[2]


@given(
    values=st.lists(st.lists(st.floats(1e-200, 1e200), min_size=4, max_size=4), min_size=1, max_size=5),
    factor=st.floats(1e-20, 1e20),
)
def test_scale_solves_the_likelihood_equation_and_scales(values: list[list[float]], factor: float) -> None:
    magnitudes = np.array(values)
    found = cauchy_scale(magnitudes)
    score = np.tanh(np.log(magnitudes) - np.log(found)[:, None]).mean(1)
    np.testing.assert_allclose(score, 0, atol=1e-9)
    np.testing.assert_allclose(cauchy_scale(magnitudes * factor), found * factor, rtol=1e-6)


def test_scale_of_two_is_their_geometric_mean() -> None:
    np.testing.assert_allclose(cauchy_scale(np.array([[4.0, 9.0], [1e-30, 1e30]])), [6.0, 1.0], rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_scaling_the_matrix_scales_everything(matrix_operator: Operator, order: int) -> None:
    one = row_norms(matrix_operator(symmetric(30)), order=order)
    other = row_norms(matrix_operator(1e6 * symmetric(30)), order=order)
    for field in ("values", "low", "high"):
        np.testing.assert_allclose(getattr(other, field), 1e6 * getattr(one, field), rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_dead_unit_and_zero_pixel_have_zero_rows(order: int, reference_hessian: Any) -> None:
    model, data, expected = dead_network()
    operator = HessianOperator(model, functional.cross_entropy, data)
    found = row_norms(operator, order=order)
    np.testing.assert_array_equal(found.zero, expected.numpy())
    assert not found.values[found.zero].any()
    assert not found.high[found.zero].any()
    assert torch.equal(zero_rows(operator), expected)
    assert torch.equal(reference_hessian(model, functional.cross_entropy, data).norm(dim=1) == 0, expected)


def test_zero_rows_take_a_product_that_was_made_already() -> None:
    model, data, expected = dead_network()
    operator = HessianOperator(model, functional.cross_entropy, data)
    product = operator @ torch.randn(48, 2)
    assert torch.equal(zero_rows(operator, product), expected)
    assert torch.equal(zero_rows(operator, product[:, 0]), expected)
    assert operator.products == 2


def test_zero_rows_see_entries_that_signs_cancel(matrix_operator: Operator) -> None:
    # With random signs two equal entries cancel half the time.
    operator = matrix_operator(torch.ones(2, 2))
    assert any(row_norms(operator, probes=1, seed=s).zero.all() for s in range(10))
    assert not any(zero_rows(operator, seed=s).any() for s in range(100))


def test_zero_matrix_has_zero_norms(matrix_operator: Operator) -> None:
    for order in (1, 2):
        found = row_norms(matrix_operator(torch.zeros(4, 4)), order=order)
        assert found.zero.all()
        assert not found.values.any()


def test_float32_products_with_cauchy_vectors_keep_small_rows(
    digits_model: nn.Module, digits_data: Data, digits_hessian: Tensor
) -> None:
    single = row_norms(HessianOperator(digits_model, functional.cross_entropy, digits_data), order=1)
    inputs, targets = digits_data
    double = row_norms(
        HessianOperator(copy.deepcopy(digits_model).double(), functional.cross_entropy, (inputs.double(), targets)),
        order=1,
    )
    exact = digits_hessian.norm(p=1, dim=1).numpy()
    alive = exact > 1e-4 * exact.max()
    np.testing.assert_allclose(single.values[alive], double.values[alive], rtol=0.02)


@pytest.mark.parametrize("order", [1, 2])
def test_seed_decides_and_no_probe_is_shared(dense: Any, order: int) -> None:
    one, same, other = (row_norms(dense, seed=s, order=order).values for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one, other).all()
    dense.seen.clear()
    state = torch.get_rng_state()
    for seed in (0, 1):
        row_norms(dense, seed=seed, probes=4, order=order)
    assert len({tuple(v.tolist()) for v in dense.seen}) == 8
    assert torch.equal(torch.get_rng_state(), state)


def test_probes_know_nothing_of_a_network_drawn_from_the_same_seed(matrix_operator: Operator) -> None:
    operator = matrix_operator(torch.eye(10_000))
    for seed in range(5):
        plain = torch.randn(10_000, generator=torch.Generator().manual_seed(seed)).sign()
        row_norms(operator, probes=2, seed=seed)
        assert all(abs(float(plain @ v)) < 500 for v in operator.seen)  # five standard deviations


def test_progress_counts_products(dense: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row_norms(dense, probes=3, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_norms_are_cut_into_the_shapes_of_the_parameters() -> None:
    model, data, _ = dead_network()
    operator = HessianOperator(model, functional.cross_entropy, data)
    found = row_norms(operator)
    for field in ("values", "low", "high", "zero"):
        parts = found.by_parameter(field)
        assert [parts[name].shape for name in operator.names] == [p.shape for p in operator.parameters]
        joined = torch.cat([parts[name].reshape(-1) for name in operator.names])
        np.testing.assert_array_equal(joined.numpy(), getattr(found, field))
    assert found.by_parameter("zero")[operator.names[0]][4].all()


def test_exact_rows_are_rows(dense: Any, digits_model: nn.Module, digits_data: Data, digits_hessian: Tensor) -> None:
    chosen = [3, 0, 119, *range(40, 60)]
    torch.testing.assert_close(exact_rows(dense, chosen), dense.matrix[chosen], rtol=1e-12, atol=0)
    operator = HessianOperator(digits_model, functional.cross_entropy, digits_data)
    rows = exact_rows(operator, torch.tensor([7, 2500]))
    torch.testing.assert_close(rows.double(), digits_hessian[[7, 2500]], rtol=1e-3, atol=1e-5)
    assert operator.products == 2


@pytest.mark.parametrize("mu", [1e-4, 1e-3, 1e-2, 0.1, 1.0])
def test_row_norm_bound_is_above_the_dense_truth(
    digits_hessian: Tensor, digits_eigenvalues: np.ndarray, mu: float
) -> None:
    norms = digits_hessian.norm(dim=1).numpy()
    exact = float(np.sum(np.abs(digits_eigenvalues) / (np.abs(digits_eigenvalues) + mu)))
    bound = float(row_norm_bound(norms, mu))
    assert exact <= bound <= len(norms)


@given(seed=st.integers(0, 1000), mu=st.floats(1e-6, 1e6))
def test_row_norm_bound_holds_for_any_symmetric_matrix(seed: int, mu: float) -> None:
    matrix = symmetric(12, seed)
    eigenvalues = torch.linalg.eigvalsh(matrix).abs()
    exact = float((eigenvalues / (eigenvalues + mu)).sum())
    assert exact <= float(row_norm_bound(matrix.norm(dim=1).numpy(), mu)) * (1 + 1e-9)


def test_row_norm_bound_is_an_equality_for_a_diagonal() -> None:
    diagonal = np.array([0.0, 1.0, 3.0])
    np.testing.assert_allclose(row_norm_bound(diagonal, [1.0, 3.0]), [1.25, 0.75])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_row_norm_bound_has_the_shape_of_mu(shape: tuple[int, ...]) -> None:
    assert row_norm_bound(np.ones(5), np.full(shape, 0.5)).shape == shape


def test_estimated_norms_give_nearly_the_bound(
    digits_model: nn.Module, digits_data: Data, digits_hessian: Tensor
) -> None:
    found = row_norms(HessianOperator(digits_model, functional.cross_entropy, digits_data))
    exact = row_norm_bound(digits_hessian.norm(dim=1).numpy(), [1e-3, 1e-2])
    np.testing.assert_allclose(row_norm_bound(found.values, [1e-3, 1e-2]), exact, rtol=0.05)
    assert np.all(row_norm_bound(found.high, [1e-3, 1e-2]) > exact)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 3}, "order=3"),
        ({"order": "2"}, "order='2'"),
        ({"probes": 0}, "probes=0"),
        ({"probes": 1, "order": 1}, "probes=1 must be at least 2"),
    ],
)
def test_bad_arguments_are_refused(dense: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PruneLimitError, match=words):
        row_norms(dense, **options)


@pytest.mark.parametrize("indices", [[], [1.5], [120], [-1], torch.ones(120, dtype=torch.bool)])
def test_bad_indices_are_refused(dense: Any, indices: Any) -> None:
    with pytest.raises(PruneLimitError, match="indices"):
        exact_rows(dense, indices)


def test_bad_shapes_are_refused(dense: Any) -> None:
    with pytest.raises(PruneLimitError, match="product has shape"):
        zero_rows(dense, torch.ones(3))


@pytest.mark.parametrize(
    ("values", "mu", "word"), [([1.0], 0.0, "mu"), ([-1.0], 1.0, "values"), ([np.nan], 1.0, "values")]
)
def test_bad_bounds_are_refused(values: list[float], mu: float, word: str) -> None:
    with pytest.raises(PruneLimitError, match=word):
        row_norm_bound(values, mu)


def test_norms_without_parameters_cannot_be_cut(dense: Any) -> None:
    found: RowNorms = row_norms(dense)
    with pytest.raises(PruneLimitError, match="no parameters"):
        found.by_parameter()
    model, data, _ = dead_network()
    with pytest.raises(PruneLimitError, match="field='mean'"):
        row_norms(HessianOperator(model, functional.cross_entropy, data), probes=1).by_parameter("mean")
