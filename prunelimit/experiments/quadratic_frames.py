"""How often subspaces meet the sublevel set of a quadratic: trials in, tidy data frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from prunelimit.checks import integer, integers
from prunelimit.experiments.geometry_frames import wilson_interval
from prunelimit.experiments.quadratic import (
    ORIENTATIONS,
    SUBSPACES,
    QuadraticWell,
    coordinate_rises,
    cut_rises,
    drawn_weights,
    random_rises,
)
from prunelimit.geometry.kinematic import ETA

#: Kinds of eigenvectors that are compared, and the cut alone, to what figures call them.
CASES = {"cut": "random eigenvectors, nothing refitted", **ORIENTATIONS}


def sparsity_counts(dimension: int, points: int) -> list[int]:
    """Return equally spaced numbers of removed weights, from one to all of them."""
    return sorted({round(x) for x in np.linspace(1, dimension, points)})


def success_frame(
    wells: Mapping[str, QuadraticWell], *, trials: int = 60, points: int = 49, seed: int = 0
) -> pd.DataFrame:
    """Measure how often a subspace meets the sublevel set, for the random and for the real one.

    Args:
        wells: Quadratics by name.
        trials: Subspaces, and draws of the eigenvectors.
        points: Sparsities.
        seed: Seed of the trials.

    Returns:
        Columns ``name``, ``subspace`` (``"random"`` or ``"coordinates"``), ``sparsity``, ``probability``, and its Wilson
        interval ``low`` to ``high``.

    Raises:
        PruneLimitError: If there is no trial.
    """
    integer("trials", trials)
    parts = []
    for name, well in wells.items():
        rng = np.random.default_rng(seed)
        counts = sparsity_counts(well.dimension, points)
        rises = {
            "random": random_rises(well, counts, trials, rng),
            "coordinates": coordinate_rises(well, counts, "random", trials, rng),
        }
        for subspace, values in rises.items():
            successes = (values <= well.epsilon).sum(axis=0)
            low, high = wilson_interval(successes, trials)
            columns = {"sparsity": np.array(counts) / well.dimension, "probability": successes / trials}
            parts.append(pd.DataFrame({"name": name, "subspace": subspace, **columns, "low": low, "high": high}))
    return pd.concat(parts, ignore_index=True)


def halfway(frame: pd.DataFrame) -> float:
    """Return the sparsity at which the probability falls through one half.

    Args:
        frame: Rows of :func:`success_frame` of one quadratic and one subspace.

    Returns:
        The sparsity, interpolated between the last point at or above one half and the next one.
    """
    ordered = frame.sort_values("sparsity")
    sparsity, probability = np.r_[0.0, ordered.sparsity], np.r_[1.0, ordered.probability]
    last = int(np.flatnonzero(probability >= 0.5)[-1])
    if last == len(sparsity) - 1:
        return 1.0
    share = (probability[last] - 0.5) / (probability[last] - probability[last + 1])
    return float(sparsity[last] + share * (sparsity[last + 1] - sparsity[last]))


def prediction_frame(wells: Mapping[str, QuadraticWell], success: pd.DataFrame, eta: float = ETA) -> pd.DataFrame:
    """Put the formula's limit beside what the simulation found.

    Args:
        wells: Quadratics by name.
        success: Output of :func:`success_frame` for them.
        eta: Probability with which the kinematic formula may fail.

    Returns:
        One row per quadratic: ``name``, ``lower``, ``formula``, ``upper``; ``random`` and ``coordinates``, where half of the
        trials succeed, and ``random_mean`` and ``coordinates_mean``, where the mean rise passes epsilon.
    """
    rows = []
    for name, well in wells.items():
        lower, upper = well.window(eta)
        row = {"name": name, "lower": lower, "formula": well.predicted(), "upper": upper}
        for subspace in SUBSPACES:
            chosen = success[(success.name == name) & (success.subspace == subspace)]
            row |= {subspace: halfway(chosen), f"{subspace}_mean": well.expected(subspace)}
        rows.append(row)
    return pd.DataFrame(rows)


def orientation_frame(well: QuadraticWell, *, draws: int = 20, points: int = 97, seed: int = 0) -> pd.DataFrame:
    """Compare orientations of the eigenvectors: the smallest rise over the kept coordinates, in units of epsilon.

    Args:
        well: The quadratic.
        draws: Of the eigenvectors, per orientation.
        points: Sparsities.
        seed: Seed of the draws.

    Returns:
        Columns ``orientation`` (a key of ``CASES``), ``label``, ``sparsity``, and of the rise over epsilon the ``median`` and
        the 10 % and 90 % quantiles ``low`` and ``high``.

    Raises:
        PruneLimitError: If there is no draw.
    """
    integer("draws", draws)
    rng = np.random.default_rng(seed)
    counts = sparsity_counts(well.dimension, points)
    found = {name: coordinate_rises(well, counts, name, draws, rng) for name in ORIENTATIONS}
    found = {"cut": cut_rises(well, counts, draws, rng)} | found
    parts = []
    for name, rises in found.items():
        low, median, high = np.quantile(rises / well.epsilon, [0.1, 0.5, 0.9], axis=0)
        columns = {"sparsity": np.array(counts) / well.dimension, "low": low, "median": median, "high": high}
        parts.append(pd.DataFrame({"orientation": name, "label": CASES[name], **columns}))
    return pd.concat(parts, ignore_index=True)


def orientation_table(wells: Mapping[str, QuadraticWell], frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tabulate where the median rise of each orientation passes epsilon.

    Args:
        wells: Quadratics by name.
        frames: Name to the :func:`orientation_frame`.

    Returns:
        Columns ``spectrum``, ``formula s*`` and one per label of ``CASES``; one where the rise never passes.
    """
    rows = []
    for name, frame in frames.items():
        row: dict[str, object] = {"spectrum": name, "formula s*": wells[name].predicted()}
        for label, part in frame.groupby("label", sort=False):
            inside = part.sparsity[part["median"] <= 1]
            row[str(label)] = float(inside.max()) if len(inside) else 0.0
        rows.append(row)
    return pd.DataFrame(rows)


