"""Data frames of the limit against the size and the shape of the weights, from recorded spectra: figure F7, right."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.frames import FINE_GRID, Cell, fine_distance
from prunelimit.limit import Removable
from prunelimit.pruning.magnitude import effective_sparsity

#: Points of a curve of the limit against the magnitude.
CURVE = 121

#: Distances at which the falling curve is evaluated for it.
DISTANCES = 400


def normal_distance(length: float) -> np.ndarray:
    r"""Compute the distances R(s) of weights that are normal with mean zero and have a given length.

    With q the quantile of a magnitude, :math:`\Phi(q) = (1 + s) / 2`, the cut removes the share :math:`2 \Phi(q) - 1 - 2 q
    \phi(q)` of the squared length.

    Args:
        length: Norm of all weights together.

    Returns:
        ``(FINE_GRID,)`` distances at equally spaced sparsities.
    """
    shares = np.linspace(0, 1, FINE_GRID)
    quantiles = norm.ppf((1 + shares[:-1]) / 2)
    removed = shares[:-1] - 2 * quantiles * norm.pdf(quantiles)
    return length * np.sqrt(np.r_[np.maximum(removed, 0), 1.0])


def scaled_limits(distance: np.ndarray, side: Removable, factors: np.ndarray) -> np.ndarray:
    """Solve for the limits with the weights multiplied by many factors and the Hessian held fixed, all at once.

    At distance R the falling curve gives a fraction s, and the factor that makes s the limit is R / R(s). So one pass over
    the distances gives the whole curve, and no equation is solved.

    Args:
        distance: ``(D + 1,)`` distances R(s), or a coarser, equally spaced curve.
        side: Maps distances to removable fractions.
        factors: Positive numbers.

    Returns:
        The limits, of the shape of ``factors``.

    Raises:
        PruneLimitError: If a factor is not positive.
    """
    factors = np.asarray(factors, dtype=float)
    if not (factors > 0).all():
        raise PruneLimitError(f"factors={factors.tolist()} must be positive: the weights are multiplied by them.")
    shares = np.linspace(0, 1, len(distance))
    low, high = distance[distance > 0][0] * factors.min(), distance[-1] * factors.max()
    for _ in range(2):  # the first time finds out between which distances the factors lie
        radii = np.geomspace(low, high, DISTANCES)
        found = side(radii)
        own = np.interp(found, shares, distance)
        radii, found, own = (part[own > 0] for part in (radii, found, own))
        scales = radii / own
        first, last = np.searchsorted(scales, [factors.min(), factors.max()])
        low, high = radii[max(first - 1, 0)], radii[min(last, len(radii) - 1)]
    return np.interp(np.log(factors), np.log(scales), found)


def falling_curves(cell: Cell, reach: float) -> list[Removable]:
    """Tabulate the removable fraction of a recorded cell against the distance, once for all that read it.

    Args:
        cell: The cell.
        reach: Distances are covered from the first recorded one over this number to the last one times it.

    Returns:
        Interpolating functions of the distance: the value, and those with the low and the high end of the effective
        dimension.
    """
    distance, epsilon = np.array(cell.record["radius"]), cell.record["epsilon"]
    spectrum = Spectrum.from_dict(cell.record["spectrum"])
    radii = np.geomspace(distance[distance > 0][0] / reach, distance[-1] * reach, DISTANCES)
    dimensions = spectrum.effective_dimension(2 * epsilon / radii**2)
    return [functools.partial(_interpolated, np.log(radii), 1 - d / spectrum.dimension) for d in dimensions]


def _interpolated(places: np.ndarray, values: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.interp(np.log(radius), places, values)


#: Columns of :func:`magnitude_frame`.
_CURVES = (
    *("title", "task", "network", "profile", "seed"),
    *("factor", "magnitude", "sparsity", "low", "high", "normal"),
)


def magnitude_frame(cells: Sequence[Cell], reach: float = 10.0) -> pd.DataFrame:
    """Compute the predicted limit against the mean magnitude of the weights, all of them multiplied, Hessian held fixed.

    Args:
        cells: Recorded limits.
        reach: The largest factor; the smallest is its inverse.

    Returns:
        One row per cell and factor: ``title``, ``task``, ``network``, ``profile``, ``seed``, ``factor``, the mean
        ``magnitude``, the limit ``sparsity`` with its interval ``low`` to ``high``, and ``normal``, the limit of normally
        distributed weights of the same length.

    Raises:
        PruneLimitError: If ``reach`` is not larger than one.
    """
    if not reach > 1:
        raise PruneLimitError(f"reach={reach!r} must be larger than 1: the weights are multiplied and divided by it.")
    factors = np.geomspace(1 / reach, reach, CURVE)
    factors[CURVE // 2] = 1.0  # the networks themselves, without rounding
    parts = []
    for cell in cells:
        distance = fine_distance(cell.record)
        value, low, high = falling_curves(cell, reach)
        ends = [scaled_limits(distance, side, factors) for side in (low, high)]
        values = {
            "factor": factors,
            "magnitude": factors * mean_magnitude(cell),
            "sparsity": scaled_limits(distance, value, factors),
            "low": np.minimum(*ends),
            "high": np.maximum(*ends),
            "normal": scaled_limits(normal_distance(float(distance[-1])), value, factors),
        }
        keys = {"title": cell.title, "task": cell.task.name, "network": cell.task.title}
        parts.append(pd.DataFrame(values).assign(**keys, profile=cell.profile, seed=cell.seed))
    return pd.concat(parts, ignore_index=True)[list(_CURVES)] if parts else pd.DataFrame(columns=list(_CURVES))


def mean_magnitude(cell: Cell) -> float:
    """Return the mean magnitude of a cell's weights, from the recorded distances: to within a share of 1e-3 of the weights."""
    effective = 1 - effective_sparsity(np.array(cell.record["radius"]), cell.record["total"])
    return float(np.sqrt(effective / cell.record["total"]) * cell.record["radius"][-1])


def shape_frame(cells: Sequence[Cell], curves: pd.DataFrame) -> pd.DataFrame:
    """Say what the shape of the distribution does to the limit, apart from its size.

    Args:
        cells: Recorded limits.
        curves: Output of :func:`magnitude_frame` for them.

    Returns:
        One row per cell: ``title``, ``profile``, ``seed``, ``magnitude`` (mean), ``rms``, ``effective`` (effective number of
        weights over D), the limit ``formula``, ``normal``, the limit of normally distributed weights of the same length, and
        ``gain``, the difference.
    """
    own = curves[curves.factor == 1].copy()
    total = np.array([cell.record["total"] for cell in cells], dtype=float)
    own["rms"] = np.array([cell.record["radius"][-1] for cell in cells]) / np.sqrt(total)
    own["effective"] = (own.magnitude / own.rms) ** 2
    own["gain"] = own.sparsity - own.normal
    names = ["title", "profile", "seed", "magnitude", "rms", "effective", "sparsity", "normal", "gain"]
    return own[names].rename(columns={"sparsity": "formula"}).reset_index(drop=True)
