"""Data frames of the recorded row norms: the curves of figure F5, their check, their layers, their cost and their bound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.experiments.catalogue import find_tasks
from prunelimit.experiments.curvature import EXPERIMENT as CURVATURE
from prunelimit.experiments.frames import Cell, fine_distance
from prunelimit.experiments.provenance_frames import missing_frame, origin_frame
from prunelimit.experiments.rows import EXPERIMENT, run_rows
from prunelimit.experiments.specs import RowsSpec
from prunelimit.experiments.store import load_record
from prunelimit.limit import formula_limit, removable_fraction, solve_limit

#: A row is called negligible if its Euclidean norm is below this share of mu: it adds at most as much to d(mu).
NEGLIGIBLE = 0.01

#: Rows that the released code samples.
RELEASED_ROWS = 100


@dataclasses.dataclass(frozen=True)
class RowsCell:
    """The recorded row norms of one run of the catalogue.

    Attributes:
        cell: The run.
        spec: How the norms were estimated.
        record: What came out.
    """

    cell: Cell
    spec: RowsSpec
    record: dict[str, Any]

    @property
    def keys(self) -> dict[str, Any]:
        """What every table begins with."""
        return {"title": self.cell.title, "seed": self.cell.seed, "order": self.spec.order}

    def share_below(self, norm: float) -> float:
        """Read off the curve which share of the rows has a smaller norm; rows that are exactly zero count."""
        norms, shares = np.array(self.record["curve"]["norm"]), np.array(self.record["curve"]["share"])
        there = norms > 0
        if not there.any() or norm > norms[0]:
            return 1.0
        above = float(np.interp(-math.log(norm), -np.log(norms[there]), shares[there]))
        return max(1 - above, self.record["zero"])


def load_rows(cells: Sequence[Cell], *, run_missing: bool = False) -> list[RowsCell]:
    """Load the recorded row norms of some cells, order 1 before order 2.

    Args:
        cells: Recorded cells.
        run_missing: Whether to make those of the quick profile that have no record now.

    Returns:
        What there is, in the order of the cells.
    """
    found = []
    for cell in cells:
        for spec in cell.task.row_specs(cell.profile, cell.seed):
            if run_missing and cell.profile == "quick":
                record = run_rows(spec, label={"task": cell.task.name, "profile": cell.profile})
            else:
                record = load_record(EXPERIMENT, spec)
            if record is not None:
                found.append(RowsCell(cell, spec, record))
    return found


def curve_frame(found: Sequence[RowsCell], order: int = 1) -> pd.DataFrame:
    """Stack the curves of sorted norms.

    Args:
        found: Output of :func:`load_rows`.
        order: Which norm.

    Returns:
        Columns ``title``, ``seed``, ``order``, ``share``, ``norm``, ``low``, ``high`` and ``zero``, the share of the
        record's rows that are exactly zero.
    """
    parts = [
        pd.DataFrame(part.record["curve"]).assign(zero=part.record["zero"], **part.keys)
        for part in found
        if part.spec.order == order
    ]
    columns = ["title", "seed", "order", "share", "norm", "low", "high", "zero"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def checks_frame(found: Sequence[RowsCell], order: int = 1) -> pd.DataFrame:
    """Stack the sampled rows: columns ``title``, ``seed``, ``order``, ``row``, ``estimate``, ``low``, ``high``, ``exact``."""
    parts = [pd.DataFrame(rows.record["checks"]).assign(**rows.keys) for rows in found if rows.spec.order == order]
    columns = ["title", "seed", "order", "row", "estimate", "low", "high", "exact"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def check_summary(found: Sequence[RowsCell]) -> pd.DataFrame:
    """Say how good the estimates are, from the rows that were also computed exactly.

    Args:
        found: Output of :func:`load_rows`.

    Returns:
        One row per record: how many rows were checked, how many are zero by either way, the share of the others inside
        their error bar, the root mean square of the relative error, and the median of estimate over exact norm.
    """
    rows = []
    for part in found:
        estimate, exact, low, high = (
            np.array(part.record["checks"][name]) for name in ("estimate", "exact", "low", "high")
        )
        there = exact > 0
        ratio = estimate[there] / exact[there]
        rows.append(
            part.keys
            | {
                "checked": len(exact),
                "zero exactly": int((~there).sum()),
                "zero estimated": int((estimate == 0).sum()),
                "inside": float(((low <= exact) & (exact <= high))[there].mean()) if there.any() else np.nan,
                "error": float(np.sqrt(np.mean((ratio - 1) ** 2))) if there.any() else np.nan,
                "ratio": float(np.median(ratio)) if there.any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def layers_frame(found: Sequence[RowsCell], order: int = 1) -> pd.DataFrame:
    """Tabulate the rows by the parameter that they belong to.

    Args:
        found: Output of :func:`load_rows`.
        order: Which norm.

    Returns:
        One row per record and parameter: its shape, its share of all ``rows``, of which ``zero`` are exactly zero, its
        ``share`` of the sum of all norms, and quantiles of its norms.
    """
    rows = []
    for part in (part for part in found if part.spec.order == order):
        for layer in part.record["parameters"]:
            rows.append(
                part.keys
                | {
                    "parameter": layer["name"],
                    "shape": " × ".join(map(str, layer["shape"])),
                    "rows": layer["rows"] / part.record["total"],
                    "zero": layer["zero"],
                    "share": layer["sum"] / max(part.record["sum"], np.finfo(float).tiny),
                    "low": layer["quantiles"]["0.05"],
                    "median": layer["median"],
                    "high": layer["quantiles"]["0.95"],
                }
            )
    return pd.DataFrame(rows)


def cost_frame(found: Sequence[RowsCell]) -> pd.DataFrame:
    """Compare the seconds of a few products with those of one product per row, which nobody has run.

    Args:
        found: Output of :func:`load_rows`.

    Returns:
        One row per record. ``zero_error`` is the standard error of the share of zero rows if it is counted in a sample
        of the released size.
    """
    rows = []
    for part in found:
        cost, zero = part.record["cost"], part.record["zero"]
        rows.append(
            part.keys
            | {
                "total": part.record["total"],
                "products": cost["products"],
                "seconds": part.record["seconds"]["norms"],
                "seconds_per_row": cost["seconds_per_exact_row"],
                "all_rows": cost["seconds_all_rows_extrapolated"],
                "released": RELEASED_ROWS * cost["seconds_per_exact_row"],
                "zero": zero,
                "zero_error": math.sqrt(zero * (1 - zero) / RELEASED_ROWS),
            }
        )
    return pd.DataFrame(rows)


def duration(seconds: float) -> str:
    """Write a time with two digits, in the largest unit of which there is more than one."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 99 * length else f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 99 else f"{seconds:.0f} s"


