"""The approximate kinematic formula: how likely a random subspace meets a cone; and the exact answer where there is one."""

from __future__ import annotations

import math

from scipy import stats

from prunelimit.checks import integer, within
from prunelimit.geometry.cones import CircularCone, Cone, Orthant, Subspace
from prunelimit.geometry.ellipsoid import EllipsoidCone

#: Failure probability, unless said otherwise.
ETA = 0.01


def transition_window(ambient: int, eta: float = ETA) -> float:
    r"""Return half the width of the transition window in dimensions.

    It is :math:`a_\eta \sqrt D` with :math:`a_\eta = \sqrt{8 \log(4 / \eta)}`. Source: Amelunxen, Lotz, McCoy and Tropp (2014), the approximate kinematic formula.

    Args:
        ambient: Dimension D.
        eta: Probability with which the statement may fail, between 0 and 1.

    Returns:
        The half-width, in dimensions; it may be larger than D, and then says nothing.

    Raises:
        PruneLimitError: If eta is not a probability.
    """
    integer("ambient", ambient)
    return math.sqrt(8 * math.log(4 / within("eta", eta, 0, 1))) * math.sqrt(ambient)


def kinematic_bound(total: float, ambient: int) -> tuple[float, float]:
    r"""Bound the probability that two cones in random position share more than the origin.

    The kinematic formula solved for its failure probability: with the gap :math:`\Delta = \delta(C) + \delta(K) - D` the
    probability is at most :math:`4 e^{-\Delta^2 / 8 D}` if the gap is negative, and at least one minus this if it is positive.

    Source: Amelunxen, Lotz, McCoy and Tropp (2014), the approximate kinematic formula; not for two subspaces.

    Args:
        total: Sum of the two statistical dimensions; for a subspace its dimension.
        ambient: Dimension D.

    Returns:
        Lower and upper bound of the probability; (0, 1) where the formula says nothing.

    Examples:
        >>> low, high = kinematic_bound(total=1000 + 250, ambient=1000)
        >>> round(low, 4), high
        (0.9984, 1.0)
    """
    gap = total - integer("ambient", ambient)
    failure = min(4 * math.exp(-(gap**2) / (8 * ambient)), 1.0)
    return (1 - failure, 1.0) if gap >= 0 else (0.0, failure)


def meeting_probability(cone: Cone, dimension: int) -> float | None:
    r"""Return the exact probability that a random subspace meets a cone outside the origin, where it is known.

    Orthant: :math:`P\{\mathrm{Bin}(D - 1, 1/2) \ge D - m\}` (Wendel 1962: the subspace meets the orthant if and only if zero is a
    convex combination of D random points in D - m dimensions). Circular cone, and the cone over a ball: the squared cosine of
    the angle between the axis and the subspace has the distribution Beta(m / 2, (D - m) / 2). Subspace: zero or one.

    Args:
        cone: The cone.
        dimension: Dimension m of the uniformly random subspace, from 0 to D.

    Returns:
        The probability, or ``None``.
    """
    total = cone.ambient
    integer("dimension", dimension, 0, total)
    if isinstance(cone, Subspace):
        return float(dimension > 0 and dimension + cone.dimension > total)
    if dimension == 0:
        return 0.0
    if isinstance(cone, Orthant):
        return float(stats.binom.sf(total - dimension - 1, total - 1, 0.5))
    angle = cone.angle if isinstance(cone, CircularCone) else None
    if isinstance(cone, EllipsoidCone) and cone.statistical_dimension() is not None:
        offset = math.sqrt(float((cone.center_offset**2).sum()))
        angle = math.asin(float(cone.half_axes[0]) / offset)
    if angle is None:
        return None
    if dimension == total:
        return 1.0
    return float(stats.beta.sf(math.cos(angle) ** 2, dimension / 2, (total - dimension) / 2))
