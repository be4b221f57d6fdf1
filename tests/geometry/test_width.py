"""Gaussian width of ellipsoids: closed forms, Monte Carlo, bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from prunelimit import PruneLimitError
from prunelimit.geometry import ellipsoid_dimension, gaussian_width_ellipsoid, projected_width


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
def test_a_ball_has_the_mean_of_the_chi_distribution(total: int) -> None:
    truth = math.sqrt(2) * math.exp(special.gammaln((total + 1) / 2) - special.gammaln(total / 2))
    assert gaussian_width_ellipsoid(np.full(total, 3.0)) == pytest.approx(3 * truth, rel=1e-12)


def test_an_ellipse_is_an_elliptic_integral() -> None:
    """E (a^2 x^2 + b^2 y^2)^(1/2) = E|(x, y)| times the mean over the angle, (2 / pi) a E(1 - b^2 / a^2)."""
    a, b = 2.0, 0.3
    truth = math.sqrt(math.pi / 2) * 2 / math.pi * a * special.ellipe(1 - (b / a) ** 2)
    assert gaussian_width_ellipsoid([a, b]) == pytest.approx(truth, rel=1e-12)


def test_monte_carlo() -> None:
    axes = np.geomspace(1e-3, 1, 40)
    values = np.sqrt(np.random.default_rng(0).standard_normal((20_000, 40)) ** 2 @ axes**2)
    assert abs(gaussian_width_ellipsoid(axes) - values.mean()) < 3 * values.std() / math.sqrt(20_000)


@given(seed=st.integers(0, 2**32 - 1), total=st.integers(1, 30), distance=st.floats(0.01, 100))
def test_bounds(seed: int, total: int, distance: float) -> None:
    axes = 10 ** np.random.default_rng(seed).uniform(-4, 4, total)
    root = np.linalg.norm(axes)  # Jensen, from above and from below
    assert math.sqrt(2 / math.pi) * root * (1 - 1e-9) <= gaussian_width_ellipsoid(axes) <= root * (1 + 1e-9)
    assert gaussian_width_ellipsoid(5 * axes) == pytest.approx(5 * gaussian_width_ellipsoid(axes))
    square, formula = projected_width(axes, distance) ** 2, ellipsoid_dimension(axes, distance)
    assert max(2 / math.pi * formula, formula - 1) - 1e-9 <= square <= formula + 1e-9


def test_seen_from_the_centre_every_direction_is_full() -> None:
    assert projected_width([0.1, 5.0], 0.0) == pytest.approx(math.sqrt(math.pi / 2))


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: gaussian_width_ellipsoid([1.0, 0.0]), "^half_axes must all be positive"),
        (lambda: gaussian_width_ellipsoid([]), "^half_axes of shape"),
        (lambda: projected_width([1.0], -2.0), "^distance=-2.0"),
    ],
)
def test_bad_input(call, pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=pattern):
        call()
