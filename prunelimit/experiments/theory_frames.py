"""What larger weights would do to the limit, and what the trace alone says about it: records in, data frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from prunelimit.checks import positives
from prunelimit.curvature.quadrature import TAIL, Spectrum, gauss_rule
from prunelimit.experiments.frames import Cell, fine_distance
from prunelimit.experiments.quadratic import QuadraticWell
from prunelimit.limit import formula_side, solve_limit

#: So many times the largest eigenvalue is a resolution at which the effective dimension is the trace, to nine digits.
FAR = 1e9

#: Shares of the trace for which the smallest number of eigenvalues is counted.
SHARES = (0.5, 0.9)


def scaling_frame(cells: Sequence[Cell], factors: float | Sequence[float]) -> pd.DataFrame:
    """Solve for the limit with the weights multiplied and the Hessian held fixed.

    Args:
        cells: Recorded cells.
        factors: Numbers c by which the weights are multiplied; the resolution mu is divided by their squares.

    Returns:
        One row per cell and factor: ``title``, ``task``, ``profile``, ``seed``, ``factor``, the limit ``sparsity`` with its
        interval ``low`` to ``high``, and ``radius``, the distance at the limit.

    Raises:
        PruneLimitError: If there is no factor, or one is not positive.
    """
    rows, factors = [], positives("factors", factors)
    for cell in cells:
        found, epsilon = Spectrum.from_dict(cell.record["spectrum"]), cell.record["epsilon"]
        distance = fine_distance(cell.record)
        sides = [formula_side(found, which, epsilon) for which in range(3)]
        for factor in factors:
            value, *ends = (solve_limit(factor * distance, side) for side in sides)
            rows.append(
                {
                    "title": cell.title,
                    "task": cell.task.name,
                    "profile": cell.profile,
                    "seed": cell.seed,
                    "factor": factor,
                    "sparsity": value,
                    "low": min(ends),
                    "high": max(ends),
                    "radius": factor * float(distance[round(value * (len(distance) - 1))]),
                }
            )
    return pd.DataFrame(rows)


def absolute_trace(found: Spectrum) -> tuple[float, float, float]:
    r"""Estimate :math:`\mathrm{Tr} |H|` with an interval.

    At a resolution far above the largest eigenvalue :math:`\mu\, d(\mu)` is the trace, so the certified bounds of the
    effective dimension, and the noise of the probe, hold for it too.

    Args:
        found: The spectrum.

    Returns:
        Value, low and high.
    """
    far = FAR * found.largest
    value, low, high = (far * float(part) for part in found.effective_dimension(far))
    return value, low, high


def trace_limit(distance: np.ndarray, trace: float, epsilon: float) -> float:
    r"""Solve for the limit with the bound by the trace in place of the effective dimension.

    At distance R at least :math:`1 / (1 + \kappa)` can be removed, with :math:`\kappa = R^2\, \mathrm{Tr} |H| / (2 \epsilon
    D)`; so this limit never exceeds that of the formula.

    Args:
        distance: ``(D + 1,)`` distances R, or a coarser, equally spaced curve.
        trace: Of the absolute Hessian, divided by the number of weights D.
        epsilon: Tolerated rise of the loss.

    Returns:
        The fraction removed.
    """
    return solve_limit(distance, lambda radius: 1 / (1 + radius**2 * trace / (2 * epsilon)))


def trace_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Put the limit from the trace alone beside the formula's, for recorded networks.

    Args:
        cells: Recorded cells.

    Returns:
        One row per cell: ``title``, ``task``, ``profile``, ``seed``, ``formula``, ``formula_low``, ``formula_high``; ``bound``,
        ``bound_low``, ``bound_high``, the limit from the trace; ``trace``, ``trace_low``, ``trace_high``; ``needed``, the
        density that the formula asks for at its limit, and ``granted``, what the trace asks for there; ``measured``; and
        for each of ``SHARES`` how few eigenvalues hold it, as in :func:`holders`.
    """
    rows = []
    for cell in cells:
        limit, record = cell.limit, cell.record
        found = Spectrum.from_dict(record["spectrum"])
        distance, epsilon = fine_distance(record), record["epsilon"]
        trace = absolute_trace(found)
        bound, high, low = (trace_limit(distance, t / found.dimension, epsilon) for t in trace)
        load = limit.radius**2 * trace[0] / found.dimension / (2 * epsilon)
        points = concentration(found)
        rows.append(
            {
                "title": cell.title,
                "task": cell.task.name,
                "profile": cell.profile,
                "seed": cell.seed,
                "formula": limit.sparsity,
                "formula_low": limit.interval[0],
                "formula_high": limit.interval[1],
                "bound": bound,
                "bound_low": low,
                "bound_high": high,
                **dict(zip(("trace", "trace_low", "trace_high"), trace, strict=True)),
                "needed": (limit.dimension or 0.0) / limit.total,
                "granted": load / (1 + load),
                "measured": record["measured"]["sparsity"],
                **{f"holds_{share:.0%}": holders(points, share) for share in SHARES},
            }
        )
    return pd.DataFrame(rows)


