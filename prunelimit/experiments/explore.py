"""What the page with the sliders needs of the records: small enough to load, complete enough to solve any setting.

The browser solves the same fixed-point equation as :func:`prunelimit.limit.formula_limit`, on the same grid and by the
same bisection. All that it lacks is the quadrature, so d(mu) is tabulated here, with its interval, over every mu that the
sliders can reach.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.experiments.catalogue import PROFILES, TASKS
from prunelimit.experiments.curvature import EXPERIMENT as CURVATURE
from prunelimit.experiments.frames import FINE_GRID, Cell, fine_distance, load_cells
from prunelimit.experiments.runner import round_significant
from prunelimit.experiments.store import load_record
from prunelimit.geometry.kinematic import ETA
from prunelimit.limit import PruningLimit, formula_limit, kinematic_margin

#: How far the sliders go, in powers of two: epsilon as a factor of the default, and the factor of the weights.
EPSILON_OCTAVES, SCALE_OCTAVES = 7, 3

#: Steps of a slider per octave.
STEPS_PER_OCTAVE = 8

#: Entries of a table of d(mu) / D, equally spaced in log mu, and the unit they are rounded to.
TABLE_POINTS, TABLE_UNIT = 1024, 1e-6

#: Global variable of the page that holds the data: a script may be loaded from ``file://``, a JSON file may not.
VARIABLE = "prunelimitExplore"


@dataclasses.dataclass(frozen=True)
class View:
    """One entry of the page's list: a trained network and one spectrum of its Hessian.

    Attributes:
        cell: The recorded run.
        found: The spectrum.
        examples: Number of training images behind it.
        epsilon: The default epsilon.
        distance: ``(FINE_GRID,)`` distances R.
    """

    cell: Cell
    found: Spectrum
    examples: int
    epsilon: float
    distance: np.ndarray

    @property
    def population(self) -> int:
        """Number of training images in all."""
        return int(self.cell.record["measured"]["examples"])

    @property
    def key(self) -> str:
        """Name of the view in a link to the page."""
        return f"{self.cell.task.name}-{self.cell.profile}-{self.cell.seed}-{self.examples}"

    @property
    def label(self) -> str:
        """What tells the views of one network apart."""
        which = "all " if self.examples == self.population else ""
        return f"seed {self.cell.seed}, Hessian of {which}{self.examples:,} images"

    @functools.cached_property
    def start(self) -> PruningLimit:
        """The limit at the default epsilon and the trained weights, where every reader starts."""
        return self.limit()

    @property
    def resolved(self) -> bool:
        """Whether the interval is narrower than one point, from a Hessian of all the training data."""
        return self.start.resolved and self.examples == self.population

    def limit(self, factor: float = 1.0, scale: float = 1.0) -> PruningLimit:
        """Solve for the limit with another tolerance and scaled weights, the Hessian held fixed.

        Args:
            factor: Multiplies the default epsilon.
            scale: Multiplies the weights, and so every distance.

        Returns:
            The formula's limit.
        """
        return formula_limit(self.found, scale * self.distance, factor * self.epsilon, examples=self.examples)


def recorded_cells() -> list[Cell]:
    """Return the cells of the page: the most faithful recorded ones of each task and the quick ones; nothing is run."""
    cells = {cell.spec.hash: cell for cell in [*load_cells(), *load_cells(profile="quick")]}
    tasks = list(TASKS)
    return sorted(cells.values(), key=lambda c: (tasks.index(c.task.name), PROFILES.index(c.profile), c.seed))


def load_views(cells: Sequence[Cell]) -> list[View]:
    """List what the page offers: each cell, and the same network with more images if such a spectrum is recorded.

    Args:
        cells: Recorded cells.

    Returns:
        The views in the order of the cells; of one cell, the one with the most images first.
    """
    views = []
    for cell in cells:
        distance, epsilon = fine_distance(cell.record), cell.record["epsilon"]
        own = cell.record["spectrum"]
        known = [View(cell, Spectrum.from_dict(own), own["examples"], epsilon, distance)]
        for spec in cell.task.curvature_specs(cell.profile, cell.seed):
            record = load_record(CURVATURE, spec)
            # A network that was trained anew on another machine is another network: it has other distances.
            same = record is not None and np.allclose(record["radius"], cell.record["radius"], rtol=1e-5, atol=0)
            if record is not None and same and record["examples"] > known[-1].examples:
                known.append(View(cell, Spectrum.from_dict(record["spectrum"]), record["examples"], epsilon, distance))
        best = known[-1:] if len(known) > 1 else []
        views += [*best, known[0]]
    return views


def dimension_table(found: Spectrum, lowest: float) -> dict[str, Any]:
    r"""Tabulate :math:`d(\mu) / D` with its interval from ``lowest`` to where less than one unit of it is left.

    Between two entries the page interpolates linearly in log mu. The first derivative of x / (x + mu) in log mu is at
    most 1/4 in size and the second at most 1/10, so with a step h the error is at most h^2 / 80, and h / 16 around a
    kink, where the value meets an end of its interval. A curve that falls is kept as its falls, in half the letters.

    Args:
        found: The spectrum.
        lowest: Smallest mu, in units of the eigenvalues.

    Returns:
        ``start`` and ``step`` of log mu; ``value``, ``low`` and ``high`` in units of ``TABLE_UNIT``, each as its first
        entry and the falls from one entry to the next.
    """
    highest = 2 * lowest
    while found.effective_dimension(highest)[2] >= TABLE_UNIT * found.dimension:
        highest *= 2
    logs = np.linspace(math.log(lowest), math.log(highest), TABLE_POINTS)
    columns = (np.array(found.effective_dimension(np.exp(logs))) / found.dimension / TABLE_UNIT).round().astype(int)
    falls = np.concatenate([columns[:, :1], -np.diff(columns)], axis=1).tolist()
    return {"start": float(logs[0]), "step": float(logs[1] - logs[0])} | dict(
        zip(("value", "low", "high"), falls, strict=True)
    )


def rise_curve(record: dict[str, Any]) -> dict[str, list[float]]:
    """Collect what is recorded about the training loss after one cut, from the sweep and from the search for the limit.

    Args:
        record: Record of a cell.

    Returns:
        ``sparsity``, increasing from zero, and ``rise`` over the dense loss.
    """
    sweep, points = record["sweep"], record["measured"]["points"]
    dense = record["dense"]["train_loss"]
    known = {0.0: 0.0}
    if sweep:
        known |= {s: loss - dense for s, loss in zip(sweep["sparsity"], sweep["train_loss"], strict=True)}
    # The search comes last: where both have been, its value is the one that the recorded limit rests on.
    known |= dict(zip(points["sparsity"], points["rise"], strict=True))
    order = sorted(known)
    return {"sparsity": [round(s, 8) for s in order], "rise": round_significant(np.array([known[s] for s in order]), 6)}


def view_data(view: View) -> dict[str, Any]:
    """Gather what the page needs of one view, as plain JSON values."""
    record, search = view.cell.record, view.cell.record["measured"]
    smallest = 2 * view.epsilon * 2.0**-EPSILON_OCTAVES / (2.0**SCALE_OCTAVES * view.distance[-1]) ** 2
    return {
        "key": view.key,
        "group": view.cell.title,
        "label": view.label,
        "total": view.found.dimension,
        "epsilon": view.epsilon,
        "margin": kinematic_margin(view.found.dimension),
        "examples": view.examples,
        "population": view.population,
        "resolved": view.resolved,
        "radius": round_significant(np.array(record["radius"]), 7),
        "dimension": dimension_table(view.found, smallest),
        "rise": rise_curve(record),
        "bracket": search["interval"][1] - search["interval"][0],
    }


def explore_data(views: Sequence[View]) -> dict[str, Any]:
    """Gather everything that the page needs.

    Args:
        views: Output of :func:`load_views`.

    Returns:
        Plain JSON values: the ranges of the sliders, the grid on which the root is sought, and the views.
    """
    return {
        "epsilonOctaves": EPSILON_OCTAVES,
        "scaleOctaves": SCALE_OCTAVES,
        "stepsPerOctave": STEPS_PER_OCTAVE,
        "grid": FINE_GRID - 1,
        "unit": TABLE_UNIT,
        "eta": ETA,
        "views": [view_data(view) for view in views],
    }


def as_script(data: dict[str, Any]) -> bytes:
    """Write the data as a script that assigns one global variable.

    Args:
        data: Output of :func:`explore_data`.

    Returns:
        The file's content.
    """
    return f"window.{VARIABLE} = {json.dumps(data, separators=(',', ':'), allow_nan=False)};\n".encode()


def as_table(views: Sequence[View]) -> bytes:
    """Write the page's starting points as a Markdown table, for readers without scripts.

    Args:
        views: Output of :func:`load_views`.

    Returns:
        The file's content: one row per view, all limits as percentages of the weights removed.
    """
    names = ["network", "seed", "images", "limit", "interval", "window", "one-shot", "ε", "weights"]
    lines = [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    for view in views:
        limit = view.start
        ends = [limit.interval, (limit.lower or 0.0, limit.upper or 0.0)]
        row = [
            view.cell.title,
            f"{view.cell.seed}",
            f"{view.examples:,}",
            f"{100 * limit.sparsity:.1f}",
            *(f"{100 * low:.1f} – {100 * high:.1f}" for low, high in ends),
            f"{100 * view.cell.record['measured']['sparsity']:.1f}",
            f"{view.epsilon:.3g}",
            f"{view.found.dimension:,}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return ("\n".join(lines) + "\n").encode()
