"""SteihaugPath and trusted_step: against dense solutions, the exact trust-region subproblem and hand-made losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.trust_region import SteihaugPath, trusted_step

seeds = st.integers(0, 10**6)
radii = st.floats(1e-3, 1e3)


def problem(seed: int, least: float, size: int = 12) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with eigenvalues from ``least`` to 3, and a slope."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.linspace(least, 3, size, dtype=torch.float64)) @ basis.T, basis @ torch.randn(
        size, generator=generator, dtype=torch.float64
    )


def value(matrix: Tensor, slope: Tensor, step: Tensor) -> float:
    return float(slope @ step + step @ matrix @ step / 2)


def exact_value(matrix: Tensor, slope: Tensor, radius: float) -> float:
    """The least value in the ball, from all eigenvalues: (A + shift) z = -b with shift >= 0 and A + shift >= 0."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    parts = vectors.T @ slope

    def norm(shift: float) -> float:
        return float((parts / (eigenvalues + shift)).norm())

    least = max(0.0, -float(eigenvalues[0]))
    if eigenvalues[0] > 0 and norm(0.0) <= radius:
        shift = 0.0
    else:
        low, high = least + 1e-12 * (1 + least), least + float(slope.norm()) / radius + 1
        shift = scipy.optimize.brentq(lambda x: norm(x) - radius, low, high, xtol=1e-15)
    return value(matrix, slope, vectors @ (-parts / (eigenvalues + shift)))


def cauchy_value(matrix: Tensor, slope: Tensor, radius: float) -> float:
    """The least value in the ball along the steepest descent."""
    square, curvature = float(slope @ slope), float(slope @ matrix @ slope)
    longest = radius / math.sqrt(square)
    length = min(longest, square / curvature) if curvature > 0 else longest
    return value(matrix, slope, -length * slope)


def path_of(matrix: Tensor, slope: Tensor, accuracy: float = 1e-10) -> SteihaugPath:
    return SteihaugPath(lambda v: matrix @ v, slope, accuracy=accuracy)


@given(seed=seeds)
def test_positive_definite_without_a_radius_is_solved(seed: int) -> None:
    matrix, slope = problem(seed, 0.1)
    step, change, stopped = path_of(matrix, slope).step(math.inf)
    torch.testing.assert_close(step, -torch.linalg.solve(matrix, slope), rtol=1e-7, atol=1e-8)
    assert change == pytest.approx(value(matrix, slope, step), rel=1e-9)
    assert not stopped


@given(seed=seeds, radius=radii, least=st.sampled_from([0.1, -0.01, -2.0]))
def test_step_stays_in_the_ball_and_beats_the_cauchy_point(seed: int, radius: float, least: float) -> None:
    matrix, slope = problem(seed, least)
    step, change, stopped = path_of(matrix, slope).step(radius)
    assert float(step.norm()) <= radius * (1 + 1e-9)
    assert change == pytest.approx(value(matrix, slope, step), rel=1e-6, abs=1e-12)
    assert change <= cauchy_value(matrix, slope, radius) * (1 - 1e-9) < 0
    assert change >= exact_value(matrix, slope, radius) * (1 + 1e-6)
    if stopped:
        assert float(step.norm()) == pytest.approx(radius)


@given(seed=seeds, radius=radii)
def test_decrease_is_at_least_half_of_the_best_for_a_positive_definite_matrix(seed: int, radius: float) -> None:
    matrix, slope = problem(seed, 0.1)  # Yuan (2000)
    assert path_of(matrix, slope).step(radius)[1] <= exact_value(matrix, slope, radius) / 2


