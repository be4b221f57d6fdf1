r"""The limit as seen along the line of sight: the theorem's formula with the direction of pruning put back in.

The formula of the paper knows the distance R of the sparse point and not where it lies. Write :math:`\Delta` for the step from
the trained weights to the sparse point, and

.. math:: f(\mu) = \Delta^T |H| (|H| + \mu)^{-1} \Delta / R^2

for its stiff share, between 0 and 1. Each of three kinds of subspace of k D dimensions through the sparse point meets the
ellipsoid once :math:`d(\mu) \le k D`, up to the window of the kinematic formula, with

========  ==========================================  ===================================================================
formula   :math:`\mu = 2 \epsilon / R^2`              sufficient for a random subspace, whatever the step
cone      :math:`\mu f(\mu) = 2 \epsilon / R^2`       a random subspace: the cone over the whole ellipsoid is elliptic, and
                                                      R becomes the confocal distance h, :math:`h^2 = f(\mu) R^2`
cut       :math:`\mu f(\mu) / (1 - f(\mu)) =          a random subspace perpendicular to the step, as that of a cut is
          2 \epsilon / R^2`
========  ==========================================  ===================================================================

The book proves it (Gaussian width and statistical dimension; The lower bound; The upper bound). One Lanczos process that starts
from the step gives its stiff share for every mu at once.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from torch import Tensor

from prunelimit.curvature.lanczos import SymmetricOperator, lanczos, unit_rounding
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.errors import unknown_name
from prunelimit.limit import PruningLimit, check_epsilon, formula_side, kinematic_margin, solve_limit
from prunelimit.path_limits import check_tolerance
from prunelimit.pruning.paths import PruningPath

#: Kinds of subspaces whose limit depends on the line of sight.
SUBSPACES = ("cone", "cut")

#: Sparsities at which the line of sight is probed at most; three to five are usual.
_EVALUATIONS = 12

#: By how many per cent the needed density falls if one per cent more is kept, for the first step of the search.
_ELASTICITY = 5.0

#: Relative to the largest eigenvalue, how small and how large a resolution is looked for.
_NEAR, _FAR = 1e-15, 1e8


def sight_resolution(
    shares: Callable[[float], tuple[float, float]],
    radius: float,
    epsilon: float,
    largest: float,
    subspace: str = "cone",
) -> float:
    r"""Solve for the resolution mu at which a subspace through the sparse point just meets the ellipsoid.

    Both equations have a left side that rises with mu, :math:`\mu f(\mu)` and :math:`\mu f(\mu) / (1 - f(\mu))`.

    Args:
        shares: Maps mu to the stiff share :math:`f(\mu)` of the step and to the rest, :math:`1 - f(\mu)`.
        radius: Norm of the step, the distance R.
        epsilon: Tolerated rise of the loss.
        largest: Largest absolute eigenvalue, for the scale.
        subspace: One of ``SUBSPACES``.

    Returns:
        The root; infinite if there is none, because the sparse point itself lies in the ellipsoid; close to zero if no
        such subspace meets it that keeps fewer dimensions than the curvature has rank.
    """
    if radius == 0:
        return math.inf
    wanted = math.log(2 * epsilon / radius**2)

    def excess(t: float) -> float:
        stiff, rest = shares(math.exp(t))
        return t + math.log(max(stiff, 1e-300)) - wanted - (0 if subspace == "cone" else math.log(max(rest, 1e-300)))

    low, high = math.log(_NEAR * largest), math.log(_FAR * largest)
    if excess(high) <= 0:
        return math.inf
    return math.exp(low if excess(low) >= 0 else brentq(excess, low, high))


@dataclasses.dataclass(frozen=True)
class Sight:
    """What Lanczos found out about the step to one sparse point.

    Attributes:
        measure: The process from the step, as a spectrum with one start vector; ``None`` if the step costs nothing.
        radius: Distance R, the norm of the step.
        inside: Norm of the part that was probed; the rest lies in a known null space.
    """

    measure: Spectrum | None
    radius: float
    inside: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values from which :meth:`from_dict` builds the same."""
        measure = None if self.measure is None else self.measure.to_dict()
        return {"radius": self.radius, "inside": self.inside, "measure": measure}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sight:
        """Rebuild from :meth:`to_dict`."""
        measure = None if values["measure"] is None else Spectrum.from_dict(values["measure"])
        return cls(measure, float(values["radius"]), float(values["inside"]))

    @property
    def products(self) -> int:
        """Products that it took."""
        return 0 if self.measure is None else self.measure.steps

    def resolution(self, epsilon: float, subspace: str = "cone", which: int = 0) -> float:
        """Return mu by the value (0), the low (1) or the high end (2) of the stiff share."""
        if self.measure is None or not self.measure.largest > 0:  # the step lies in the null space
            return math.inf
        measure, part = self.measure, min((self.inside / self.radius) ** 2, 1.0)

        def shares(mu: float) -> tuple[float, float]:
            stiff = measure.start_form(mu)[which]
            # The low end of the one belongs to the high end of the other.
            rest = measure.start_form(mu, complement=True)[(0, 2, 1)[which]]
            return part * float(stiff), part * float(rest) + (1 - part)

        return sight_resolution(shares, self.radius, epsilon, measure.largest, subspace)

    def removable(self, found: Spectrum, epsilon: float, subspace: str = "cone") -> tuple[float, float, float]:
        """Return the removable fraction: value, low and high end, from both processes."""
        fractions = []
        # A larger share makes mu smaller, d larger and the fraction smaller.
        for stiff, dimension in ((0, 0), (2, 2), (1, 1)):
            mu = self.resolution(epsilon, subspace, stiff)
            d = 0.0 if math.isinf(mu) else float(found.effective_dimension(mu)[dimension])
            fractions.append(1 - d / found.dimension)
        value, low, high = fractions
        return value, low, high


