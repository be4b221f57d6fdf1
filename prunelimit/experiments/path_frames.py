"""What lies between two children: the error along the straight line and along a trained curve, and how sharp the ends are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from prunelimit.checks import several
from prunelimit.datasets import load_dataset
from prunelimit.experiments.regime_grids import find_grid
from prunelimit.experiments.regimes import retrain_children, train_parents
from prunelimit.landscape.connectivity import Connectivity, bezier_connectivity, linear_mode_connectivity
from prunelimit.landscape.sharpness import measure_sharpness
from prunelimit.landscape.similarity import output_similarity
from prunelimit.threads import suited_threads


class Paths(NamedTuple):
    """Between the children of some cells of a grid.

    Attributes:
        along: One row per cell, curve and place: ``value``, ``density``, ``curve`` (``"straight"`` or ``"bent"``), ``t`` and
            ``error``, the training error as a fraction.
        cells: One row per cell: ``value``, ``density``, ``lmc`` along the straight line, ``lmc_bent`` along the trained curve,
            ``barrier`` and ``barrier_bent`` (the highest rise above the chord), ``cka``; and of the children's training
            loss, by the weights that are kept, the means of ``trace``, ``trace_error`` (its standard error) and ``top``, the
            largest eigenvalue of the Hessian, with ``dimension``, the number of those weights.
    """

    along: pd.DataFrame
    cells: pd.DataFrame


def cell_pairs(values: float | Sequence[float], densities: float | Sequence[float]) -> list[tuple[float, float]]:
    """Pair every value of a temperature-like parameter with every density.

    Args:
        values: One, or several.
        densities: One, or several.

    Returns:
        The cells of :func:`children_paths`.

    Raises:
        PruneLimitError: If there is none of either.
    """
    return list(itertools.product(several("values", values), several("densities", densities)))


def children_paths(
    cells: Sequence[tuple[float, float]],
    *,
    grid: str = "epochs",
    profile: str = "quick",
    seed: int = 0,
    points: int = 21,
    curve_epochs: int = 40,
    curve_lr: float = 0.02,
    probes: int = 32,
    device: str = "cpu",
) -> Paths:
    """Train, prune and retrain the networks of some cells, and walk from the first child of each to the second.

    Everything is computed anew, from the specs of the grid. From its records, whose networks were trained together, these differ by
    rounding, which training amplifies: most cells agree closely, a single one may not.

    Args:
        cells: Pairs of temperature-like parameter and density, of the grid or not.
        grid: A name of ``GRIDS``.
        profile: ``"quick"`` takes seconds, the others take as long as their cells do.
        seed: Seed of the dense networks.
        points: Equally spaced places on each curve.
        curve_epochs: Epochs of training for the middle of each curve.
        curve_lr: Their learning rate.
        probes: Random vectors for the trace of each Hessian.
        device: Where to compute.

    Returns:
        The paths, and a summary of the cells.

    Raises:
        PruneLimitError: If a name is unknown or an argument is out of range.
    """
    settings = find_grid(grid).settings(profile)
    specs = [settings.spec(value, density, seed) for value, density in cells]
    data = load_dataset(settings.retrain.dataset).on_device("train", device, settings.retrain.train_size)
    along, rows = [], []
    parents = train_parents([spec.train for spec in specs], device=device)
    trained = retrain_children(specs, parents, keep=False, device=device)
    for (value, density), spec in zip(cells, specs, strict=True):
        key = {"value": value, "density": density}
        first, second = (child.model for child in trained[spec][1][:2])
        with suited_threads(first):
            straight = linear_mode_connectivity(first, second, data, points=points)
            bent = bezier_connectivity(first, second, data, epochs=curve_epochs, lr=curve_lr, points=points)
            sharp = [measure_sharpness(model, data, kept_only=True, probes=probes) for model in (first, second)]
            similarity = output_similarity(first, second, data)
        along += [
            {**key, **row} for name, path in (("straight", straight), ("bent", bent)) for row in _places(name, path)
        ]
        rows.append(
            key
            | {"lmc": straight.lmc, "lmc_bent": bent.lmc, "barrier": straight.barrier, "barrier_bent": bent.barrier}
            | {"cka": similarity, "dimension": sharp[0].dimension}
            | {"trace": sum(s.trace.value for s in sharp) / 2, "top": sum(s.top.value for s in sharp) / 2}
            | {"trace_error": sum(s.trace.error**2 for s in sharp) ** 0.5 / 2}
        )
    return Paths(pd.DataFrame(along), pd.DataFrame(rows))


def _places(curve: str, path: Connectivity) -> list[dict[str, float | str]]:
    return [{"curve": curve, "t": t, "error": error} for t, error in zip(path.points, path.values, strict=True)]
