r"""Closed convex cones, and the nearest point of each.

Every cone knows how to project. That is all that the statistical dimension needs, and by Moreau's theorem it is enough for
the polar cone as well: :math:`x = \Pi_C x + \Pi_{C^\circ} x`, with the two parts perpendicular.
"""

from __future__ import annotations

import abc
import itertools
import math
from typing import Any

import numpy as np
from scipy import integrate, optimize, special

from prunelimit.checks import integer
from prunelimit.errors import PruneLimitError
from prunelimit.geometry.checks import orthonormal, vector
from prunelimit.geometry.sampling import Random, random_subspace


class Cone(abc.ABC):
    """A closed convex cone.

    Attributes:
        ambient: Dimension D of the space that it lies in.
    """

    ambient: int

    @abc.abstractmethod
    def _project(self, points: np.ndarray) -> np.ndarray:
        """Map ``(n, D)`` points to the nearest points of the cone."""

    def project(self, points: Any) -> np.ndarray:
        """Return the nearest point of the cone.

        Args:
            points: ``(D,)`` or ``(n, D)``.

        Returns:
            An array of the same shape, float64.

        Raises:
            PruneLimitError: If the last dimension is not D.
        """
        array = np.asarray(points, dtype=float)
        if array.ndim not in (1, 2) or array.shape[-1] != self.ambient:
            raise PruneLimitError(
                f"points of shape {array.shape} must be ({self.ambient},) or (n, {self.ambient}): the cone's dimension."
            )
        return self._project(np.atleast_2d(array)).reshape(array.shape)

    def contains(self, points: Any, tolerance: float = 1e-9) -> Any:
        """Say whether points lie in the cone.

        Args:
            points: ``(D,)`` or ``(n, D)``.
            tolerance: Largest distance to the cone, as a fraction of the point's norm.

        Returns:
            A bool, or ``(n,)`` of them.
        """
        array = np.asarray(points, dtype=float)
        away = np.linalg.norm(array - self.project(array), axis=-1)
        inside = away <= tolerance * np.linalg.norm(array, axis=-1)
        return bool(inside) if array.ndim == 1 else inside

    def statistical_dimension(self) -> float | None:
        """Return the statistical dimension where it is known exactly, otherwise ``None``."""
        return None

    def polar(self) -> PolarCone:
        """Return the polar cone: all vectors whose inner products with the cone are at most zero."""
        return PolarCone(self)


class PolarCone(Cone):
    """The polar of another cone, projected onto by Moreau's theorem.

    Args:
        cone: The other cone.
    """

    def __init__(self, cone: Cone) -> None:
        self.cone, self.ambient = cone, cone.ambient

    def _project(self, points: np.ndarray) -> np.ndarray:
        return points - self.cone.project(points)

    def statistical_dimension(self) -> float | None:
        """Return D minus that of the other cone, where it is known."""
        value = self.cone.statistical_dimension()
        return None if value is None else self.ambient - value

    def polar(self) -> Any:
        """Return the cone that we began with."""
        return self.cone


class Subspace(Cone):
    """A linear subspace.

    Args:
        basis: ``(D, k)`` with orthonormal columns.
    """

    def __init__(self, basis: Any) -> None:
        self.basis = orthonormal("basis", basis)
        self.ambient, self.dimension = self.basis.shape

    @classmethod
    def random(cls, dimension: int, ambient: int, rng: Random) -> Subspace:
        """Draw a uniformly random subspace.

        Args:
            dimension: Its dimension k.
            ambient: Dimension D of the space.
            rng: Generator or seed.

        Returns:
            The subspace.
        """
        return cls(random_subspace(dimension, ambient, rng))

    def _project(self, points: np.ndarray) -> np.ndarray:
        return (points @ self.basis) @ self.basis.T

    def statistical_dimension(self) -> float:
        """Return k: the usual dimension."""
        return float(self.dimension)


class Orthant(Cone):
    """All vectors without a negative entry.

    Args:
        dimension: D.
    """

    def __init__(self, dimension: int) -> None:
        self.ambient = integer("dimension", dimension)

    def _project(self, points: np.ndarray) -> np.ndarray:
        return np.maximum(points, 0)

    def statistical_dimension(self) -> float:
        """Return D / 2: each coordinate of a normal vector is positive half of the time."""
        return self.ambient / 2


