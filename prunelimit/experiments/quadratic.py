r"""Quadratic losses whose spectrum one chooses, and what random and coordinate subspaces really find in them.

The loss is :math:`\frac12 (w - w^*)^\top H (w - w^*)`. At sparsity s the smallest weights are set to zero, which leads to
the sparse point p, and a subspace U of (1 - s) D dimensions through p meets the sublevel set if and only if the smallest
rise on it,

.. math:: \min_{u \in U} \tfrac12 \norm{H^{1/2} (p - w^* + u)}^2 ,

is at most epsilon. This is a least-squares problem, so nothing is sampled but the subspace. Nested subspaces share one
QR factorisation: one factorisation per trial gives the smallest rise at every sparsity.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from prunelimit.checks import integer, pick_names
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.geometry import random_rotation
from prunelimit.geometry.kinematic import ETA
from prunelimit.limit import (
    check_epsilon,
    effective_dimension,
    kinematic_margin,
    removable_fraction,
    solve_limit,
)

#: Name of a spectrum to what figures call it.
FAMILIES = {
    "flat": "flat: a ball",
    "power": "power law",
    "outliers": "bulk with outliers",
    "levels": "two levels",
    "loguniform": "log-uniform",
    "null": "log-uniform with a null space",
}

#: How the weights are distributed before they are scaled to length one.
DISTRIBUTIONS = ("gaussian", "laplace", "uniform")

#: How the eigenvectors lie to the coordinates.
ORIENTATIONS = {
    "random": "random eigenvectors",
    "independent": "along the weights, shuffled",
    "small": "along the weights, sharp on small ones",
    "large": "along the weights, sharp on large ones",
}

#: Which subspaces are tried.
SUBSPACES = ("random", "coordinates")

#: Eigenvalues below this share of the largest are raised to it where a factorisation needs full rank.
FLOOR = 1e-13


def chosen_spectrum(
    family: str,
    dimension: int,
    *,
    exponent: float = 1.5,
    decades: float = 4.0,
    outliers: float = 0.03,
    ratio: float = 100.0,
    nullity: float = 0.3,
) -> np.ndarray:
    """Lay out the eigenvalues of one of the families, with mean one.

    Args:
        family: A key of ``FAMILIES``.
        dimension: Number of eigenvalues, D.
        exponent: The i-th eigenvalue of ``"power"`` is i to minus this.
        decades: Orders of magnitude that ``"loguniform"`` and ``"null"`` span.
        outliers: Share of the eigenvalues that are outliers.
        ratio: Largest outlier over the bulk, and the upper over the lower of the two levels.
        nullity: Share of the eigenvalues of ``"null"`` that are zero.

    Returns:
        ``(D,)`` eigenvalues, the largest first, whose mean is one.

    Raises:
        PruneLimitError: If the family is unknown or a number is out of range.
    """
    if family not in FAMILIES:
        raise unknown_name("family", family, FAMILIES)
    integer("dimension", dimension, least=2)
    if not (0 < outliers < 1 and 0 <= nullity < 1 and ratio >= 1 and decades > 0 and exponent >= 0):
        raise PruneLimitError(
            f"outliers={outliers}, nullity={nullity}, ratio={ratio}, decades={decades}, exponent={exponent}: shares must "
            "lie below 1, ratio at least at 1, decades and exponent above 0."
        )
    rank = np.arange(dimension)
    count = max(1, round(outliers * dimension))
    positive = dimension - round(nullity * dimension)
    values = {
        "flat": lambda: np.ones(dimension),
        "power": lambda: (rank + 1.0) ** -exponent,
        # A bulk like that of a random matrix, from 1 down to 0.1, and outliers of decreasing size above it.
        "outliers": lambda: np.r_[ratio / np.arange(1, count + 1) ** 0.5, np.linspace(1, 0.1, dimension - count)],
        "levels": lambda: np.where(rank < dimension // 2, ratio, 1.0),
        "loguniform": lambda: np.logspace(0, -decades, dimension),
        "null": lambda: np.r_[np.logspace(0, -decades, positive), np.zeros(dimension - positive)],
    }[family]()
    return values / values.mean()


def drawn_weights(weights: str, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Draw trained weights.

    Args:
        weights: One of ``DISTRIBUTIONS``, all symmetric around zero.
        dimension: Number of weights, D.
        rng: Source of randomness.

    Returns:
        ``(D,)`` weights of length one.

    Raises:
        PruneLimitError: If the distribution is unknown or there are fewer than two weights.
    """
    if weights not in DISTRIBUTIONS:
        raise unknown_name("weights", weights, DISTRIBUTIONS)
    integer("dimension", dimension, least=2)
    draw: dict[str, Callable[[int], np.ndarray]] = {
        "gaussian": rng.standard_normal,
        "laplace": lambda size: rng.laplace(size=size),
        "uniform": lambda size: rng.uniform(-1, 1, size),
    }
    drawn = draw[weights](dimension)
    return drawn / np.linalg.norm(drawn)


