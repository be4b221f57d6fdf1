r"""From the effective dimension to the pruning limit.

Conventions: sparsity s is the fraction of the D prunable weights REMOVED, R(s) the distance from the trained weights to
the point with the ceil(s D) smallest magnitudes set to zero, epsilon the tolerated rise of the training loss. Seen from
there, the sublevel set spans a cone of statistical dimension :math:`\delta \approx D - d(2 \epsilon / R^2)`, and a
coordinate subspace that keeps a fraction k of the weights meets it once k D + delta reaches D. The predicted limit is
the one root of

.. math:: 1 - d\bigl(2 \epsilon / R(s)^2\bigr) / D = s .
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from prunelimit.curvature.data import Batches, LossFunction, bare, joined, mean_loss, split_rows
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.geometry.kinematic import ETA, transition_window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points of the recorded and plotted curve.
CURVE_POINTS = 1000

#: Steps of sparsity between which the root is sought at least, if there are as many weights.
ROOT_STEPS = 20_000

#: Examples per batch in the default epsilon, as released.
EPSILON_BATCH = 128

#: Fewer batches leave the default epsilon uncertain by more than a quarter.
FEW_BATCHES = 9

#: What rounding may change in d / D, at most, without a word about it.
ROUNDING = 0.0025

#: What each method says, for readers who have not read the book.
MEANING = {
    "formula": "the theorem: how far some network with so few weights is within reach",
    "cone": "the theorem for any random subspace, knowing the step",
    "cut": "the theorem for a subspace perpendicular to the step, as a cut's is",
    "directional": "second order along the cut itself, kept weights as they are",
    "refit": "the kept weights may move, mask fixed",
    "measured": "one cut for real, kept weights as they are",
}

_log = logging.getLogger("prunelimit")


#: What it means that a search found no end.
UNBOUNDED = (
    "even the sparsest cut tried is within epsilon: these weights hardly lower the loss, or epsilon is too large"
)


class FlatError(PruneLimitError):
    """The loss has no derivatives that are not zero, so that every cut looks free."""

    def __init__(self) -> None:
        super().__init__(
            "loss_fn has no curvature here (it is piecewise linear, as absolute error and hinge, or vanishes to the last digit, as "
            "at a perfect fit), so that every cut would look free: choose method='measured'."
        )


Dimension = Callable[[np.ndarray], np.ndarray]

#: Maps distances to removable fractions.
Removable = Callable[[np.ndarray], np.ndarray]


def effective_dimension(eigenvalues: Tensor | np.ndarray, mu: np.ndarray | float) -> np.ndarray:
    r"""Compute :math:`d(\mu) = \sum_i |\lambda_i| / (|\lambda_i| + \mu)` exactly.

    Args:
        eigenvalues: All D of them.
        mu: One or many positive numbers.

    Returns:
        Values between 0 and D, of the shape of ``mu``.
    """
    magnitudes = np.abs(np.asarray(eigenvalues, dtype=float))
    points = np.asarray(mu, dtype=float)
    values = [float((magnitudes / (magnitudes + m)).sum()) for m in points.reshape(-1)]
    return np.array(values).reshape(points.shape)


def removable_fraction(dimension: Dimension, radius: np.ndarray, epsilon: float, total: int) -> np.ndarray:
    """Compute the largest removable fraction at a distance, 1 - d(2 eps / R^2) / D.

    Args:
        dimension: Maps an array of mu to d(mu).
        radius: Distances R, at least zero.
        epsilon: Tolerated rise of the loss.
        total: Number of prunable weights, D.

    Returns:
        Fractions in ``[0, 1]``; one where R is zero.
    """
    radius = np.asarray(radius, dtype=float)
    result = np.ones_like(radius)
    away = radius > 0
    with np.errstate(over="ignore"):
        result[away] = 1 - np.asarray(dimension(2 * epsilon / radius[away] ** 2)) / total
    return result


def solve_limit(distance: np.ndarray, removable: Removable, shift: float = 0.0) -> float:
    """Find the root of removable(R(s)) + shift = s by bisection over the number of removed weights.

    Args:
        distance: ``(D + 1,)`` distances R, entry m with m weights removed; not decreasing.
        removable: Maps distances to removable fractions; not increasing.
        shift: Added to the fraction, for the lower and upper bound.

    Returns:
        The largest s = m / D that does not exceed the removable fraction at its own distance.
    """
    total = len(distance) - 1
    low, high = 0, total
    while low < high:
        middle = (low + high + 1) // 2
        if float(removable(distance[middle : middle + 1])[0]) + shift >= middle / total:
            low = middle
        else:
            high = middle - 1
    return low / total


def exact_limit(eigenvalues: Tensor | np.ndarray, distance: np.ndarray, epsilon: float) -> float:
    """Solve the formula with all eigenvalues: the truth that an estimated spectrum approaches.

    Args:
        eigenvalues: All D of them.
        distance: ``(D + 1,)`` distances R, as in :class:`~prunelimit.pruning.magnitude.MagnitudePath`.
        epsilon: Tolerated rise of the loss.

    Returns:
        The predicted limit.
    """
    total = len(eigenvalues)
    return solve_limit(
        distance, lambda r: removable_fraction(lambda mu: effective_dimension(eigenvalues, mu), r, epsilon, total)
    )


def formula_side(found: Spectrum, which: int, epsilon: float, bounds: str = "certified") -> Removable:
    """Return the function that maps distances to removable fractions, by one side of the effective dimension.

    Args:
        found: The spectrum.
        which: 0 for the value, 1 for the low and 2 for the high end of the effective dimension.
        epsilon: Tolerated rise of the loss.
        bounds: Which bounds of d(mu); see :meth:`~prunelimit.curvature.Spectrum.effective_dimension`.

    Returns:
        The function, as :func:`solve_limit` takes it.
    """
    return lambda radius: removable_fraction(
        lambda mu: found.effective_dimension(mu, bounds=bounds)[which], radius, epsilon, found.dimension
    )


def finer_distance(distance: np.ndarray, steps: int) -> np.ndarray:
    """Interpolate a coarse curve R(s): the root is a point of the grid, whose steps must not round it.

    Args:
        distance: Distances R at equally spaced sparsities from 0 to 1.
        steps: Steps of the finer grid.

    Returns:
        ``(steps + 1,)`` distances.
    """
    return np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(distance)), distance)


def kinematic_margin(total: int, eta: float = ETA) -> float:
    r"""Return half the width of the transition window, :math:`\sqrt{8 \log(4 / \eta)} / \sqrt{D}`.

    Source: Amelunxen, Lotz, McCoy and Tropp (2014), the approximate kinematic formula.

    Args:
        total: Ambient dimension, D.
        eta: Probability with which the statement may fail.

    Returns:
        The margin as a fraction of the dimension.
    """
    return transition_window(total, eta) / total


@dataclasses.dataclass
class PruningLimit:
    """How far a network can be pruned, by one method.

    Attributes:
        sparsity: The limit: largest fraction of the prunable weights that can be removed.
        interval: Low and high end of what the numbers allow.
        epsilon: Tolerated rise of the training loss, in its units: nats for a cross-entropy.
        lower: Lower end of the kinematic formula's window: there the subspace meets the sublevel set of a quadratic
            loss without gradient with probability 0.99; ``None`` for methods without one.
        upper: Upper end: there they miss with probability 0.99. For cone and cut that is proved if the curvature is
            positive semi-definite; for the formula it holds only if the step is stiff. ``None`` for methods without one.
        radius: Distance R between the trained and the pruned weights at the limit.
        dimension: Effective dimension d at the limit; ``None`` for methods without one.
        curve: Columns ``sparsity``, ``radius`` and, by method, ``removable`` (with ``low`` and ``high``) or ``rise``; for
            refit also ``reached``, the rise over the dense loss that is really reached.
        cost: ``products`` (Hessian products), ``evaluations`` (of the loss) and ``seconds``.
        method: ``"formula"``, ``"cone"``, ``"cut"``, ``"directional"``, ``"refit"`` or ``"measured"``.
        total: Number of prunable weights, D.
        examples: Number of training examples N that the loss was taken over.
        spectrum: The Lanczos coefficients, for formula, cone and cut.
        trend: Where the trend from half of the sampled examples to all of them leads for all the data; ``None`` if the
            Hessian is that of all the data. It lies in the interval.
        terms: What N counts: ``"examples"``, or ``"targets"`` where some targets have no part in the loss.
    """

    sparsity: float
    interval: tuple[float, float]
    epsilon: float
    lower: float | None
    upper: float | None
    radius: float
    dimension: float | None
    curve: pd.DataFrame
    cost: dict[str, float]
    method: str
    total: int
    examples: int
    spectrum: Spectrum | None = None
    trend: float | None = None
    terms: str = "examples"

    @property
    def density(self) -> float:
        """Fraction of the prunable weights that is kept."""
        return 1 - self.sparsity

    @property
    def unbounded(self) -> bool:
        """Whether a search along the path came to its end: the loss stayed within epsilon at every sparsity that was tried."""
        return "rise" in self.curve and self.interval[1] == 1

    @property
    def resolved(self) -> bool:
        """Whether the interval is narrower than one point, from a Hessian of all the data.

        A sample never resolves: two small ones may agree while the whole set differs, as the book shows.
        """
        return self.interval[1] - self.interval[0] < 0.01 and self.trend is None

    @property
    def rounding(self) -> float:
        """What rounding of the products may change in d(2 eps / R^2) / D at the limit; part of the interval."""
        if self.spectrum is None or not self.radius:
            return 0.0
        return float(self.spectrum.slack(2 * self.epsilon / self.radius**2))

    def plot(self) -> Figure:
        """Draw the curve whose crossing is the limit."""
        from prunelimit.figures import plot_limit  # figures come after the limit in the order of imports

        return plot_limit(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: everything but the curve and the spectrum."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("curve", "spectrum")]
        values = {name: getattr(self, name) for name in names}
        return values | {"interval": list(self.interval), "density": self.density, "resolved": self.resolved}

    def __repr__(self) -> str:
        """Say the limit, its interval and what it rests on, in a few lines."""
        state = "resolved" if self.resolved else "NOT resolved: more steps or probes would narrow it"
        if not self.resolved and self.rounding > ROUNDING:
            state = "NOT resolved: rounding hides the small eigenvalues, float64 or inputs of one scale show them"
        if self.trend is not None:
            state = f"NOT resolved: from a sample, whose trend leads to {self.trend:.1%}"
        cost = ", ".join(f"{value:.3g} {name}" for name, value in self.cost.items() if value)
        lines = [
            f"PruningLimit by {self.method}: remove at most {self.sparsity:.1%} of {self.total:,} weights",
            f"  meaning    {MEANING.get(self.method, self.method)}",
            f"  interval   {self.interval[0]:.1%} to {self.interval[1]:.1%} ({state})",
            f"  epsilon    a rise of the loss by {self.epsilon:.4g} over {self.examples:,} {self.terms}, distance R = {self.radius:.4g}",
        ]
        if self.lower is not None and self.upper is not None:
            # With the distance R the upper end rests on an approximation; it needs the direction of the step.
            sides = "below it" if self.method == "formula" else "on each side"
            lines.append(
                f"  window     {self.lower:.1%} to {self.upper:.1%}: the kinematic formula's transition, 99 % {sides}"
            )
        if self.unbounded:
            lines.append(f"  note       {UNBOUNDED}")
        return "\n".join([*lines, f"  cost       {cost}"])

    def _repr_html_(self) -> str:
        """Show the same in a notebook as a table."""
        rows = [
            ("limit (fraction removed)", f"{self.sparsity:.1%} of {self.total:,} weights"),
            (
                "interval",
                f"{self.interval[0]:.1%} – {self.interval[1]:.1%}{'' if self.resolved else ' (not resolved)'}",
            ),
            ("epsilon", f"a rise of the loss by {self.epsilon:.4g} over {self.examples:,} {self.terms}"),
            ("method", self.method),
        ]
        cells = "".join(f"<tr><th scope='row'>{name}</th><td>{value}</td></tr>" for name, value in rows)
        return f"<table><caption>Pruning limit</caption>{cells}</table>"


def dense_loss(model: nn.Module, loss_fn: LossFunction, batches: Batches) -> tuple[float, list[float]]:
    """Measure the loss before anything is pruned.

    Args:
        model: The network.
        loss_fn: Maps output and targets to the batch's mean loss.
        batches: The data.

    Returns:
        Mean loss over all examples, and the loss of each batch.

    Raises:
        PruneLimitError: If the mean is not finite.
    """
    mean, losses = mean_loss(model, loss_fn, batches)
    if not math.isfinite(mean):
        raise PruneLimitError(f"loss_fn returned {mean} on the dense model: check the data and the weights for NaN.")
    return mean, losses


def _rows(targets: Any) -> int:
    value = bare(targets)
    return len(value if isinstance(value, Tensor) else targets)


def default_epsilon(model: nn.Module, loss_fn: LossFunction, batches: Batches) -> float:
    """Return the default epsilon: the standard deviation of the loss over training batches of 128 examples.

    Source: the released code of the fundamental-limit paper.

    Args:
        model: The trained network.
        loss_fn: Maps output and targets to the batch's mean loss.
        batches: The training data; re-cut where batches can be cut and are of one shape, otherwise used as they are.

    Returns:
        Epsilon in the units of the loss.

    Raises:
        PruneLimitError: If there are fewer than two batches or their losses are all equal.
    """
    together = joined(batches)
    if together is not None:
        inputs, targets = together
        whole = len(targets) - len(targets) % EPSILON_BATCH or len(targets)
        batches = split_rows([(inputs[:whole], targets[:whole])], EPSILON_BATCH)
    _, losses = dense_loss(model, loss_fn, batches)
    epsilon = float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0
    if not epsilon > 0:
        raise PruneLimitError(
            "epsilon=None needs at least two batches of 128 examples with different losses: give epsilon."
        )
    if together is None and any(_rows(targets) != EPSILON_BATCH for _, targets in batches):
        _log.warning(
            "epsilon=%.3g is the spread over the batches as they were given, which cannot be cut into batches of %d: smaller ones "
            "make it larger, so give epsilon.",
            epsilon,
            EPSILON_BATCH,
        )
    if len(losses) < FEW_BATCHES:
        # The relative standard error of a standard deviation from n normal numbers.
        error = 1 / math.sqrt(2 * (len(losses) - 1))
        _log.warning(
            "epsilon=%.3g is the spread of %d batches only, uncertain by %.0f %% and dependent on the order of the data: "
            "give epsilon.",
            epsilon,
            len(losses),
            100 * error,
        )
    return epsilon


def formula_limit(
    found: Spectrum,
    distance: np.ndarray,
    epsilon: float,
    *,
    examples: int = 0,
    cost: dict[str, float] | None = None,
    bounds: str = "certified",
) -> PruningLimit:
    """Solve for the limit from Lanczos coefficients and the distances alone: no network, no data.

    Args:
        found: The spectrum.
        distance: ``(D + 1,)`` distances R, as in :class:`MagnitudePath`; a coarser, equally spaced curve is interpolated,
            and the interval does not know by how much that is off.
        epsilon: Tolerated rise of the loss.
        examples: Number of examples behind the spectrum, for the report.
        cost: What the spectrum cost, for the report.
        bounds: Which bounds of d(mu) make the interval; see :meth:`~prunelimit.curvature.Spectrum.effective_dimension`.

    Returns:
        The limit by the theorem's formula. Its interval comes from solving with the high and the low end of d(mu).

    Raises:
        PruneLimitError: If epsilon is not positive or ``bounds`` is unknown.
    """
    epsilon, least = check_epsilon(epsilon), min(found.dimension, ROOT_STEPS)
    if len(distance) <= least:
        distance = finer_distance(distance, least)
    sides = [formula_side(found, which, epsilon, bounds) for which in range(3)]
    value = solve_limit(distance, sides[0])
    interval = (solve_limit(distance, sides[2]), solve_limit(distance, sides[1]))
    margin = kinematic_margin(found.dimension)
    grid = np.arange(CURVE_POINTS) / CURVE_POINTS
    radius = np.interp(grid, np.linspace(0, 1, len(distance)), distance)
    # A larger dimension removes less: the high end of d is the low end of the fraction.
    columns = {name: sides[which](radius) for name, which in (("removable", 0), ("low", 2), ("high", 1))}
    reached = float(distance[round(value * (len(distance) - 1))])
    at_root = found.dimension * (1 - float(sides[0](np.array([reached]))[0]))
    return PruningLimit(
        sparsity=value,
        interval=(min(interval), max(interval)),
        epsilon=epsilon,
        lower=solve_limit(distance, sides[0], -margin),
        upper=solve_limit(distance, sides[0], margin),
        radius=reached,
        dimension=at_root,
        curve=pd.DataFrame({"sparsity": grid, "radius": radius, **columns}),
        cost=cost or {},
        method="formula",
        total=found.dimension,
        examples=examples,
        spectrum=found,
    )


def stretch_to_population(whole: PruningLimit, half: PruningLimit, population: int) -> PruningLimit:
    r"""Let the interval of a limit from a sample of the data hold where its trend leads for all the data.

    A Hessian averaged over n examples differs from the one over all by sampling noise, whose share in the absolute
    eigenvalues falls with the root of n: a bias, not a noise, for the limit. With :math:`s(n) = s_\infty + c / \sqrt{n}`
    the limits of a sample and of half of it tell c. The exponent is an assumption, which the
    book holds against measured trends.

    Args:
        whole: The formula's limit from a sample of n examples, ``whole.examples``.
        half: The same from half of them.
        population: Number of examples N in all.

    Returns:
        The limit of the whole sample, with the trend and an interval that holds it.

    Raises:
        PruneLimitError: If the half is not smaller than the whole, or the whole larger than the population.
    """
    if not 0 < half.examples < whole.examples <= population:
        raise PruneLimitError(
            f"examples={half.examples}, {whole.examples} of {population}: give a sample, and a smaller part of it."
        )
    roots = [n**-0.5 for n in (half.examples, whole.examples, population)]
    shift = (whole.sparsity - half.sparsity) * (roots[1] - roots[2]) / (roots[0] - roots[1])
    low, high = whole.interval
    interval = max(0.0, low + min(shift, 0.0)), min(1.0, high + max(shift, 0.0))
    return dataclasses.replace(whole, interval=interval, trend=min(max(whole.sparsity + shift, 0.0), 1.0))


def tell_rounding(limit: PruningLimit) -> None:
    """Warn if rounding has a part in the interval that cannot be overlooked.

    Args:
        limit: A limit by the formula, cone or cut.
    """
    if limit.spectrum is not None and limit.rounding > ROUNDING:
        _log.warning(
            "Rounding of the products leaves %.1f points of d / D open: 2 epsilon / R^2 = %.1e is small beside the largest "
            "eigenvalue, %.1e. Bring the inputs to one scale, or give model and data in float64.",
            100 * limit.rounding,
            2 * limit.epsilon / limit.radius**2,
            limit.spectrum.largest,
        )


def check_epsilon(epsilon: float) -> float:
    """Return epsilon, or say that it must be a positive number.

    Args:
        epsilon: Tolerated rise of the loss.

    Returns:
        The same number as a float.

    Raises:
        PruneLimitError: If it is not a positive, finite number.
    """
    try:
        value = math.nan if isinstance(epsilon, str) else float(epsilon)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise PruneLimitError(
            f"epsilon={epsilon!r} must be a positive number: the tolerated rise of the training loss."
        )
    return value
