"""formula_limit: the limit from recorded coefficients, without network or data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.curvature import Spectrum, spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.limit import CURVE_POINTS, formula_limit, kinematic_margin

Operator = Callable[[Tensor], object]
TOTAL = 2000


@pytest.fixture(scope="module")
def found(matrix_operator: Operator) -> Spectrum:
    class Diagonal(matrix_operator):  # type: ignore[misc, valid-type]
        def __matmul__(self, vectors: Tensor) -> Tensor:
            return self.matrix * vectors

    return spectrum(Diagonal(torch.logspace(-6, 1, TOTAL, dtype=torch.float64)), steps=60)


@pytest.fixture(scope="module")
def distance() -> np.ndarray:
    weights = np.sort(np.abs(np.random.default_rng(1).laplace(size=TOTAL)))
    return np.sqrt(np.concatenate([[0], np.cumsum(weights**2)]))


@given(epsilon=st.floats(1e-6, 1e3))
def test_interval_holds_the_value(found: Spectrum, distance: np.ndarray, epsilon: float) -> None:
    limit = formula_limit(found, distance, epsilon)
    assert 0 <= limit.interval[0] <= limit.sparsity <= limit.interval[1] <= 1


@given(epsilon=st.floats(1e-6, 1e3), factor=st.floats(1, 100))
def test_limit_rises_with_epsilon(found: Spectrum, distance: np.ndarray, epsilon: float, factor: float) -> None:
    loose = formula_limit(found, distance, epsilon * factor).sparsity
    # Rounding may break a tie at the root the other way.
    assert loose >= formula_limit(found, distance, epsilon).sparsity - 1.01 / TOTAL


def test_value_solves_the_fixed_point_equation(found: Spectrum, distance: np.ndarray) -> None:
    limit = formula_limit(found, distance, 0.1)
    dimension = found.effective_dimension(2 * 0.1 / limit.radius**2)[0]
    assert limit.sparsity == pytest.approx(1 - float(dimension) / TOTAL, abs=2 / TOTAL)
    assert limit.dimension == pytest.approx(float(dimension))
    assert limit.radius == distance[round(limit.sparsity * TOTAL)]


def test_bounds_solve_the_shifted_equation(found: Spectrum, distance: np.ndarray) -> None:
    limit = formula_limit(found, distance, 0.1)
    margin = kinematic_margin(TOTAL)
    for bound, shift in ((limit.lower, -margin), (limit.upper, margin)):
        assert bound is not None
        radius = distance[round(bound * TOTAL)]
        expected = 1 - float(found.effective_dimension(2 * 0.1 / radius**2)[0]) / TOTAL + shift
        assert bound == pytest.approx(min(expected, 1), abs=2 / TOTAL)
    assert limit.lower < limit.sparsity < limit.upper


def test_curve_crosses_the_diagonal_at_the_limit(found: Spectrum, distance: np.ndarray) -> None:
    limit = formula_limit(found, distance, 0.1)
    curve = limit.curve
    assert list(curve.columns) == ["sparsity", "radius", "removable", "low", "high"]
    assert len(curve) == CURVE_POINTS
    crossing = curve.sparsity[curve.removable >= curve.sparsity].max()
    assert crossing == pytest.approx(limit.sparsity, abs=2 / CURVE_POINTS)


def test_curve_is_monotone_and_inside_its_band(found: Spectrum, distance: np.ndarray) -> None:
    curve = formula_limit(found, distance, 0.1).curve
    assert curve.radius.is_monotonic_increasing
    assert (curve.removable.diff().dropna() <= 1e-12).all()
    assert ((curve.low <= curve.removable) & (curve.removable <= curve.high)).all()


def test_coarse_distances_are_enough(found: Spectrum, distance: np.ndarray) -> None:
    # A record keeps the curve at 1,000 points, whatever the size of the network.
    coarse = distance[:: TOTAL // 1000]
    assert formula_limit(found, coarse, 0.1).sparsity == pytest.approx(
        formula_limit(found, distance, 0.1).sparsity, abs=0.001
    )


@pytest.mark.parametrize("points", [20, 200])
def test_grid_of_coarse_distances_does_not_round_the_limit(found: Spectrum, distance: np.ndarray, points: int) -> None:
    # Other masks than magnitude have their distance at 200 sparsities: rounding down to them lost up to half a point.
    coarse = distance[:: TOTAL // points]
    for epsilon in (0.03, 0.1, 0.3):
        one, other = formula_limit(found, coarse, epsilon), formula_limit(found, distance, epsilon)
        ends = [(one.sparsity, other.sparsity), *zip(one.interval, other.interval, strict=True)]
        assert all(abs(a - b) < 0.1 / points for a, b in ends)


def test_record_gives_the_same_limit(found: Spectrum, distance: np.ndarray) -> None:
    again = Spectrum.from_dict(found.to_dict())
    assert formula_limit(again, distance, 0.1).to_dict() == formula_limit(found, distance, 0.1).to_dict()


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_epsilon_must_be_positive(found: Spectrum, distance: np.ndarray, epsilon: float) -> None:
    with pytest.raises(PruneLimitError, match="epsilon="):
        formula_limit(found, distance, epsilon)