def ball_frame(
    dimensions: int | Sequence[int], epsilon: float, weights: str = "gaussian", *, seed: int = 0, points: int = 400
) -> pd.DataFrame:
    """Compute exactly how often a random subspace meets a ball, where the formula claims too little.

    The squared part of a vector outside of a uniformly random k-dimensional subspace, as a share of the whole, has the Beta
    distribution with parameters (D - k) / 2 and k / 2.

    Args:
        dimensions: Numbers of weights D.
        epsilon: Tolerated rise; the ball has the radius sqrt(2 epsilon), the weights the length one.
        weights: Their distribution, one of ``DISTRIBUTIONS``.
        seed: Seed of the weights.
        points: Sparsities.

    Returns:
        Columns ``dimension``, ``sparsity``, ``probability`` and, the same in all rows of a dimension, ``lower``, ``formula``
        and ``upper``.

    Raises:
        PruneLimitError: If an argument is unknown or out of range.
    """
    parts = []
    for dimension in integers("dimensions", dimensions, least=2):
        well = QuadraticWell(
            np.ones(dimension), drawn_weights(weights, dimension, np.random.default_rng(seed)), epsilon
        )
        removed = np.array(sparsity_counts(dimension, points)[:-1])
        share = 2 * epsilon / well.distance[removed] ** 2
        probability = stats.beta.cdf(share, removed / 2, (dimension - removed) / 2)
        lower, upper = well.window()
        columns = {"sparsity": removed / dimension, "probability": probability}
        columns |= {"lower": lower, "formula": well.predicted(), "upper": upper}
        parts.append(pd.DataFrame({"dimension": dimension, **columns}))
    return pd.concat(parts, ignore_index=True)


def ball_places(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per dimension of a :func:`ball_frame`: its bounds, and ``half``, where the probability is one half."""
    rows = [part.iloc[0].to_dict() | {"half": halfway(part)} for _, part in frame.groupby("dimension")]
    return pd.DataFrame(rows)[["dimension", "lower", "formula", "upper", "half"]]
