"""Experiments in convex geometry, as tables: how large the cone over an ellipsoid is, and when a random subspace meets it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from prunelimit.checks import integer, integers, positives, within
from prunelimit.errors import PruneLimitError
from prunelimit.geometry import (
    CircularCone,
    Cone,
    EllipsoidCone,
    L1DescentCone,
    Orthant,
    confocal_dimension,
    ellipsoid_dimension,
    first_meeting,
    kinematic_bound,
    meeting_probability,
    projected_squares,
    random_rotation,
    seen_from,
    statistical_dimension,
    transition_window,
)

#: Ratio of the longest to the shortest half-axis of the wide ellipsoid, whose curvature spans the square of it.
RATIO = 30.0


def half_axes(name: str, total: int) -> np.ndarray:
    """Return the half-axes of an example, the longest of them one.

    Args:
        name: ``"wide"`` (equally spaced on a logarithmic scale), ``"few flat"`` (one in ten is one, the rest are a twentieth)
            or ``"ball"`` (all equal, with the mean square of the wide one).
        total: Dimension D.

    Returns:
        ``(D,)`` array.

    Raises:
        PruneLimitError: If the name is unknown.
    """
    wide = np.geomspace(1 / RATIO, 1, total)
    examples = {
        "wide": wide,
        "few flat": np.where(np.arange(total) < math.ceil(total / 10), 1.0, 0.05),
        "ball": np.full(total, math.sqrt(float((wide**2).mean()))),
    }
    if name not in examples:
        raise PruneLimitError(f"name={name!r} is unknown: choose one of {', '.join(examples)}.")
    return examples[name]


def lines_frame(cone: EllipsoidCone, count: int = 12) -> pd.DataFrame:
    """Turn a line through the sparse point of a plane, and test at each angle whether it meets the ellipse.

    Args:
        cone: The cone over an ellipse.
        count: Number of angles, equally spaced over half a turn.

    Returns:
        Columns ``angle`` (radians) and ``meets``.
    """
    angles = math.pi * (np.arange(count) + 0.5) / count
    met = [first_meeting(cone, np.array([[math.cos(a)], [math.sin(a)]])) is not None for a in angles]
    return pd.DataFrame({"angle": angles, "meets": met})


def dimension_frame(
    names: Iterable[str], total: int, distances: Sequence[float], directions: Iterable[str], samples: int, seed: int = 0
) -> pd.DataFrame:
    """Measure the statistical dimension of ellipsoid cones next to what the formulas say.

    Args:
        names: Examples; see :func:`half_axes`.
        total: Dimension D.
        distances: Distances R; those from which the point would lie inside the ellipsoid are left out.
        directions: Directions of the offset; see :func:`~prunelimit.geometry.seen_from`.
        samples: Normal vectors per cone.
        seed: Seed of the directions and of the vectors, the same for every cone.

    Returns:
        One row per cone: ``ellipsoid``, ``direction``, ``distance``, ``measured``, ``error`` (standard error), ``formula`` (with the
        distance R), ``confocal`` (with the confocal distance), ``exact`` (for a ball, else NaN), ``low`` and ``high`` (what is
        proved), ``difference`` (formula minus measured).

    Raises:
        PruneLimitError: If an argument is out of range, or no distance leads outside.
    """
    integer("total", total, least=3)
    rows, distances = [], positives("distances", distances)
    for name in names:
        axes = half_axes(name, total)
        for direction in directions:
            for distance in distances:
                offset = seen_from(axes, distance, direction, seed)
                if float(((offset / axes) ** 2).sum()) <= 1:
                    continue
                cone = EllipsoidCone(axes, offset)
                found, formula = statistical_dimension(cone, samples, seed), ellipsoid_dimension(axes, distance)
                low, high = cone.dimension_bounds()
                rows.append(
                    {
                        "ellipsoid": name,
                        "direction": direction,
                        "distance": distance,
                        "measured": found.value,
                        "error": found.error,
                        "formula": formula,
                        "confocal": confocal_dimension(axes, offset),
                        "exact": math.nan if found.exact is None else found.exact,
                        "low": low,
                        "high": high,
                        "difference": formula - found.value,
                    }
                )
    if not rows:
        raise PruneLimitError(f"distances={distances} all lie inside the ellipsoids: give larger ones.")
    return pd.DataFrame(rows)


def concentration_frame(
    totals: Sequence[int], distance: float, draws: int, name: str = "wide", seed: int = 0
) -> pd.DataFrame:
    """Draw squared norms of projected normal vectors in several dimensions.

    Args:
        totals: Dimensions D.
        distance: Distance R of the ellipsoid's centre, in the isotropic direction.
        draws: Normal vectors per dimension, at least two.
        name: Example; see :func:`half_axes`.
        seed: Seed of the vectors.

    Returns:
        One row per vector: ``total`` and ``share``, the squared norm divided by D.

    Raises:
        PruneLimitError: If an argument is out of range.
    """
    integer("draws", draws, least=2)
    parts = []
    for total in integers("totals", totals, least=2):
        axes = half_axes(name, total)
        cone = EllipsoidCone(axes, seen_from(axes, distance, "isotropic"))
        share = projected_squares(cone, draws, seed, radial=True) / total
        parts.append(pd.DataFrame({"total": total, "share": share}))
    return pd.concat(parts, ignore_index=True)


def _ellipsoid(total: int) -> EllipsoidCone:
    axes = half_axes("wide", total)
    return EllipsoidCone(axes, seen_from(axes, 0.4, "isotropic"))


#: Cones for the experiment with random subspaces: title, and how to make one in D dimensions.
CONES: dict[str, Callable[[int], Cone]] = {
    "orthant": Orthant,
    "circular cone, 30°": lambda total: CircularCone(total, math.pi / 6),
    "cone over an ellipsoid": _ellipsoid,
    "descent cone of the l1 norm": lambda total: L1DescentCone(np.arange(total) < max(1, round(0.12 * total))),
}


def thresholds_frame(totals: Sequence[int], rotations: int, seed: int = 0) -> pd.DataFrame:
    """Find, for random rotations, the least dimension at which a subspace meets each cone.

    Args:
        totals: Dimensions D.
        rotations: Random rotations per dimension; the same ones serve all cones.
        seed: Seed of the rotations.

    Returns:
        One row per cone and rotation: ``cone``, ``total`` and ``first``, the least number of columns of the rotation whose span
        meets the cone.

    Raises:
        PruneLimitError: If a dimension or the number of rotations is too small.
    """
    integer("rotations", rotations)
    rows = []
    for total in integers("totals", totals, least=2):
        rng = np.random.default_rng([seed, total])
        cones = {name: make(total) for name, make in CONES.items()}
        for _ in range(rotations):
            rotation = random_rotation(total, rng)
            rows += [{"cone": n, "total": total, "first": first_meeting(c, rotation)} for n, c in cones.items()]
    return pd.DataFrame(rows)


def wilson_interval(count: np.ndarray, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Bound a probability from a count of successes with 95 % confidence (Wilson 1927).

    Args:
        count: Successes.
        trials: Number of trials.

    Returns:
        Lower and upper ends, of the shape of ``count``.
    """
    share, z = np.asarray(count) / trials, stats.norm.ppf(0.975)
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return np.clip(middle - half, 0, share), np.clip(
        middle + half, share, 1
    )  # at the ends rounding would leave them outside