class CircularCone(Cone):
    """All vectors within an angle of an axis.

    Args:
        dimension: D, at least two.
        angle: Half-angle in radians, from 0 (a ray) to pi / 2 (a half-space).
        axis: ``(D,)`` direction of the axis; by default the first coordinate.

    Raises:
        PruneLimitError: If the angle lies outside or the axis is zero or of another dimension.
    """

    def __init__(self, dimension: int, angle: float, axis: Any = None) -> None:
        self.ambient = integer("dimension", dimension, least=2)
        if not 0 <= angle <= math.pi / 2:
            raise PruneLimitError(f"angle={angle!r} must lie between 0 and pi/2: a wider cone is not convex.")
        self.angle = float(angle)
        axis = np.eye(1, dimension)[0] if axis is None else vector("axis", axis)
        norm = np.linalg.norm(axis)
        if axis.shape != (dimension,) or norm == 0:
            raise PruneLimitError(f"axis of shape {axis.shape} must be a vector of {dimension} numbers, not all zero.")
        self.axis = axis / norm

    def _project(self, points: np.ndarray) -> np.ndarray:
        along = points @ self.axis
        across = points - along[:, None] * self.axis
        radius = np.linalg.norm(across, axis=1)
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        inside = radius * cosine <= along * sine
        # Otherwise the nearest ray is the edge that lies in the plane of the point and the axis; none helps in the polar.
        length = np.maximum(along * cosine + radius * sine, 0)
        direction = across / np.where(radius > 0, radius, 1)[:, None]
        edge = length[:, None] * (cosine * self.axis + sine * direction)
        return np.where(inside[:, None], points, edge)

    def statistical_dimension(self) -> float:
        r"""Integrate over the angle to the axis; close to :math:`D \sin^2 \alpha + \cos 2 \alpha` for large D.

        A normal vector at angle theta keeps all of its square if theta is at most alpha, the share
        :math:`\cos^2(\theta - \alpha)` up to a right angle more, then nothing; theta has a density proportional to
        :math:`\sin^{D-2} \theta`.

        Returns:
            The statistical dimension, right to about ten digits.
        """
        total, angle = self.ambient, self.angle
        logarithm = special.gammaln(total / 2) - special.gammaln((total - 1) / 2) - math.log(math.pi) / 2

        def integrand(theta: float) -> float:
            density = math.exp(logarithm + (total - 2) * math.log(max(math.sin(theta), 1e-300)))
            return density * (1.0 if theta <= angle else math.cos(theta - angle) ** 2)

        end = min(angle + math.pi / 2, math.pi)
        spread = [math.pi / 2 + k / math.sqrt(total) for k in (-12, -6, -3, -1, 0, 1, 3, 6, 12)]
        ends = sorted({0.0, end, angle, *(p for p in spread if 0 < p < end)})
        parts = [integrate.quad(integrand, a, b, epsabs=1e-14)[0] for a, b in itertools.pairwise(ends)]
        return total * math.fsum(parts)


class L1DescentCone(Cone):
    r"""All directions in which the l1 norm does not rise at first.

    With S the support of x and sigma its signs, the cone is :math:`\{y : \sigma^\top y_S + \|y_{S^c}\|_1 \le 0\}`. Its polar
    is generated by the subdifferential: vectors equal to :math:`\tau \sigma` on S and at most :math:`\tau` in magnitude
    elsewhere, for one :math:`\tau \ge 0`.

    Args:
        point: ``(D,)`` vector x; only its support and its signs matter.

    Raises:
        PruneLimitError: If all its entries are zero.
    """

    def __init__(self, point: Any) -> None:
        self.signs = np.sign(vector("point", point))
        self.support = self.signs != 0
        self.ambient, self.nonzero = len(self.signs), int(self.support.sum())
        if not self.nonzero:
            raise PruneLimitError("point=0 has no descent direction: give it at least one entry that is not zero.")

    def _project(self, points: np.ndarray) -> np.ndarray:
        # The nearest point of the polar: a parabola in tau, in pieces. Its slope is tested where the pieces join, at the
        # magnitudes off the support in falling order; all pieces before the root are active.
        along = points[:, self.support] @ self.signs[self.support]
        off = -np.sort(-np.abs(points[:, ~self.support]), axis=1)
        sums = np.cumsum(off, axis=1)
        count = self.nonzero + np.arange(1, off.shape[1] + 1)
        active = (count * off - along[:, None] - sums > 0).sum(axis=1)
        mass = np.concatenate([np.zeros((len(points), 1)), sums], axis=1)[np.arange(len(points)), active]
        tau = np.maximum((along + mass) / (self.nonzero + active), 0)[:, None]
        polar = np.where(self.support, tau * self.signs, np.clip(points, -tau, tau))
        return points - polar

    def statistical_dimension(self) -> float | None:
        """Return D - 1/2 where x has no zero, for the cone is a half-space; otherwise ``None``."""
        return self.ambient - 0.5 if self.nonzero == self.ambient else None

    def dimension_bounds(self) -> tuple[float, float]:
        r"""Bound the statistical dimension by a minimum over one number.

        With s entries that are not zero, the upper bound is the least value of :math:`s (1 + \tau^2) + (D - s)\, \mathrm{E}
        (|\xi| - \tau)_+^2` over :math:`\tau \ge 0`, and the truth is at most :math:`2 \sqrt{D / s}` less.

        Source: Amelunxen, Lotz, McCoy and Tropp (2014), Proposition 4.5, from the error estimate of their Theorem 4.3.

        Returns:
            Lower and upper bound, between 0 and D.
        """
        if self.nonzero == self.ambient:
            return self.ambient - 0.5, self.ambient - 0.5
        on, off = self.nonzero, self.ambient - self.nonzero

        def excess(tau: float, power: int) -> float:
            tail, density = special.ndtr(-tau), math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi)
            return float(2 * (density - tau * tail if power == 1 else (1 + tau**2) * tail - tau * density))

        tau = optimize.brentq(lambda t: on * t - off * excess(t, 1), 0, 40)
        upper = on * (1 + tau**2) + off * excess(tau, 2)
        return max(upper - 2 * math.sqrt(self.ambient / on), 0.0), min(upper, float(self.ambient))