def sight_along(
    operator: SymmetricOperator,
    step: Tensor,
    steps: int,
    restrict: Callable[[Tensor], Tensor] | None = None,
    low_memory: bool = False,
) -> Sight:
    """Probe the line of sight.

    Args:
        operator: The curvature, perhaps of a smaller network with the same loss.
        step: ``(D,)`` step from the trained weights to the sparse point.
        steps: Products.
        restrict: Brings the step into the operator's coordinates; what it drops lies in the null space.
        low_memory: Whether to run Lanczos without a basis.

    Returns:
        What was found.
    """
    radius = float(step.double().norm())
    start = step if restrict is None else restrict(step)
    inside = float(start.double().norm())
    if inside == 0:
        return Sight(None, radius, 0.0)
    found = lanczos(operator, start, steps, reorthogonalise=not low_memory)
    return Sight(Spectrum(operator.dimension, (found,)).rounded(unit_rounding(operator)), radius, inside)


def sight_limit(
    look: Callable[[float], Sight],
    found: Spectrum,
    path: PruningPath,
    epsilon: float,
    subspace: str = "cut",
    *,
    tolerance: float = 0.001,
    examples: int = 0,
    tried: Sequence[float] = (),
) -> PruningLimit:
    r"""Solve for the sparsity at which a subspace through the sparse point just meets the ellipsoid.

    The search goes on until the removable fraction is within the tolerance of the fraction removed. If the removable
    fraction does not rise along the path, as with the formula, the root is as close. That is not proved here; if there are
    several roots, one is found.

    Args:
        look: Maps a sparsity to the line of sight from its sparse point, see :func:`sight_along`.
        found: The spectrum, of dimension D.
        path: The sparse points.
        epsilon: Tolerated rise of the loss.
        subspace: ``"cone"`` for a random subspace, ``"cut"`` for a random one perpendicular to the step.
        tolerance: Difference between the removable and the removed fraction at which the search stops.
        examples: Number of examples behind the curvature, for the report.
        tried: Sparsities to begin with, because their lines of sight are at hand; by default the formula's limit.

    Returns:
        The limit, its cost being that of the lines of sight. Its interval comes from the low and high end of the removable
        fraction, its window from the kinematic formula, both interpolated between the sparsities that were looked at.

    Raises:
        PruneLimitError: If epsilon is not positive, the tolerance cannot be used or the subspace is unknown.
    """
    check_epsilon(epsilon)
    check_tolerance(tolerance)
    if subspace not in SUBSPACES:
        raise unknown_name("subspace", subspace, SUBSPACES)
    begun = time.monotonic()
    sights: dict[float, Sight] = {}
    seen: dict[float, tuple[float, float, float]] = {}

    def gap(sparsity: float) -> float:
        if sparsity not in seen:
            sights[sparsity] = look(sparsity)
            seen[sparsity] = sights[sparsity].removable(found, epsilon, subspace)
        return seen[sparsity][0] - sparsity

    if not tried:
        tried = [min(solve_limit(path.distance, formula_side(found, 0, epsilon)), 1 - 1e-9)]  # the path ends before one
    value = _search(gap, tried, found.dimension, tolerance)
    at_value = seen[value][0]
    table = pd.DataFrame(
        [(s, sights[s].radius, *fractions) for s, fractions in sorted(seen.items())],
        columns=["sparsity", "radius", "removable", "low", "high"],
    )
    total = found.dimension
    margin = kinematic_margin(total)
    # The dimension of an elliptic cone is known up to this; see the proofs in the book.
    slack = (math.sqrt(2 * (at_value if subspace == "cone" else 1) * total / math.pi) + 3) / total

    def crossing(fractions: pd.Series) -> float:
        return _crossing(table.sparsity.to_numpy(), fractions.to_numpy(), value)

    return PruningLimit(
        sparsity=value,
        interval=(min(crossing(table.low), value), max(crossing(table.high), value)),
        epsilon=epsilon,
        lower=crossing(table.removable - margin - 2 / total),
        upper=crossing(table.removable + margin + slack),
        radius=sights[value].radius,
        dimension=total * (1 - at_value),
        curve=table,
        cost={"products": float(sum(sight.products for sight in sights.values())), "seconds": time.monotonic() - begun},
        method=subspace,
        total=total,
        examples=examples,
        spectrum=found,
    )


