r"""The cone over an ellipsoid that is seen from a point outside.

E has half-axes :math:`r_i` and its centre at :math:`c = w^* - p`, seen from the origin, which stands for p. In the
ellipsoid's axes, with :math:`u_i = c_i / r_i` and :math:`z_i = y_i / r_i`, a vector y lies in the cone :math:`\{t (e - p)\}`
if and only if

.. math:: \langle u, z \rangle \ge 0 \quad\text{and}\quad \langle u, z \rangle^2 \ge (\|u\|^2 - 1) \|z\|^2 :

a circular cone in the coordinates z. In the coordinates y it is an elliptic one. Its shape is read off the matrix
:math:`K = \mathrm{diag}(r_i^2) - c c^\top`, which has one negative eigenvalue, :math:`-h^2`; with the others, :math:`\sigma_1,
\dots, \sigma_{D-1} > 0`, and in the axes of K, the cone is :math:`\sum_i y_i^2 h^2 / \sigma_i \le t^2`. The number h is the
root of :math:`\sum_i c_i^2 / (r_i^2 + h^2) = 1`: p lies on the ellipsoid with the half-axes :math:`(r_i^2 + h^2)^{1/2}`, which is
confocal to E. We call h the confocal distance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize

from prunelimit.checks import positive
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.geometry.checks import positive_vector, vector
from prunelimit.geometry.cones import CircularCone, Cone
from prunelimit.geometry.sampling import Random, random_direction

#: Halvings of the interval that holds the multiplier's logarithm: from a width of some hundred to rounding.
HALVINGS = 64


def ellipsoid_dimension(half_axes: Any, distance: Any) -> Any:
    r"""Compute the formula for the statistical dimension, :math:`\sum_i r_i^2 / (R^2 + r_i^2)`.

    It never claims more than two dimensions too many, but may claim far too few; see :func:`confocal_dimension`. Source: the
    fundamental-limit paper; for the width, Larsen et al. (2022).

    Args:
        half_axes: ``(D,)`` half-axes r; infinite ones count as one.
        distance: Distance R from the centre, one or many, not negative.

    Returns:
        A float, or an array of the shape of ``distance``.

    Raises:
        PruneLimitError: If a half-axis is not positive or a distance is negative.

    Examples:
        >>> ellipsoid_dimension([1.0, 2.0], 1.0)
        1.3
    """
    axes = np.asarray(half_axes, dtype=float)
    points = np.asarray(distance, dtype=float)
    if axes.ndim != 1 or not (axes > 0).all():
        raise PruneLimitError(f"half_axes of shape {axes.shape} must be a vector of positive numbers.")
    if not (points >= 0).all():
        raise PruneLimitError(f"distance={distance!r} must not be negative.")
    values = np.array([float((1 / (1 + (r / axes) ** 2)).sum()) for r in points.reshape(-1)])
    return float(values[0]) if points.ndim == 0 else values.reshape(points.shape)


def confocal_distance(half_axes: Any, offset: Any) -> float:
    r"""Find the number h with :math:`\sum_i c_i^2 / (r_i^2 + h^2) = 1`.

    For a ball it is the length of a tangent from p, :math:`(R^2 - r^2)^{1/2}`; for an offset along axis j it is
    :math:`(R^2 - r_j^2)^{1/2}`; always it is smaller than R.

    Args:
        half_axes: ``(D,)`` half-axes r.
        offset: ``(D,)`` vector c from p to the centre, in the ellipsoid's axes.

    Returns:
        The confocal distance h.

    Raises:
        PruneLimitError: If the shapes differ or p lies in the ellipsoid, where there is no such number.
    """
    axes, center = positive_vector("half_axes", half_axes), vector("offset", offset)
    if axes.shape != center.shape:
        raise PruneLimitError(f"offset of shape {center.shape} must have one entry per half-axis: {axes.shape}.")
    depth = float(((center / axes) ** 2).sum())
    if not depth > 1:
        raise PruneLimitError(
            f"offset puts the point inside the ellipsoid (sum c_i^2 / r_i^2 = {depth:.3g}): it must be larger than one."
        )
    scale = float(center @ center)
    share, squares = center**2 / scale, axes**2 / scale
    root = optimize.brentq(
        lambda h: float((share / (squares + h)).sum()) - 1, 0.0, 1.0, xtol=1e-300, rtol=1e-15, maxiter=1000
    )
    return math.sqrt(root * scale)


def confocal_dimension(half_axes: Any, offset: Any) -> float:
    r"""Compute the statistical dimension of the ellipsoid cone up to a small error, for any direction of the offset.

    With the confocal distance h in place of R the formula is right for every offset:

    .. math:: \delta(C) \approx \tfrac12 + \sum_{i < D} \frac{\sigma_i}{h^2 + \sigma_i} = \sum_i \frac{r_i^2}{h^2 + r_i^2} -
        \tfrac12 + h^2 \frac{\sum_i c_i^2 / (r_i^2 + h^2)^3}{\sum_i c_i^2 / (r_i^2 + h^2)^2} .

    The half stands for the line of sight. :meth:`EllipsoidCone.dimension_bounds` bounds the error. For a ball in many
    dimensions, seen under the half-angle :math:`\alpha`, the truth is higher by :math:`\tfrac12 - \sin^2 \alpha`: the value is
    up to half a dimension too low for a narrow cone, and too high for a wide one.

    Args:
        half_axes: ``(D,)`` half-axes r.
        offset: ``(D,)`` vector c from p to the centre, in the ellipsoid's axes.

    Returns:
        The approximate statistical dimension.
    """
    return _elliptic_sum(*_arrays(half_axes, offset), confocal_distance(half_axes, offset)) + 0.5


def _arrays(half_axes: Any, offset: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(half_axes, dtype=float), np.asarray(offset, dtype=float)


def _elliptic_sum(axes: np.ndarray, center: np.ndarray, confocal: float) -> float:
    """Sum sigma / (h^2 + sigma) over the positive eigenvalues of K, without computing them."""
    inverse = 1 / (axes**2 + confocal**2)
    second, third = ((center**2 * inverse**k).sum() for k in (2, 3))
    return float((axes**2 * inverse).sum() - 1 + confocal**2 * third / second)


def seen_from(half_axes: Any, distance: float, direction: str = "random", rng: Random = 0) -> np.ndarray:
    """Place an ellipsoid's centre at a distance, in a direction that is named.

    Args:
        half_axes: ``(D,)`` half-axes r.
        distance: Distance R.
        direction: ``"random"`` (uniform), ``"isotropic"`` (all entries equal, which is what a random direction is on
            average), ``"flattest"`` (along the longest half-axis) or ``"stiffest"`` (along the shortest).
        rng: Generator or seed of the random direction.

    Returns:
        ``(D,)`` offset in the ellipsoid's axes.

    Raises:
        PruneLimitError: If the direction is unknown.
    """
    axes, distance = positive_vector("half_axes", half_axes), positive("distance", distance)
    total = len(axes)
    if direction == "random":
        return distance * random_direction(total, rng)
    if direction == "isotropic":
        return np.full(total, distance / math.sqrt(total))
    if direction not in ("flattest", "stiffest"):
        raise unknown_name("direction", direction, ("random", "isotropic", "flattest", "stiffest"))
    return distance * np.eye(total)[axes.argmax() if direction == "flattest" else axes.argmin()]


class EllipsoidCone(Cone):
    """All directions in which an ellipsoid is seen from a point outside.

    Args:
        half_axes: ``(D,)`` half-axes r, all positive.
        center_offset: ``(D,)`` vector c from the point to the centre, in the ellipsoid's axes; see :func:`seen_from`.

    Raises:
        PruneLimitError: If the shapes differ or the point lies in the ellipsoid.
    """

    def __init__(self, half_axes: Any, center_offset: Any) -> None:
        self.confocal_distance = confocal_distance(half_axes, center_offset)
        self.half_axes, self.center_offset = vector("half_axes", half_axes), vector("center_offset", center_offset)
        self.ambient = len(self.half_axes)
        # The cone does not change if everything is measured in units of the distance.
        scale = float(np.linalg.norm(self.center_offset))
        self._squares, self._center = (self.half_axes / scale) ** 2, self.center_offset / scale
        self._pole = (self.confocal_distance / scale) ** 2

    def _project(self, points: np.ndarray) -> np.ndarray:
        scaled, along = points / np.sqrt(self._squares), self._center / np.sqrt(self._squares)
        height = scaled @ along
        inside = (height >= 0) & (height**2 >= (along @ along - 1) * (scaled**2).sum(axis=1))
        # The largest inner product with a point of the ellipsoid: not positive means that the polar holds the point.
        polar = points @ self._center + np.sqrt(points**2 @ self._squares) <= 0
        result = np.where(inside[:, None], points, 0.0)
        rest = ~inside & ~polar
        if rest.any():
            result[rest] = self._boundary(points[rest])
        return result

    def _residual(self, points: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Constraint at the stationary point of a multiplier, times a positive number, and the two parts of t."""
        inverse = 1 / (self._squares + tau[:, None])
        excess = inverse @ self._center**2 - 1
        moment = (inverse * points) @ self._center
        offset = (excess[:, None] * points - moment[:, None] * self._center) * inverse
        return offset**2 @ self._squares - moment**2, excess, moment

    def _boundary(self, points: np.ndarray) -> np.ndarray:
        r"""Nearest point where it lies on the boundary and is not zero.

        The nearest of all :math:`y = t (c + x)`, x in the ellipsoid around zero, satisfies with a multiplier tau > 0
        :math:`y_i = (r_i^2 x_i + \tau t c_i) / (r_i^2 + \tau)` and :math:`t (\sum_i c_i^2 / (r_i^2 + \tau) - 1) = \sum_i c_i
        x_i / (r_i^2 + \tau)`. In the axes of K this is :math:`y_i = x_i \sigma_i / (\sigma_i + \tau)` and, along the last one,
        :math:`y_D = x_D h^2 / (h^2 - \tau)`, which is positive only on one side of :math:`h^2`. The constraint becomes
        :math:`\sum_i \sigma_i x_i^2 (h^2 - \tau)^2 / (\sigma_i + \tau)^2 = h^2 x_D^2`. Its left side falls on the way to
        :math:`\tau = h^2` and rises after it, so there is one root on the side that the sign of :math:`x_D` tells.
        """
        front = points @ (self._center / (self._squares + self._pole)) >= 0
        pole = math.log(self._pole)
        least = min(math.log(self._squares.min()), pole) - 40
        most = max(math.log(self._squares.max()), pole) + 40
        low, high = np.where(front, least, pole), np.where(front, pole, most)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            right = (self._residual(points, np.exp(middle))[0] > 0) == front
            low, high = np.where(right, middle, low), np.where(right, high, middle)
        tau = np.exp((low + high) / 2)
        factor = self._factor(points, tau)
        return (self._squares * points + (tau * factor)[:, None] * self._center) / (self._squares + tau[:, None])

    def _factor(self, points: np.ndarray, tau: np.ndarray) -> np.ndarray:
        """Solve for t: near h^2 the linear equation is 0 = 0, so t is the root of the constraint that is nearest to it."""
        _, excess, moment = self._residual(points, tau)
        weights = self._squares / (self._squares + tau[:, None]) ** 2
        constant = (weights * points**2).sum(axis=1)
        mixed = (weights * points) @ self._center
        leading = 1 - weights @ self._center**2  # leading t^2 + 2 mixed t - constant = 0
        root = np.sqrt(np.maximum(mixed**2 + leading * constant, 0))
        pivot = -(mixed + np.where(mixed < 0, -root, root))
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = np.nan_to_num(moment / excess, nan=np.inf)
            both = np.stack([pivot / leading, -constant / pivot])
        both = np.where(np.isfinite(both) & (both >= 0), both, np.inf)
        first = np.abs(both[0] - guess) <= np.abs(both[1] - guess)
        first = np.where(np.isfinite(guess), first, both[0] < both[1])
        chosen = np.where(first, both[0], both[1])
        return np.where(np.isfinite(chosen), chosen, np.maximum(guess, 0))

    def statistical_dimension(self) -> float | None:
        """Return that of a circular cone where the ellipsoid is a ball, otherwise ``None``."""
        radius = self.half_axes[0]
        if self.ambient < 2 or not np.allclose(self.half_axes, radius, rtol=1e-12, atol=0):
            return None
        angle = math.asin(radius / float(np.linalg.norm(self.center_offset)))
        return CircularCone(self.ambient, angle).statistical_dimension()

    def dimension_bounds(self) -> tuple[float, float]:
        r"""Bound the statistical dimension from both sides, whatever the direction of the offset.

        With :math:`\Sigma_C = \sum_{i<D} \sigma_i / (h^2 + \sigma_i)`: at least :math:`\Sigma_C - 1`, at most :math:`(\Sigma_C^{1/2} +
        (2 \pi)^{-1/2})^2 + 1`. Worked out here: the proof of the proposition on the central section (The limit, How large is
        a cone?), in the axes of K.

        Returns:
            Lower and upper bound, between 0 and D.
        """
        total = _elliptic_sum(self.half_axes, self.center_offset, self.confocal_distance)
        upper = (math.sqrt(total) + 1 / math.sqrt(2 * math.pi)) ** 2 + 1
        return max(total - 1, 0.0), min(upper, float(self.ambient))

    def edges(self) -> np.ndarray:
        """Return the two tangents of an ellipse, for drawing.

        Returns:
            ``(2, 2)`` unit vectors, one per row.

        Raises:
            PruneLimitError: If the ambient dimension is not two.
        """
        if self.ambient != 2:
            raise PruneLimitError(f"edges() of a cone in {self.ambient} dimensions: only an ellipse has two tangents.")
        values, vectors = np.linalg.eigh(np.diag(self.half_axes**2) - np.outer(self.center_offset, self.center_offset))
        axis = vectors[:, 0] * np.sign(vectors[:, 0] @ self.center_offset)
        rays = [math.sqrt(-values[0]) * axis + sign * math.sqrt(values[1]) * vectors[:, 1] for sign in (-1, 1)]
        return np.array([ray / np.linalg.norm(ray) for ray in rays])
