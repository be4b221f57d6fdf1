"""gauss_rule and radau_rule: degrees of exactness, the prescribed node, and the bracket."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.curvature import Spectrum, Tridiagonal, gauss_rule, lanczos, radau_rule
from prunelimit.curvature.quadrature import squared

Operator = Callable[[Tensor], object]


def problem(seed: int, dimension: int, low: float = -1.0, high: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Random eigenvalues, and the squared components of a random unit vector in the eigenbasis."""
    generator = np.random.default_rng(seed)
    start = generator.standard_normal(dimension)
    return generator.uniform(low, high, dimension), start**2 / (start**2).sum()


def coefficients(
    operator: Operator, eigenvalues: np.ndarray, weights: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    found = lanczos(operator(torch.diag(torch.tensor(eigenvalues))), torch.tensor(np.sqrt(weights)), steps)
    return found.alpha, found.beta


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 8))
def test_gauss_is_exact_up_to_degree_2k_minus_1(matrix_operator: Operator, seed: int, steps: int) -> None:
    eigenvalues, weights = problem(seed, 30)
    nodes, found = gauss_rule(*coefficients(matrix_operator, eigenvalues, weights, steps))
    for degree in range(2 * steps):
        assert found @ nodes**degree == pytest.approx(weights @ eigenvalues**degree, abs=1e-10)


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 8))
def test_gauss_is_not_exact_beyond(matrix_operator: Operator, seed: int, steps: int) -> None:
    eigenvalues, weights = problem(seed, 30)
    alpha, beta = coefficients(matrix_operator, eigenvalues, weights, steps)
    nodes, found = gauss_rule(alpha, beta)
    # The error at degree 2k is exactly the square of the product of the betas: the next polynomial's norm.
    error = weights @ eigenvalues ** (2 * steps) - found @ nodes ** (2 * steps)
    assert error == pytest.approx(np.prod(beta) ** 2, rel=1e-6, abs=1e-14)
    assert error > 0


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 8), node=st.sampled_from([-2.0, -1.5, 1.7]))
def test_radau_is_exact_up_to_degree_2k(matrix_operator: Operator, seed: int, steps: int, node: float) -> None:
    eigenvalues, weights = problem(seed, 30)
    nodes, found = radau_rule(*coefficients(matrix_operator, eigenvalues, weights, steps), node)
    for degree in range(2 * steps + 1):
        assert found @ nodes**degree == pytest.approx(weights @ eigenvalues**degree, abs=1e-9)


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 12), node=st.sampled_from([-1.5, 0.0, 1.2]))
def test_radau_has_the_prescribed_node(matrix_operator: Operator, seed: int, steps: int, node: float) -> None:
    eigenvalues, weights = problem(seed, 30)
    nodes, found = radau_rule(*coefficients(matrix_operator, eigenvalues, weights, steps), node)
    assert len(nodes) == steps + 1
    # Inside the spectrum a Ritz value may fall near the node, and the other new node then lies far away: scale by it.
    assert np.abs(nodes - node).min() < 1e-12 * max(1, np.abs(nodes).max())
    assert found.sum() == pytest.approx(1)


@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 25),
    zeros=st.integers(0, 20),
    mu=st.floats(1e-6, 10),
)
def test_gauss_and_radau_enclose_the_truth_for_psd(
    matrix_operator: Operator, seed: int, steps: int, zeros: int, mu: float
) -> None:
    eigenvalues, weights = problem(seed, 40, 0.0, 2.0)
    eigenvalues[:zeros] = 0
    alpha, beta = coefficients(matrix_operator, eigenvalues, weights, steps)

    def integrate(nodes: np.ndarray, shares: np.ndarray) -> float:
        return float(shares @ (np.abs(nodes) / (np.abs(nodes) + mu)))

    exact = integrate(eigenvalues, weights)
    # A node at -1e-17 instead of 0 and an eigensolver's rounding are worth about 1e-16 / mu.
    slack = 1e-9
    assert integrate(*gauss_rule(alpha, beta)) >= exact - slack
    assert integrate(*radau_rule(alpha, beta)) <= exact + slack


@given(seed=st.integers(0, 10**6), steps=st.integers(2, 10))
def test_bracket_narrows_from_step_to_step_for_psd(matrix_operator: Operator, seed: int, steps: int) -> None:
    eigenvalues, weights = problem(seed, 40, 0.0, 2.0)
    alpha, beta = coefficients(matrix_operator, eigenvalues, weights, steps)
    values = []
    for k in (steps - 1, steps):
        for nodes, shares in (gauss_rule(alpha[:k], beta[:k]), radau_rule(alpha[:k], beta[:k])):
            values.append(float(shares @ (np.abs(nodes) / (np.abs(nodes) + 0.1))))
    before, after = values[0] - values[1], values[2] - values[3]
    assert after <= before + 1e-10


def test_complete_krylov_space_makes_both_rules_exact(matrix_operator: Operator) -> None:
    eigenvalues = np.array([0.0, 1.0, 3.0, 3.0, 0.0])
    weights = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    alpha, beta = coefficients(matrix_operator, eigenvalues, weights, 5)
    for nodes, shares in (gauss_rule(alpha, beta), radau_rule(alpha, beta)):
        np.testing.assert_allclose(nodes, [0, 1, 3], atol=1e-12)
        np.testing.assert_allclose(shares, [0.3, 0.2, 0.5], atol=1e-12)