@dataclasses.dataclass(frozen=True, eq=False)
class QuadraticWell:
    """A quadratic loss with its minimum at the trained weights.

    Attributes:
        eigenvalues: ``(D,)`` of the Hessian, not negative, not all zero.
        weights: ``(D,)`` trained weights; the loss is smallest there.
        epsilon: Tolerated rise of the loss.
    """

    eigenvalues: np.ndarray
    weights: np.ndarray
    epsilon: float

    def __post_init__(self) -> None:
        """Refuse what is not a well."""
        check_epsilon(self.epsilon)
        values = self.eigenvalues
        if values.shape != self.weights.shape or values.ndim != 1:
            raise PruneLimitError(
                f"eigenvalues of shape {values.shape} and weights of shape {self.weights.shape}: give two vectors of one length."
            )
        if not (np.all(values >= 0) and values.any()):
            raise PruneLimitError("eigenvalues must not be negative nor all zero: give those of a well.")

    @property
    def dimension(self) -> int:
        """Number of weights, D."""
        return len(self.weights)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Places of the weights in the order in which magnitude pruning removes them."""
        return np.argsort(np.abs(self.weights), kind="stable")

    @functools.cached_property
    def distance(self) -> np.ndarray:
        """``(D + 1,)`` distances R; entry m with the m smallest weights removed."""
        return np.sqrt(np.r_[0.0, np.cumsum(self.weights[self.order] ** 2)])

    def displacements(self, counts: Sequence[int]) -> np.ndarray:
        """Return the steps w(s) - w* with ``counts`` weights removed, ``(D, len(counts))``."""
        steps = np.zeros((self.dimension, len(counts)))
        for column, count in enumerate(counts):
            removed = self.order[:count]
            steps[removed, column] = -self.weights[removed]
        return steps

    def removable(self, radius: np.ndarray) -> np.ndarray:
        """Return the largest removable fractions at distances R, by the formula with all eigenvalues."""
        return removable_fraction(
            lambda mu: effective_dimension(self.eigenvalues, mu), radius, self.epsilon, self.dimension
        )

    def predicted(self, shift: float = 0.0) -> float:
        """Solve the formula, removable(R(s)) + shift = s.

        Args:
            shift: Zero for the limit, plus or minus the kinematic margin for the bounds.

        Returns:
            The fraction removed.
        """
        return solve_limit(self.distance, self.removable, shift)

    def window(self, eta: float = ETA) -> tuple[float, float]:
        """Return the lower and the upper bound, the ends of the kinematic formula's window."""
        margin = kinematic_margin(self.dimension, eta)
        return self.predicted(-margin), self.predicted(margin)

    def expected(self, subspace: str = "random") -> float:
        r"""Predict where half of the trials succeed, with the near side of the ellipsoid counted.

        With :math:`\mu_k` the resolution at which d is k = (1 - s) D, the smallest rise on a uniformly random subspace through
        the sparse point is about :math:`\frac12 (1 - s) \mu_k R^2` if the step has no preferred direction, and on the
        coordinate subspace, whose step is perpendicular to it, :math:`1 / s` times as much. The formula of the paper has
        :math:`\frac12 \mu_k R^2` instead.

        Source: the mean projection onto a Gaussian sketch (Derezinski, Liang, Liao and Mahoney 2020); the application is ours.

        Args:
            subspace: ``"random"``: the step and the subspace are independent, as in the theorem; ``"coordinates"``: zeros in the
                removed places, and random eigenvectors.

        Returns:
            The largest fraction removed at which this rise is at most epsilon.

        Raises:
            PruneLimitError: If the subspace is unknown.
        """
        if subspace not in SUBSPACES:
            raise unknown_name("subspace", subspace, SUBSPACES)
        removed = np.arange(1, self.dimension + 1)
        share = 1.0 if subspace == "random" else self.dimension / removed
        rises = 0.5 * share * mean_curvature(self.eigenvalues, self.dimension - removed) * self.distance[1:] ** 2
        return int((rises <= self.epsilon).sum()) / self.dimension


