"""Statistical dimension by Monte Carlo, and the Gaussian width of ellipsoids by a one-dimensional integral."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from prunelimit.checks import integer
from prunelimit.errors import PruneLimitError
from prunelimit.geometry.checks import positive_vector
from prunelimit.geometry.cones import Cone
from prunelimit.geometry.sampling import Random

#: Numbers that a batch of normal vectors may hold.
BATCH = 2**20


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate.

    Attributes:
        value: The mean.
        error: Its standard error.
        exact: The true value, where the cone knows it.
    """

    value: float
    error: float
    exact: float | None = None

    def __str__(self) -> str:
        """Write the value with its standard error."""
        return f"{self.value:.4g} ± {self.error:.2g}"


def projected_squares(cone: Cone, samples: int = 2000, seed: Random = 0, radial: bool = False) -> np.ndarray:
    r"""Draw the random variable whose mean is the statistical dimension.

    Args:
        cone: The cone.
        samples: Number of standard normal vectors xi.
        seed: Generator or seed.
        radial: Whether to keep the random length of xi. If not, :math:`\|\Pi_C \xi\|^2` is replaced by its mean given the
            direction, :math:`D \|\Pi_C \xi\|^2 / \|\xi\|^2`: for a cone, length and direction are independent. The mean stays
            the same and the variance cannot grow; it falls by :math:`2 D\, \mathrm{E} (\|\Pi_C \xi\|^2 / \|\xi\|^2)^2`, more
            than a control variate :math:`\|\xi\|^2 - D` with the best factor could do.

    Returns:
        ``(samples,)`` values.
    """
    integer("samples", samples)
    rng = np.random.default_rng(seed)
    parts, left, rows = [], samples, max(1, BATCH // cone.ambient)
    while left:
        vectors = rng.standard_normal((min(rows, left), cone.ambient))
        squares = (cone.project(vectors) ** 2).sum(axis=1)
        parts.append(squares if radial else cone.ambient * squares / (vectors**2).sum(axis=1))
        left -= len(vectors)
    return np.concatenate(parts)


def statistical_dimension(cone: Cone, samples: int = 2000, seed: Random = 0) -> Estimate:
    r"""Estimate :math:`\delta(C) = \mathrm{E} \|\Pi_C \xi\|^2` by Monte Carlo.

    Use it where ``cone.statistical_dimension()`` is ``None``. The variance of one sample is at most of the order of D.

    Args:
        cone: The cone.
        samples: Number of standard normal vectors, at least two.
        seed: Generator or seed.

    Returns:
        The mean, its standard error, and the exact value where it is known.

    Examples:
        >>> from prunelimit.geometry import Orthant
        >>> found = statistical_dimension(Orthant(40), samples=4000)
        >>> abs(found.value - found.exact) < 3 * found.error
        True
    """
    values = projected_squares(cone, integer("samples", samples, least=2), seed)
    error = float(values.std(ddof=1)) / math.sqrt(samples)
    return Estimate(float(values.mean()), error, cone.statistical_dimension())


def gaussian_width_ellipsoid(half_axes: Any) -> float:
    r"""Compute the Gaussian width of an ellipsoid, :math:`\mathrm{E} (\sum_i r_i^2 \xi_i^2)^{1/2}`.

    The root is written as an integral over the Laplace transform, :math:`\mathrm{E} X^{1/2} = \frac{1}{2 \sqrt \pi}
    \int_0^\infty (1 - \mathrm{E} e^{-t X})\, t^{-3/2} dt` with :math:`\mathrm{E} e^{-t X} = \prod_i (1 + 2 t r_i^2)^{-1/2}`, and
    summed by the trapezoidal rule in log t, which converges exponentially here.

    Args:
        half_axes: ``(D,)`` half-axes r.

    Returns:
        The width, right to about twelve digits.

    Examples:
        >>> round(gaussian_width_ellipsoid([1.0]), 12) == round(math.sqrt(2 / math.pi), 12)
        True
    """
    axes = positive_vector("half_axes", half_axes)
    scale = math.sqrt(float((axes**2).sum()))
    squares, step = (axes / scale) ** 2, 0.25
    points = np.arange(-80, 80 + step, step)
    logarithm = np.array([-0.5 * np.log1p(2 * math.exp(v) * squares).sum() for v in points])
    return float(scale * step * (-np.expm1(logarithm) * np.exp(-points / 2)).sum() / (2 * math.sqrt(math.pi)))


def projected_width(half_axes: Any, distance: float) -> float:
    r"""Compute the width of an ellipsoid as it is seen on the unit sphere around a point at a distance.

    Seen from the distance R, perpendicular to the line of sight, a half-axis r appears as the sine :math:`r / (R^2 + r^2)^{1/2}`.
    The width is that of the ellipsoid with these half-axes; its square lies between :math:`2 / \pi` times and once
    :func:`ellipsoid_dimension` by Jensen's inequality, and less than one below the latter. Source: Larsen et al. (2022).

    Args:
        half_axes: ``(D,)`` half-axes r.
        distance: Distance R, not negative.

    Returns:
        The width.

    Raises:
        PruneLimitError: If the distance is negative.
    """
    axes = positive_vector("half_axes", half_axes)
    if not distance >= 0:
        raise PruneLimitError(f"distance={distance!r} must not be negative.")
    return gaussian_width_ellipsoid(1 / np.hypot(1, distance / axes))
