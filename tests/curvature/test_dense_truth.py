"""Products, spectrum sums and the gradient of a 3,056-weight network against its dense Hessian."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature import HessianOperator, spectrum
from prunelimit.limit import effective_dimension


@pytest.fixture
def operator(digits_model: nn.Module, digits_data: tuple[Tensor, Tensor]) -> HessianOperator:
    return HessianOperator(digits_model, functional.cross_entropy, digits_data)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_the_network_has_about_three_thousand_prunable_weights(operator: HessianOperator) -> None:
    assert operator.shape == (3056, 3056)


def test_dense_reference_agrees_with_finite_differences(
    digits_hessian: Tensor, digits_loss: Callable[[Tensor], Tensor], digits_weights: Tensor
) -> None:
    # The step is far below the distance to the nearest ReLU kink for almost every row; the median ignores the rest.
    gradient, step = torch.func.grad(digits_loss), 1e-6
    errors = []
    for row in range(0, len(digits_weights), 131):
        shift = torch.zeros_like(digits_weights)
        shift[row] = step
        difference = (gradient(digits_weights + shift) - gradient(digits_weights - shift)) / (2 * step)
        errors.append(float((difference - digits_hessian[row]).norm() / digits_hessian.norm()))
    assert np.median(errors) < 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_products_match_the_dense_hessian(operator: HessianOperator, digits_hessian: Tensor, seed: int) -> None:
    vector = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(seed))
    assert relative(operator @ vector, digits_hessian @ vector.double()) < 1e-5


def test_dense_matches_the_independent_hessian(
    digits_model: nn.Module, digits_data: tuple[Tensor, Tensor], digits_hessian: Tensor
) -> None:
    # One layer only: the whole of it is dense() of 768 rows, which takes a second instead of ten.
    operator = HessianOperator(digits_model, functional.cross_entropy, digits_data, prunable=["3.weight"])
    block = digits_hessian[2048 : 2048 + 768, 2048 : 2048 + 768]
    dense = operator.dense()
    assert dense.dtype == torch.float64
    assert torch.equal(dense, dense.T)
    assert relative(dense, block) < 1e-5


@pytest.mark.slow
def test_whole_dense_matches_the_independent_hessian(operator: HessianOperator, digits_hessian: Tensor) -> None:
    assert relative(operator.dense(), digits_hessian) < 1e-5


def test_gradient_matches_float64(
    operator: HessianOperator, digits_loss: Callable[[Tensor], Tensor], digits_weights: Tensor
) -> None:
    assert relative(operator.gradient, torch.func.grad(digits_loss)(digits_weights)) < 1e-5


def test_loss_matches_float64(
    operator: HessianOperator, digits_loss: Callable[[Tensor], Tensor], digits_weights: Tensor
) -> None:
    assert operator.loss == pytest.approx(float(digits_loss(digits_weights)), rel=1e-5)


def test_largest_ritz_value_is_the_largest_eigenvalue(
    operator: HessianOperator, digits_eigenvalues: np.ndarray
) -> None:
    found = spectrum(operator, steps=40, seed=1)
    assert found.largest == pytest.approx(np.abs(digits_eigenvalues).max(), rel=1e-4)


def test_trace_estimate_has_the_dense_trace_within_its_noise(
    operator: HessianOperator, digits_eigenvalues: np.ndarray
) -> None:
    probes, total = 16, operator.dimension
    found = spectrum(operator, steps=1, probes=probes, seed=5)
    # Variance of D u'Hu for u uniform on the sphere is close to 2 ||H||_F^2; four deviations of the mean.
    noise = np.sqrt(2 * np.square(digits_eigenvalues).sum() / probes)
    assert noise < np.abs(digits_eigenvalues.sum())
    assert abs(found.trace - digits_eigenvalues.sum()) < 4 * noise
    assert found.dimension == total


@pytest.mark.parametrize("mu", [1e-3, 1e-2, 0.1, 1.0])
def test_effective_dimension_from_64_products_matches_dense(
    operator: HessianOperator, digits_eigenvalues: np.ndarray, mu: float
) -> None:
    exact = float((np.abs(digits_eigenvalues) / (np.abs(digits_eigenvalues) + mu)).sum())
    value, low, high = spectrum(operator, steps=64, seed=0).effective_dimension(mu)
    assert low <= exact <= high
    assert abs(value - exact) < 0.01 * operator.dimension


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 0.1, 10.0])
def test_exact_effective_dimension_is_the_trace_of_the_resolvent(digits_eigenvalues: np.ndarray, mu: float) -> None:
    # A route without eigenvalues: d = Tr (|H| (|H| + mu)^-1) through a Cholesky factor, on the 200 largest.
    magnitudes = np.sort(np.abs(digits_eigenvalues))[-200:]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 200)))[0]
    matrix = rotation * magnitudes @ rotation.T
    expected = np.trace(np.linalg.solve(matrix + mu * np.eye(200), matrix))
    assert effective_dimension(magnitudes, mu) == pytest.approx(expected, rel=1e-6)
