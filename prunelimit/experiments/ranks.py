"""Rank statistics of a grid, with intervals from resampling what its rows have in common.

The rows of a grid are not independent: cells of one column share a value of the temperature-like parameter, and networks of one
seed their initial weights. So values and seeds are drawn with replacement, both (Owen and Eckles 2012), and a
row counts as often as both of its labels were drawn. All statistics here take such counts, one row of them per draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunelimit.errors import PruneLimitError

#: Draws of the bootstrap.
DRAWS = 2000

#: An interval leaves out this share of the draws, half of it on either side.
OUTSIDE = 0.05

#: Draws that have to have a value, as a share of all, for an interval to mean anything.
ENOUGH = 0.5


def cluster_counts(labels: Sequence[npt.ArrayLike], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Draw how often each row counts if the values of its labels are resampled.

    Args:
        labels: Label columns, each of n entries; every column is resampled by itself.
        draws: How many times.
        seed: Of the draws.

    Returns:
        ``(draws, n)`` whole numbers.

    Raises:
        PruneLimitError: If there are no columns, or their lengths differ.
    """
    columns = [np.asarray(label) for label in labels]
    if not columns or len({len(column) for column in columns}) > 1:
        raise PruneLimitError("labels must be one or more columns with an entry for every row.")
    generator = np.random.default_rng(seed)
    counts = np.ones((draws, len(columns[0])))
    for column in columns:
        names, places = np.unique(column, return_inverse=True)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        counts *= drawn[:, places]
    return counts


def _weights(counts: npt.ArrayLike | None, rows: int) -> np.ndarray:
    """Give how often each row counts, ``(draws, n)``; without counts one draw, in which each counts once."""
    return np.ones((1, rows)) if counts is None else np.asarray(counts, dtype=float)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    there = below > 1e-12
    return np.where(there, above / np.where(there, below, 1), np.nan)


def spearman(first: npt.ArrayLike, second: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> np.ndarray:
    """Compute Spearman's rank correlation; ties have the mean of their ranks.

    Args:
        first: ``(n,)`` values.
        second: ``(n,)`` values.
        counts: ``(draws, n)``, how often each row counts; once each by default.

    Returns:
        ``(draws,)``; NaN where one of the two does not vary.

    Example:
        >>> spearman([1, 2, 3], [10, 30, 20]).round(3).tolist()
        [0.5]
    """
    columns = [np.asarray(values, dtype=float) for values in (first, second)]
    weights = _weights(counts, len(columns[0]))
    size = weights.sum(1, keepdims=True)
    ranks = []
    for values in columns:
        below = (values[:, None] < values) + (values[:, None] == values) / 2
        rank = weights @ below
        ranks.append(rank - _ratio((weights * rank).sum(1, keepdims=True), size))
    one, other = ranks
    above = (weights * one * other).sum(1)
    return _ratio(above, np.sqrt((weights * one**2).sum(1) * (weights * other**2).sum(1)))


def concordance(
    score: npt.ArrayLike,
    positive: npt.ArrayLike,
    counts: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
) -> np.ndarray:
    """Compute how often a positive row has the higher score than a negative one: the area under the ROC curve.

    Args:
        score: ``(n,)`` values; a tie counts one half.
        positive: ``(n,)`` truth values.
        counts: ``(draws, n)``, how often each row counts; once each by default.
        groups: ``(n,)`` labels if only rows of one group are to be compared.

    Returns:
        ``(draws,)`` between 0 and 1, one half for a score that knows nothing; NaN where there is no pair to compare.
    """
    values, truth = np.asarray(score, dtype=float), np.asarray(positive, dtype=bool)
    weights = _weights(counts, len(values))
    pairs = np.outer(truth, ~truth).astype(float)
    if groups is not None:
        labels = np.asarray(groups)
        pairs *= labels[:, None] == labels
    wins = (values[:, None] > values) + (values[:, None] == values) / 2
    above, below = (((weights @ matrix) * weights).sum(1) for matrix in (pairs * wins, pairs))
    return _ratio(above, below)


def grouped_spearman(
    first: npt.ArrayLike, second: npt.ArrayLike, groups: npt.ArrayLike, counts: npt.ArrayLike | None = None
) -> np.ndarray:
    """Average Spearman's correlation over groups of rows; groups in which something does not vary are left out.

    Args:
        first: ``(n,)`` values.
        second: ``(n,)`` values.
        groups: ``(n,)`` labels.
        counts: ``(draws, n)``, how often each row counts; once each by default.

    Returns:
        ``(draws,)``; NaN where no group is left.
    """
    one, other, labels = np.asarray(first, dtype=float), np.asarray(second, dtype=float), np.asarray(groups)
    weights = _weights(counts, len(one))
    members = [labels == name for name in np.unique(labels)]
    found = np.array([spearman(one[m], other[m], weights[:, m]) for m in members])
    there = ~np.isnan(found)
    return _ratio(np.where(there, found, 0).sum(0), there.sum(0).astype(float))


def interval(values: npt.ArrayLike) -> tuple[float, float]:
    """Give the central interval of the draws; NaN if too many draws have no value.

    Args:
        values: ``(draws,)`` of a statistic.

    Returns:
        Its ends.
    """
    found: Any = np.asarray(values, dtype=float)
    there = found[~np.isnan(found)]
    if len(there) < ENOUGH * len(found) or not len(there):
        return np.nan, np.nan
    low, high = np.quantile(there, [OUTSIDE / 2, 1 - OUTSIDE / 2])
    return float(low), float(high)