def bound_frame(found: Sequence[RowsCell]) -> pd.DataFrame:
    """Hold the bound that the row norms give against the effective dimension from quadrature, at the predicted limit.

    Args:
        found: Output of :func:`load_rows`; the records of order 2 have the bound.

    Returns:
        One row per record of order 2: ``mu`` at the limit, the effective dimension there as a fraction of D with its
        interval and the ``bound``, the limit with its interval, the one that the bound alone would give (``from_bound``)
        and the one with all eigenvalues if it was recorded (``exact``), and the shares of rows that are exactly
        ``zero``, ``negligible`` and ``below`` mu.
    """
    rows = []
    for part in (part for part in found if part.spec.order == 2):
        record, cell = part.record, part.cell
        distance = fine_distance(cell.record)
        epsilon, total = cell.record["epsilon"], record["total"]
        spectrum = _spectrum(part)
        limit = formula_limit(spectrum, distance, epsilon)
        mu = 2 * epsilon / limit.radius**2
        grid, bounds = np.array(record["bound"]["mu"]), np.array(record["bound"]["dimension"])

        def bound(points: np.ndarray, grid: np.ndarray = grid, bounds: np.ndarray = bounds) -> np.ndarray:
            return np.interp(np.log(points), np.log(grid), bounds)

        def removable(at: np.ndarray, bound: Any = bound, epsilon: float = epsilon, total: int = total) -> np.ndarray:
            return removable_fraction(bound, at, epsilon, total)

        value, low, high = (float(v) / total for v in spectrum.effective_dimension(mu))
        rows.append(
            part.keys
            | {
                "examples": record["examples"],
                "total": total,
                "mu": mu,
                "dimension": value,
                "dimension_low": low,
                "dimension_high": high,
                "bound": float(bound(np.array(mu))) / total,
                "limit": limit.sparsity,
                "limit_low": limit.interval[0],
                "limit_high": limit.interval[1],
                "from_bound": solve_limit(distance, removable),
                "exact": (cell.record.get("exact") or {}).get("sparsity", np.nan),
                "zero": record["zero"],
                "negligible": part.share_below(NEGLIGIBLE * mu),
                "below": part.share_below(mu),
            }
        )
    return pd.DataFrame(rows)


def _spectrum(part: RowsCell) -> Spectrum:
    """Find the spectrum of the same data that is best resolved: a recorded one of its own, or that of the cell."""
    found = [load_record(CURVATURE, spec) for spec in part.cell.task.curvature_specs(part.cell.profile, part.cell.seed)]
    same = [record for record in found if record and record["examples"] == part.record["examples"]]
    return Spectrum.from_dict((same[-1] if same else part.cell.record)["spectrum"])


def rows_origin(found: Sequence[RowsCell]) -> pd.DataFrame:
    """Say where the numbers come from: profile, seeds, devices, commits, and the command that makes them again."""
    runs = [(part.cell.task.name, part.cell.profile, part.cell.seed, part.record) for part in found]
    return origin_frame("rows", runs)


def missing_rows(tasks: str | Sequence[str] | None = None, seeds: int | Sequence[int] = (0,)) -> pd.DataFrame:
    """List the row norms of the catalogue without a record, with the command that fills them.

    Args:
        tasks: Task names; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``task``, ``profile``, ``seeds without a record`` and ``command``.
    """
    return missing_frame("rows", EXPERIMENT, [(t.name, t.rows, t.row_specs) for t in find_tasks(tasks)], seeds)