def phase_frame(thresholds: pd.DataFrame) -> pd.DataFrame:
    """Turn thresholds into the probability of meeting, for every dimension of the subspace.

    Args:
        thresholds: Output of :func:`thresholds_frame`.

    Returns:
        One row per cone, D and dimension m from 0 to D: ``probability`` with its Wilson interval ``low`` and ``high``, ``exact`` where
        it is known (else NaN), ``delta`` (exact where known, otherwise by Monte Carlo), ``scaled``, the gap ``(m + delta - D) /
        sqrt(D)``, and the kinematic formula's ``least`` and ``most``.
    """
    parts = []
    for _, group in thresholds.groupby(["cone", "total"], sort=False):
        name, total = str(group.cone.iloc[0]), int(group.total.iloc[0])
        cone = CONES[name](total)
        known = cone.statistical_dimension()
        delta = statistical_dimension(cone).value if known is None else known
        dimension = np.arange(total + 1)
        count = (group["first"].to_numpy()[:, None] <= dimension).sum(axis=0)
        low, high = wilson_interval(count, len(group))
        exact = [meeting_probability(cone, int(m)) for m in dimension]
        bounds = np.array([kinematic_bound(m + delta, total) for m in dimension])
        part = {"cone": name, "total": total, "dimension": dimension, "probability": count / len(group)}
        part |= {"low": low, "high": high, "exact": np.array(exact, dtype=float), "delta": delta}
        part |= {"scaled": (dimension + delta - total) / math.sqrt(total), "least": bounds[:, 0], "most": bounds[:, 1]}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def window_frame(thresholds: pd.DataFrame, phase: pd.DataFrame, eta: float) -> pd.DataFrame:
    """Compare the width of the transition with what the kinematic formula allows.

    Args:
        thresholds: Output of :func:`thresholds_frame`.
        phase: Output of :func:`phase_frame`.
        eta: The transition runs from probability eta to one minus eta; below one half.

    Returns:
        One row per cone and D: ``predicted`` (D minus delta), ``median`` of the thresholds, ``half_width`` (half of what lies between
        the quantiles eta and one minus eta), ``allowed`` (the half-width of the window), and ``outside``, how many dimensions m have
        a Wilson interval that lies outside the formula's bounds.

    Raises:
        PruneLimitError: If eta is out of range.
    """
    within("eta", eta, 0, 0.5)
    rows = []
    for _, group in thresholds.groupby(["cone", "total"], sort=False):
        name, total = str(group.cone.iloc[0]), int(group.total.iloc[0])
        part = phase[(phase.cone == name) & (phase.total == total)]
        first = group["first"].to_numpy()
        low, high = np.quantile(first, [eta, 1 - eta])
        rows.append(
            {
                "cone": name,
                "total": total,
                "delta": part.delta.iloc[0],
                "predicted": total - part.delta.iloc[0],
                "median": float(np.median(first)),
                "half_width": (high - low) / 2,
                "allowed": transition_window(total, eta),
                "outside": int(((part.high < part.least) | (part.low > part.most)).sum()),
            }
        )
    return pd.DataFrame(rows)