def _crossing(sparsities: np.ndarray, fractions: np.ndarray, value: float) -> float:
    """Find where fractions, linear between the points, meet the diagonal; the value has been one of the points.

    Outside of the points a fraction that does not rise is all that is known: there the difference to the diagonal at the value
    bounds the way.
    """
    gaps = fractions - sparsities
    inside = np.flatnonzero((gaps[:-1] >= 0) & (gaps[1:] < 0))
    if len(inside):
        k = inside[0]
        return float(sparsities[k] + (sparsities[k + 1] - sparsities[k]) * gaps[k] / (gaps[k] - gaps[k + 1]))
    return float(np.clip(value + gaps[np.searchsorted(sparsities, value)], 0.0, 1.0))


def _search(gap: Callable[[float], float], tried: Sequence[float], total: int, tolerance: float) -> float:
    """Find where the removable fraction less the sparsity is within a tolerance of zero.

    In the logarithms of the density that is kept and the one that is needed the curve is nearly a line, so inverse
    interpolation inside a bracket takes few steps.
    """
    gaps: dict[float, float] = {}
    points: dict[float, float] = {}  # log of the density that is kept, to the log of needed over kept
    waiting, place = sorted(tried), 0.0
    for _ in range(len(tried) + _EVALUATIONS):
        sparsity = waiting.pop() if waiting else 1 - math.exp(place)
        kept, value = 1 - sparsity, gap(sparsity)
        place, gaps[sparsity] = math.log(kept), value
        best = min(gaps, key=lambda s: abs(gaps[s]))
        if not waiting and abs(gaps[best]) <= tolerance:
            return best
        points[place] = math.log(max(kept - value, 0.5 / total) / kept)
        few = max((x for x, excess in points.items() if excess > 0), default=None)
        many = min((x for x, excess in points.items() if excess <= 0), default=None)
        if few is None or many is None:
            place = min(place + points[place] / (1 + _ELASTICITY), -1e-9)
            continue
        if abs(math.exp(many) - math.exp(few)) <= tolerance / 4:  # a step of the path lies between
            break
        nearest = sorted(points, key=lambda x: abs(points[x]))[:3]
        excesses = [points[x] for x in nearest]
        place = float(np.polyval(np.polyfit(excesses, nearest, len(set(excesses)) - 1), 0.0))
        if not min(few, many) < place < max(few, many):
            place = (few + many) / 2
    return best