def family_wells(
    dimension: int, epsilon: float, weights: str = "gaussian", *, seed: int = 0, **shape: float
) -> dict[str, QuadraticWell]:
    """Build one well per family of spectra, all with the same weights and the same trace.

    Args:
        dimension: Number of weights, D.
        epsilon: Tolerated rise of the loss.
        weights: Their distribution, one of ``DISTRIBUTIONS``.
        seed: Seed of the weights.
        **shape: Numbers of :func:`chosen_spectrum`.

    Returns:
        What figures call the family, to the well.
    """
    drawn = drawn_weights(weights, dimension, np.random.default_rng(seed))
    return {
        name: QuadraticWell(chosen_spectrum(family, dimension, **shape), drawn, epsilon)
        for family, name in FAMILIES.items()
    }


def family_titles(shown: str | Sequence[str]) -> list[str]:
    """Return what figures call some families.

    Args:
        shown: One key of ``FAMILIES``, or several.

    Returns:
        Their titles.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    return [FAMILIES[name] for name in pick_names("shown", shown, FAMILIES)]


def mean_curvature(eigenvalues: np.ndarray, kept: Sequence[int] | np.ndarray) -> np.ndarray:
    r"""Compute the mean curvature that is left once the weights may move in k random directions.

    It is :math:`\frac{1}{D} \sum_i \lambda_i \mu / (\lambda_i + \mu)` with :math:`d(\mu) = k`: of a step of length one and
    no preferred direction, half of it is the rise that a uniformly random k-dimensional subspace cannot undo, to leading
    order in D. It falls with k from the mean eigenvalue to zero.

    Args:
        eigenvalues: ``(D,)``, not negative.
        kept: Dimensions k of the subspace, from 0 to D.

    Returns:
        One curvature per entry of ``kept``.
    """
    positive = np.sort(eigenvalues[eigenvalues > 0])
    wanted = np.asarray(kept, dtype=float)
    found = np.zeros(wanted.shape)  # as many directions as there are stiff ones undo everything
    found[wanted <= 0] = positive.sum()
    inside = (wanted > 0) & (wanted < len(positive))
    if inside.any():
        target = wanted[inside]
        # d(mu) = k lies between these: mu d(mu) is at most the trace, and D - d(mu) at most mu times the sum of 1 / lambda.
        low = np.log((len(positive) - target) / (1 / positive).sum())
        high = np.log(positive.sum() / target)
        for _ in range(60):
            middle = (low + high) / 2
            above = effective_dimension(positive, np.exp(middle)) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        mu = np.exp((low + high) / 2)
        found[inside] = mu * effective_dimension(positive, mu)
    return found / len(eigenvalues)


def smallest_rises(columns: np.ndarray, steps: np.ndarray, kept: Sequence[int] | np.ndarray) -> np.ndarray:
    r"""Minimise the quadratic over nested affine subspaces, all of them with one factorisation.

    The j-th problem is :math:`\min_z \frac12 \norm{h_j + M_k z}^2` with :math:`M_k` the first ``kept[j]`` columns of M. What is
    left of :math:`h_j` is its part outside of their span, so an orthonormal basis of the nested spans serves them all.

    Args:
        columns: ``(r, n)`` images of the subspaces' basis vectors under the root of H; any leading ones with the rank that
            their number allows.
        steps: ``(r, S)`` images of the steps from the trained to the sparse points.
        kept: ``(S,)`` dimensions of the subspaces.

    Returns:
        ``(S,)`` smallest rises of the loss.
    """
    basis = np.linalg.qr(columns[:, : len(columns)])[0]
    parts = (basis.T @ steps) ** 2
    tails = np.vstack([np.cumsum(parts[::-1], axis=0)[::-1], np.zeros((1, steps.shape[1]))])
    inside = np.minimum(kept, basis.shape[1])
    return 0.5 * tails[inside, np.arange(steps.shape[1])]


def random_rises(well: QuadraticWell, counts: Sequence[int], trials: int, rng: np.random.Generator) -> np.ndarray:
    """Minimise the loss over uniformly random subspaces through the sparse points: what the theorem is about.

    The eigenvectors are drawn anew in each trial as well: the theorem holds for each of them, hence on average. Subspaces of
    one trial are nested, so the values at two sparsities are dependent, but each by itself has the right distribution.

    Args:
        well: The quadratic.
        counts: Numbers of weights removed; the subspace has D less that many dimensions.
        trials: How many subspaces.
        rng: Source of randomness.

    Returns:
        ``(trials, len(counts))`` smallest rises of the loss.
    """
    stiff = well.eigenvalues > 0
    root = np.sqrt(well.eigenvalues[stiff])[:, None]
    steps, kept = well.displacements(counts), well.dimension - np.asarray(counts)
    rises = []
    for _ in range(trials):
        images = root * (random_rotation(well.dimension, rng)[stiff] @ steps)
        # The span of Gaussian columns is uniformly random already, in any orthonormal basis.
        rises.append(smallest_rises(root * rng.standard_normal((len(root), len(root))), images, kept))
    return np.array(rises)


def coordinate_rises(
    well: QuadraticWell, counts: Sequence[int], orientation: str, trials: int, rng: np.random.Generator
) -> np.ndarray:
    """Minimise the loss over the kept coordinates: what pruning does, refitting included.

    Args:
        well: The quadratic; its eigenvectors are drawn anew in each trial.
        counts: Numbers of weights removed.
        orientation: A key of ``ORIENTATIONS``.
        trials: How many draws; the sorted orientations need one only.
        rng: Source of randomness.

    Returns:
        ``(trials, len(counts))`` smallest rises of the loss.

    Raises:
        PruneLimitError: If the orientation is unknown.
    """
    if orientation not in ORIENTATIONS:
        raise unknown_name("orientation", orientation, ORIENTATIONS)
    steps = well.displacements(counts)
    kept = well.dimension - np.asarray(counts)
    values = np.sort(np.maximum(well.eigenvalues, FLOOR * well.eigenvalues.max()))
    rises = []
    for _ in range(trials):
        if orientation == "random":
            root = np.sqrt(values)[:, None] * random_rotation(well.dimension, rng)
            rises.append(smallest_rises(root[:, well.order[::-1]], root @ steps, kept))
            continue
        own = np.empty(well.dimension)  # the curvature along each weight; nothing couples them
        own[well.order] = {"small": values[::-1], "large": values}.get(orientation, rng.permutation(values))
        rises.append(0.5 * own @ steps**2)
    return np.array(rises)


def cut_rises(well: QuadraticWell, counts: Sequence[int], trials: int, rng: np.random.Generator) -> np.ndarray:
    """Compute the rise of the cut alone, with random eigenvectors and nothing refitted, ``(trials, len(counts))``."""
    steps, root = well.displacements(counts), np.sqrt(well.eigenvalues)[:, None]
    images = (root * (random_rotation(well.dimension, rng) @ steps) for _ in range(trials))
    return np.array([0.5 * (image**2).sum(axis=0) for image in images])