@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.9])
def test_decrease_on_a_trained_network_is_nearly_the_best(
    digits_hessian: Tensor, digits_weights: Tensor, sparsity: float
) -> None:
    order = digits_weights.abs().argsort(stable=True)
    removed, kept = order.tensor_split([int(sparsity * len(order))])
    pruned = -digits_weights[removed]
    matrix, slope = digits_hessian[kept][:, kept], digits_hessian[kept][:, removed] @ pruned
    assert torch.linalg.eigvalsh(matrix)[0] < 0
    for share in (0.1, 0.3, 1.0):
        radius = share * float(pruned.norm())
        found, best = path_of(matrix, slope, 0.01).step(radius)[1], exact_value(matrix, slope, radius)
        assert best * (1 + 1e-9) <= found <= 0.6 * best


@given(seed=seeds, least=st.sampled_from([0.1, -2.0]), many=st.lists(radii, min_size=2, max_size=6))
def test_one_path_serves_every_radius(seed: int, least: float, many: list[float]) -> None:
    matrix, slope = problem(seed, least)
    shared = path_of(matrix, slope)
    for radius in many:
        torch.testing.assert_close(shared.step(radius)[0], path_of(matrix, slope).step(radius)[0])


def test_a_smaller_radius_needs_no_product() -> None:
    matrix, slope = problem(0, 0.1)
    path = path_of(matrix, slope)
    path.step(0.5)
    made = path.products
    path.step(0.1)
    assert path.products == made > 0
    assert path_of(matrix, slope, 0.9).products == 0


def test_products_end_at_the_limit() -> None:
    matrix, slope = problem(0, 0.01)
    path = SteihaugPath(lambda v: matrix @ v, slope, accuracy=1e-12, limit=3)
    _, change, stopped = path.step(math.inf)
    assert path.products == 3
    assert change < 0
    assert not stopped


def test_nothing_to_gain_means_no_step() -> None:
    path = path_of(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert path.step(1.0)[1:] == (0.0, False)
    assert trusted_step(path, 1.0, lambda step: 1.0)[0] is None
    assert path.products == 0


@pytest.mark.parametrize("radius", [0.0, 1e-30])
def test_no_room_means_no_harm(radius: float) -> None:
    matrix, slope = problem(0, 0.1)
    assert float(path_of(matrix, slope).step(radius)[0].norm()) <= radius


# The test by the real loss


def counted(function: Callable[[Tensor], float]) -> tuple[Callable[[Tensor], float], list[float]]:
    norms: list[float] = []

    def call(step: Tensor) -> float:
        norms.append(float(step.norm()))
        return function(step)

    return call, norms


@pytest.mark.parametrize(("radius", "following"), [(0.5, 1.0), (100.0, 100.0)])
def test_exact_model_is_trusted_at_once(radius: float, following: float) -> None:
    matrix, slope = problem(1, 0.1)
    reduction, tried = counted(lambda step: -value(matrix, slope, step))
    step, change, after = trusted_step(path_of(matrix, slope), radius, reduction)
    assert step is not None
    assert change == pytest.approx(value(matrix, slope, step))
    assert len(tried) == 1
    assert after == following  # twice as far only if the radius was what stopped the step


def test_half_kept_promises_leave_the_radius_as_it_is() -> None:
    matrix, slope = problem(1, 0.1)
    assert trusted_step(path_of(matrix, slope), 0.5, lambda step: -0.5 * value(matrix, slope, step))[2] == 0.5


@pytest.mark.parametrize("bad", [math.nan, -math.inf, -1.0, 0.0])
def test_radius_shrinks_to_a_quarter_until_the_loss_falls(bad: float) -> None:
    matrix, slope = problem(1, 0.1)
    reduction, tried = counted(lambda step: bad if step.norm() > 0.05 else -value(matrix, slope, step))
    step, _, _ = trusted_step(path_of(matrix, slope), 0.5, reduction)
    assert step is not None
    assert tried == pytest.approx([0.5, 0.125, 0.03125])


def test_gives_up_where_no_radius_is_good() -> None:
    matrix, slope = problem(1, 0.1)
    reduction, tried = counted(lambda step: math.nan)
    assert trusted_step(path_of(matrix, slope), 0.5, reduction)[0] is None
    assert len(tried) == 20
