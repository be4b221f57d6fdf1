"""Data frames of the recorded lines of sight: how the limits that they give move with the number of products."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.experiments.curvature import EXPERIMENT as CURVATURE
from prunelimit.experiments.frames import Cell
from prunelimit.experiments.sight import EXPERIMENT
from prunelimit.experiments.store import load_record
from prunelimit.sight import SUBSPACES, Sight

#: How far beyond the recorded sparsities the line may be continued, in the logarithm of the density.
_BEYOND = 0.1


def sight_steps_frame(cells: Sequence[Cell], counts: Sequence[int]) -> pd.DataFrame:
    """Tabulate the limits along the line of sight as fewer products would have given them.

    Args:
        cells: Recorded cells; those without a recorded line of sight are left out.
        counts: Products per line of sight.

    Returns:
        One row per cell, number of images and number of products: ``title``, ``seed``, ``examples``, ``steps``, and a column
        for each kind of subspace, missing where the recorded lines of sight do not enclose the limit.
    """
    rows = []
    for cell in cells:
        for spec in cell.task.sight_specs(cell.profile, cell.seed):
            record, probed = load_record(EXPERIMENT, spec), load_record(CURVATURE, spec.spectrum)
            if record is None or probed is None:
                continue
            about = {"title": cell.title, "seed": cell.seed, "examples": probed["examples"]}
            for count in (k for k in counts if k <= spec.sight_steps):
                limits = {name: truncated_limit(record, probed, name, count) for name in SUBSPACES}
                rows.append(about | {"steps": count} | limits)
    return pd.DataFrame(rows, columns=["title", "seed", "examples", "steps", *SUBSPACES])


def truncated_limit(record: dict[str, Any], probed: dict[str, Any], subspace: str, steps: int) -> float:
    """Solve for a limit from the first products of the recorded lines of sight.

    The density that is needed is interpolated between the recorded sparsities, both on logarithmic scales.

    Args:
        record: The record of the lines of sight.
        probed: The record of the spectrum.
        subspace: ``"cone"`` or ``"cut"``.
        steps: Products per line of sight.

    Returns:
        The sparsity, NaN if it lies outside of what was looked at.
    """
    found, points = Spectrum.from_dict(probed["spectrum"]), []
    for values in record["sights"]:
        sight = Sight.from_dict(values)
        if sight.measure is not None:
            sight = dataclasses.replace(sight, measure=sight.measure.truncated(steps))
        needed = 1 - sight.removable(found, probed["epsilon"], subspace)[0]
        points.append((1 - values["sparsity"], max(needed, 0.5 / found.dimension)))
    kept, needed = np.log(np.array(sorted(points))).T
    gaps = needed - kept  # falls as more is kept
    if len(gaps) < 2:
        return float("nan")
    crossings = np.flatnonzero((gaps[:-1] > 0) & (gaps[1:] <= 0))
    k = crossings[0] if len(crossings) else 0 if gaps[0] <= 0 else len(gaps) - 2
    place = kept[k] + (kept[k + 1] - kept[k]) * gaps[k] / (gaps[k] - gaps[k + 1])
    # Just beyond the last point the line goes on.
    return 1 - float(np.exp(place)) if kept[0] - _BEYOND <= place <= kept[-1] + _BEYOND else float("nan")