def test_radau_at_a_ritz_value_is_the_gauss_rule() -> None:
    # Once wrong: SciPy divides by zero for a 1 x 1 matrix instead of raising LinAlgError, and the rule is not finite.
    alpha, beta = np.array([0.0]), np.array([1.0])
    for found, expected in zip(radau_rule(alpha, beta, 0.0), gauss_rule(alpha, beta), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rule_of_one_step_is_the_rayleigh_quotient() -> None:
    nodes, weights = gauss_rule(np.array([2.5]), np.array([0.7]))
    assert (nodes.tolist(), weights.tolist()) == ([2.5], [1.0])


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 9))
def test_squared_is_lanczos_with_the_square(matrix_operator: Operator, seed: int, steps: int) -> None:
    eigenvalues, weights = problem(seed, 30)
    alpha, beta = coefficients(matrix_operator, eigenvalues, weights, steps)
    diagonal, coupling = squared(Tridiagonal(alpha, beta))
    expected = coefficients(matrix_operator, eigenvalues**2, weights, (steps + 1) // 2)
    assert len(coupling) == steps // 2
    np.testing.assert_allclose(diagonal, expected[0], atol=1e-9)
    np.testing.assert_allclose(coupling, expected[1][: len(coupling)], atol=1e-9)


@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 25),
    zeros=st.integers(0, 20),
    mu=st.floats(1e-6, 10),
    skew=st.floats(0, 1),
)
def test_rules_of_the_square_enclose_the_truth_for_any_signs(
    matrix_operator: Operator, seed: int, steps: int, zeros: int, mu: float, skew: float
) -> None:
    eigenvalues, weights = problem(seed, 40, -2.0 * skew, 2.0)
    eigenvalues[:zeros] = 0
    found = Tridiagonal(*coefficients(matrix_operator, eigenvalues, weights, steps))
    exact = float(weights @ (np.abs(eigenvalues) / (np.abs(eigenvalues) + mu)))
    spectrum = Spectrum(10**12, (found,))  # so large that the probe has no noise
    _, low, high = spectrum.effective_dimension(mu)
    slack = 1e-6
    assert low / 10**12 - slack <= exact <= high / 10**12 + slack


def test_lower_rule_is_not_lifted_by_rounding_in_its_node_at_zero(matrix_operator: Operator) -> None:
    # Rounding of 1e-16 in the square is one of 1e-8 in its root, which counts for a resolution that is as fine.
    generator = np.random.default_rng(0)
    eigenvalues = np.concatenate([[1.0], 10 ** generator.uniform(-9, -2, 199) * generator.choice([1, -1], 199)])
    eigenvalues[100:] = 0
    weights = generator.standard_normal(200) ** 2
    weights /= weights.sum()
    found = Tridiagonal(*coefficients(matrix_operator, eigenvalues, weights, 40))
    nodes, _ = radau_rule(*squared(found))
    assert nodes[0] == 0
    mu = np.array([1e-8, 1e-9])
    exact = np.array([weights @ (np.abs(eigenvalues) / (np.abs(eigenvalues) + m)) for m in mu])
    assert (Spectrum(200, (found,)).start_form(mu)[1] <= exact).all()


def test_gauss_rule_of_an_indefinite_matrix_may_fall_below_the_truth(matrix_operator: Operator) -> None:
    # Why the square is needed: for PSD matrices Gauss is an upper bound, here it is none.
    below = 0
    for seed in range(40):
        eigenvalues, weights = problem(seed, 60)
        nodes, shares = gauss_rule(*coefficients(matrix_operator, eigenvalues, weights, 7))
        exact = weights @ (np.abs(eigenvalues) / (np.abs(eigenvalues) + 0.1))
        below += shares @ (np.abs(nodes) / (np.abs(nodes) + 0.1)) < exact - 1e-6
    assert below > 5


def test_squared_of_a_complete_krylov_space_is_complete(matrix_operator: Operator) -> None:
    found = Tridiagonal(*coefficients(matrix_operator, np.array([-1.0, 1.0, 2.0]), np.array([0.25, 0.25, 0.5]), 3))
    diagonal, coupling = squared(found)
    assert coupling[-1] == 0
    nodes, weights = gauss_rule(diagonal, coupling)
    np.testing.assert_allclose(nodes, [1, 4], atol=1e-10)
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=1e-10)


@pytest.mark.parametrize("rule", ["tail", "gauss", "radau", "middle"])
def test_the_form_of_a_chosen_vector_has_no_noise_of_a_probe(matrix_operator: Operator, rule: str) -> None:
    eigenvalues, weights = problem(0, 40)
    found = Spectrum(40, (Tridiagonal(*coefficients(matrix_operator, eigenvalues, weights, 18)),))
    mu = np.array([1e-3, 0.1, 2.0])
    exact = np.array([(weights * np.abs(eigenvalues) / (np.abs(eigenvalues) + m)).sum() for m in mu])
    value, low, high = found.start_form(mu, rule)
    assert (low <= exact).all()
    assert (exact <= high).all()
    assert value == pytest.approx(exact, abs=0.1)
    rest, rest_low, rest_high = found.start_form(mu, rule, complement=True)
    for one, other in ((value, rest), (low, rest_high), (high, rest_low)):
        assert one + other == pytest.approx(1, abs=1e-12)
    if rule == "gauss":  # no node at zero: where everything is stiff, the rest keeps its digits
        exact_rest = float((weights * 1e-14 / (np.abs(eigenvalues) + 1e-14)).sum())
        assert float(found.start_form(1e-14, rule, complement=True)[1]) <= exact_rest
