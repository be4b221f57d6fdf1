r"""Minima of a quadratic on a subspace: on all of it, and within a ball around the point where the subspace was entered.

The question behind the limit is whether some point :math:`w^* + d + z`, with z in a subspace, has a low loss. In the
quadratic model both minima have closed forms, up to one scalar equation for the ball.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.optimize import brentq

from prunelimit.errors import PruneLimitError


def affine_minimum(curvatures: np.ndarray, rows: np.ndarray, point: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Minimise :math:`\frac12 \sum_i c_i (d_i + (U z)_i)^2` over all z, in the eigenbasis of a positive definite matrix.

    Any subspace will do, coordinates as well as random ones: it is given by its basis, turned into the eigenbasis.

    Args:
        curvatures: ``(D,)`` eigenvalues, all positive: add a small ridge to a singular matrix.
        rows: ``(n, D)`` basis of the subspace, one vector per row, independent but not necessarily orthonormal.
        point: ``(D,)`` the point d, through which the subspace is laid.

    Returns:
        The minimum and the ``(n,)`` coefficients z of the minimiser.

    Raises:
        PruneLimitError: If a curvature is not positive.

    Example:
        >>> value, z = affine_minimum(np.array([1.0, 4.0]), np.array([[1.0, 1.0]]), np.array([1.0, 0.0]))
        >>> round(value, 12), round(float(z[0]), 12)
        (0.4, -0.2)
    """
    if not (curvatures > 0).all():
        raise PruneLimitError("curvatures must all be positive: add a small ridge to the eigenvalues.")
    if not len(rows):
        return float(curvatures @ point**2) / 2, np.zeros(0)
    weighted = rows * curvatures
    z = cho_solve(cho_factor(weighted @ rows.T, overwrite_a=True, check_finite=False), -(weighted @ point))
    # Not by the difference of two large numbers: whatever rounding did to z, this is the value at z.
    return float(curvatures @ (point + z @ rows) ** 2) / 2, z


def ball_minimum(matrix: np.ndarray, slope: np.ndarray, radius: float) -> tuple[float, np.ndarray]:
    r"""Minimise :math:`b^\top z + \frac12 z^\top M z` over the ball :math:`\lVert z \rVert \le r`, M symmetric with any signs.

    Source: Moré and Sorensen (1983): z is a minimiser if and only if :math:`(M + \nu I) z = -b` for a multiplier
    :math:`\nu \ge 0` that makes :math:`M + \nu I` positive semidefinite and is zero unless z lies on the sphere. With all
    eigenvalues of M the multiplier is the root of a falling function.

    Args:
        matrix: ``(n, n)`` M.
        slope: ``(n,)`` b.
        radius: r, at least zero.

    Returns:
        The minimum, at most zero, and the ``(n,)`` minimiser.

    Raises:
        PruneLimitError: If the radius is negative or not finite.

    Example:
        >>> value, z = ball_minimum(np.diag([1.0, -1.0]), np.array([3.0, 0.0]), 2.0)
        >>> round(value, 12), [round(abs(float(entry)), 12) for entry in z]
        (-4.25, [1.5, 1.322875655532])
    """
    if not (radius >= 0 and np.isfinite(radius)):
        raise PruneLimitError(f"radius={radius!r} must be a finite number, at least zero.")
    if not len(slope) or radius == 0:
        return 0.0, np.zeros(len(slope))
    values, vectors = eigh(matrix, driver="evd", check_finite=False)
    c = vectors.T @ slope
    z = vectors @ _in_eigenbasis(values, c, radius)
    return float(slope @ z + z @ (matrix @ z) / 2), z


def _in_eigenbasis(values: np.ndarray, c: np.ndarray, radius: float) -> np.ndarray:
    """Solve the problem for a diagonal matrix, eigenvalues in rising order."""
    length = float(np.linalg.norm(c))
    scale = max(float(np.abs(values).max()), length / radius)
    if scale == 0:
        return np.zeros_like(c)
    tiny = 1e-14 * scale

    def step(nu: float) -> np.ndarray:
        shifted = values + nu
        # Where the shifted matrix is singular, b has no part, or nu is not a multiplier: the least-norm solution.
        return np.divide(-c, shifted, out=np.zeros_like(c), where=shifted > tiny)

    least = max(0.0, -float(values[0]))
    first = step(least)
    singular = (values + least) <= tiny
    reaches = bool(singular.any()) and float(np.abs(c[singular]).max()) > 1e-13 * length
    if not reaches and np.linalg.norm(first) <= radius:
        if least > 0:  # the hard case: any length along the lowest curvature is left over
            first[0] += np.sqrt(max(radius**2 - float(first @ first), 0.0))
        return first

    def excess(nu: float) -> float:
        return 1 / radius - 1 / max(float(np.linalg.norm(step(nu))), np.finfo(float).tiny)

    low, high = least + 2 * tiny, least + length / radius + 3 * tiny  # at the high end the step is short enough
    if excess(low) <= 0:  # the root lies within rounding of the singular end
        z = step(low)
        z[0] += np.copysign(np.sqrt(max(radius**2 - float(z @ z), 0.0)), -c[0])
        return z
    return step(brentq(excess, low, high, xtol=1e-15 * scale, rtol=1e-13))