def concentration(found: Spectrum) -> pd.DataFrame:
    """Estimate how much of the trace of the absolute Hessian sits in how few eigenvalues.

    The Gauss rules of H after the last step counts are pooled. A node stands for about its weight times D eigenvalues. For a
    single outlier that is right on average only: one probe may count it as a tenth or as four.

    Args:
        found: The spectrum.

    Returns:
        Columns ``eigenvalues``, the share of all eigenvalues, the largest magnitudes first, and ``trace``, the share of
        the trace that they hold.
    """
    rules = [
        gauss_rule(probe.alpha[:steps], probe.beta[:steps])
        for probe in found.probes
        for steps in range(max(len(probe.alpha) - TAIL + 1, 1), len(probe.alpha) + 1)
    ]
    nodes = np.abs(np.concatenate([rule[0] for rule in rules]))
    weights = np.concatenate([rule[1] for rule in rules]) * found.active / (found.dimension * len(rules))
    order = np.argsort(-nodes)
    held = np.cumsum(weights[order] * nodes[order])
    return pd.DataFrame({"eigenvalues": np.cumsum(weights[order]), "trace": held / held[-1]})


def exact_concentration(eigenvalues: np.ndarray) -> pd.DataFrame:
    """Return the same as :func:`concentration` from all eigenvalues."""
    held = np.cumsum(np.sort(np.abs(eigenvalues))[::-1])
    share = np.arange(1, len(eigenvalues) + 1) / len(eigenvalues)
    return pd.DataFrame({"eigenvalues": share, "trace": held / held[-1]})


def holders(points: pd.DataFrame, share: float) -> float:
    """Return the share of the eigenvalues, the largest first, that holds a share of the trace.

    Args:
        points: Output of :func:`concentration` or :func:`exact_concentration`.
        share: Of the trace, above 0 and at most 1.

    Returns:
        The share of the eigenvalues, interpolated between the points.
    """
    return float(np.interp(share, np.r_[0.0, points.trace], np.r_[0.0, points.eigenvalues]))


def concentration_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Stack :func:`concentration` of recorded cells, with ``title`` and ``seed``."""
    parts = [
        concentration(Spectrum.from_dict(cell.record["spectrum"])).assign(title=cell.title, seed=cell.seed)
        for cell in cells
    ]
    return pd.concat(parts, ignore_index=True)


def bound_curves(wells: Mapping[str, QuadraticWell], points: int = 200) -> pd.DataFrame:
    """Compute the removable fraction along the path of pruning, by the formula and by the trace.

    Args:
        wells: Quadratics by name.
        points: Sparsities.

    Returns:
        Columns ``name``, ``sparsity``, ``formula`` and ``bound``.
    """
    parts = []
    for name, well in wells.items():
        removed = np.unique(np.linspace(0, well.dimension, points).round().astype(int))
        radius = well.distance[removed]
        formula = well.removable(radius)
        bound = 1 / (1 + radius**2 * well.eigenvalues.mean() / (2 * well.epsilon))
        columns = {"sparsity": removed / well.dimension, "formula": formula, "bound": bound}
        parts.append(pd.DataFrame({"name": name, **columns}))
    return pd.concat(parts, ignore_index=True)


def bound_limits(wells: Mapping[str, QuadraticWell]) -> pd.DataFrame:
    """Tabulate the limits of quadratics by the formula and by the trace.

    Args:
        wells: Quadratics by name.

    Returns:
        One row each: ``name``, ``formula``, ``bound``, ``lost`` (the difference), and for each of ``SHARES`` how few
        eigenvalues hold it.
    """
    rows = []
    for name, well in wells.items():
        formula = well.predicted()
        bound = trace_limit(well.distance, float(well.eigenvalues.mean()), well.epsilon)
        points = exact_concentration(well.eigenvalues)
        held = {f"holds_{share:.0%}": holders(points, share) for share in SHARES}
        rows.append({"name": name, "formula": formula, "bound": bound, "lost": formula - bound, **held})
    return pd.DataFrame(rows)
