"""solve_limit and removable_fraction: bisection against a scan, monotonicity and scaling as properties."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from prunelimit.limit import effective_dimension, kinematic_margin, removable_fraction, solve_limit
from prunelimit.pruning import MagnitudePath

eigenvalue_arrays = hnp.arrays(float, st.integers(1, 30), elements=st.floats(-100, 100, allow_subnormal=False))
# Weights as after training: none so small that its square vanishes.
weight_arrays = hnp.arrays(float, st.integers(2, 40), elements=st.floats(0.01, 10) | st.just(0.0))
positive = st.floats(1e-6, 1e3)


def distances(weights: np.ndarray) -> np.ndarray:
    return np.sqrt(np.concatenate([[0], np.cumsum(np.sort(np.abs(weights)) ** 2)]))


def scan(distance: np.ndarray, eigenvalues: np.ndarray, epsilon: float, shift: float = 0.0) -> float:
    """The definition, one sparsity after the other: the last m whose removable fraction is at least m / D."""
    total, best = len(distance) - 1, 0
    for m in range(1, total + 1):
        mu = np.inf if distance[m] == 0 else 2 * epsilon / distance[m] ** 2
        dimension = sum(abs(x) / (abs(x) + mu) for x in eigenvalues)
        if 1 - dimension / total + shift >= m / total:
            best = m
    return best / total


@given(weights=weight_arrays, epsilon=positive, seed=st.integers(0, 10**6), shift=st.sampled_from([0.0, -0.2, 0.15]))
def test_bisection_finds_what_a_scan_finds(weights: np.ndarray, epsilon: float, seed: int, shift: float) -> None:
    eigenvalues = np.random.default_rng(seed).lognormal(0, 3, len(weights))
    distance, total = distances(weights), len(weights)

    def removable(radius: np.ndarray) -> np.ndarray:
        return removable_fraction(lambda mu: effective_dimension(eigenvalues, mu), radius, epsilon, total)

    assert solve_limit(distance, removable, shift) == pytest.approx(scan(distance, eigenvalues, epsilon, shift))


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_bisection_agrees_with_the_continuous_root(epsilon: float) -> None:
    generator = np.random.default_rng(0)
    total = 5000
    eigenvalues, distance = generator.lognormal(-3, 2, total), distances(generator.laplace(size=total))

    def gap(sparsity: float) -> float:
        radius = np.interp(sparsity, np.arange(total + 1) / total, distance)
        magnitudes = np.abs(eigenvalues)
        return 1 - float((magnitudes / (magnitudes + 2 * epsilon / radius**2)).mean()) - sparsity

    root = scipy.optimize.brentq(gap, 1e-3, 1, xtol=1e-10)
    found = solve_limit(
        distance, lambda r: removable_fraction(lambda mu: effective_dimension(eigenvalues, mu), r, epsilon, total)
    )
    assert root - 1 / total <= found <= root


def test_bisection_needs_a_logarithmic_number_of_evaluations() -> None:
    calls = []

    def removable(radius: np.ndarray) -> np.ndarray:
        calls.append(len(radius))
        return 1 - radius

    assert solve_limit(np.linspace(0, 1, 2**16 + 1), removable) == 0.5
    assert sum(calls) <= 17


def test_flat_loss_lets_everything_go() -> None:
    assert solve_limit(np.arange(11.0), np.ones_like) == 1


def test_no_room_at_all_removes_nothing() -> None:
    assert solve_limit(np.arange(11.0), np.zeros_like) == 0


@given(eigenvalues=eigenvalue_arrays, epsilon=positive, radius=st.floats(1e-3, 1e3), factor=st.floats(1, 1e3))
def test_removable_fraction_falls_with_the_distance(
    eigenvalues: np.ndarray, epsilon: float, radius: float, factor: float
) -> None:
    near, far = removable_fraction(
        lambda mu: effective_dimension(eigenvalues, mu), np.array([radius, radius * factor]), epsilon, len(eigenvalues)
    )
    assert far <= near + 1e-12  # sums in floating point
    assert 0 <= far <= 1 + 1e-12
    assert 0 <= near <= 1 + 1e-12


@given(eigenvalues=eigenvalue_arrays, epsilon=positive, radius=st.floats(1e-3, 1e3), factor=st.floats(1, 1e3))
def test_removable_fraction_rises_with_epsilon(
    eigenvalues: np.ndarray, epsilon: float, radius: float, factor: float
) -> None:
    tight, loose = (
        removable_fraction(lambda mu: effective_dimension(eigenvalues, mu), np.array([radius]), e, len(eigenvalues))[0]
        for e in (epsilon, epsilon * factor)
    )
    assert tight <= loose + 1e-12


def test_everything_is_removable_at_distance_zero() -> None:
    fractions = removable_fraction(lambda mu: effective_dimension(np.ones(4), mu), np.array([0.0, 1.0]), 0.5, 4)
    np.testing.assert_allclose(fractions, [1, 0.5])


@given(eigenvalues=eigenvalue_arrays, epsilon=positive, radius=st.floats(1e-2, 1e2), c=st.floats(0.01, 100))
def test_weights_times_c_divide_mu_by_c_squared(
    eigenvalues: np.ndarray, epsilon: float, radius: float, c: float
) -> None:
    total = len(eigenvalues)
    scaled = removable_fraction(lambda mu: effective_dimension(eigenvalues, mu), np.array([c * radius]), epsilon, total)
    mu = 2 * epsilon / radius**2
    expected = 1 - effective_dimension(eigenvalues, mu / c**2) / total
    assert scaled[0] == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


@given(c=st.floats(0.01, 100), seed=st.integers(0, 10**6))
def test_network_times_c_has_the_limit_at_epsilon_over_c_squared(c: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(8, 6, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(6, 8, generator=generator, dtype=torch.float64))
    eigenvalues = np.random.default_rng(seed).lognormal(0, 2, 48)

    def limit(distance: np.ndarray, epsilon: float) -> float:
        return solve_limit(
            distance, lambda r: removable_fraction(lambda mu: effective_dimension(eigenvalues, mu), r, epsilon, 48)
        )

    before = MagnitudePath(model).distance
    with torch.no_grad():
        model.weight.mul_(c)
    # One weight of slack: a tie at the root may break either way in floating point.
    assert limit(MagnitudePath(model).distance, 0.3) == pytest.approx(limit(before, 0.3 / c**2), abs=1.01 / 48)


@given(eigenvalues=eigenvalue_arrays, mu=st.floats(1e-6, 1e6))
def test_effective_dimension_is_the_plain_sum(eigenvalues: np.ndarray, mu: float) -> None:
    expected = sum(abs(x) / (abs(x) + mu) for x in eigenvalues.tolist())
    assert effective_dimension(eigenvalues, mu) == pytest.approx(expected)


def test_effective_dimension_accepts_tensors_and_many_mu() -> None:
    found = effective_dimension(torch.tensor([1.0, -3.0, 0.0]), np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(found, [[0.5 + 0.75], [0.25 + 0.5]])


def test_kinematic_margin_at_the_published_example() -> None:
    # theory: D = 3.9e6 and eta = 0.01 give 0.35 points.
    assert kinematic_margin(3_900_000, 0.01) == pytest.approx(0.0035, abs=5e-5)


def test_kinematic_margin_falls_with_the_root_of_the_dimension() -> None:
    assert kinematic_margin(100) == pytest.approx(2 * kinematic_margin(400))
