"""The minimum of a quadratic on a subspace, against least squares, a Schur complement and a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize

from prunelimit.errors import PruneLimitError
from prunelimit.minima import affine_minimum


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    curvatures = np.logspace(-4, 1, 12)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    return curvatures, turn, rng.standard_normal(12)


@pytest.mark.parametrize("kept", [1, 5, 11])
def test_coordinates_give_the_schur_complement(problem, kept):
    curvatures, turn, d = problem
    d = np.where(np.arange(12) < kept, 0, d)
    hessian = (turn * curvatures) @ turn.T
    pp, pk, kk = hessian[kept:, kept:], hessian[kept:, :kept], hessian[:kept, :kept]
    expected = d[kept:] @ (pp - pk @ np.linalg.solve(kk, pk.T)) @ d[kept:] / 2
    value, z = affine_minimum(curvatures, turn[:kept], turn.T @ d)
    assert value == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(z, -np.linalg.solve(kk, pk.T @ d[kept:]), rtol=1e-6)


def test_a_skew_basis_gives_what_an_optimiser_finds(problem):
    curvatures, _, d = problem
    rows = np.random.default_rng(1).standard_normal((4, 12))
    found = minimize(lambda z: curvatures @ (d + z @ rows) ** 2 / 2, np.zeros(4), tol=1e-12)
    assert affine_minimum(curvatures, rows, d)[0] == pytest.approx(found.fun, rel=1e-8)


def test_no_direction_and_every_direction(problem):
    curvatures, turn, d = problem
    assert affine_minimum(curvatures, np.zeros((0, 12)), d)[0] == pytest.approx(curvatures @ d**2 / 2)
    assert affine_minimum(curvatures, turn, d)[0] == pytest.approx(0, abs=1e-12)


def test_a_singular_matrix_is_refused(problem):
    curvatures, turn, d = problem
    with pytest.raises(PruneLimitError, match="curvatures must all be positive"):
        affine_minimum(np.where(curvatures < 1e-3, 0, curvatures), turn[:3], d)
