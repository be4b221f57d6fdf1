"""The recorded grids, and the digitised one, made ready to judge decisions by.

A decision about a network of one dense seed sees the measurements of that seed alone. It is judged by the mean test error of
the other dense seeds at the same value and density, so that noise in the evidence is no merit; with one seed, and
on the digitised map, which has means only, evidence and judgement are the same numbers, and ``held_out`` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from prunelimit.checks import pick_names
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import PROFILES
from prunelimit.experiments.regime_frames import regime_frame, regime_title
from prunelimit.experiments.regime_grids import find_grid, find_grids
from prunelimit.landscape.parents import Measurement
from prunelimit.landscape.reference import RESOLUTION, SOURCE, reference_frame

#: Children per measurement; the records have so many, and the digitised map is counted as if it had.
CHILDREN = 2

#: Differences of test error up to this one are those of sums in another order.
ROUNDING = 1e-9

#: Values that make an axis.
LEAST_VALUES = 3

#: Columns of :func:`prepare`.
COLUMNS = [
    "title", "name", "key", "value", "rank", "density", "seed", "dense_error", "error", "lmc", "cka", "judged", "held_out",
    "tolerance",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RecordedParent:
    """A dense network whose children are recorded.

    Attributes:
        dense_error: Its test error.
        measurements: Density to what was measured.
    """

    dense_error: float
    measurements: Mapping[float, Measurement]

    def measure(self, density: float) -> Measurement:
        """Look the measurement up.

        Args:
            density: Fraction of the prunable weights kept; one of those recorded.

        Returns:
            The measurement.

        Raises:
            PruneLimitError: If there is no record of that density.
        """
        if density not in self.measurements:
            raise PruneLimitError(f"density={density!r} is not recorded: take one of {sorted(self.measurements)}.")
        return self.measurements[density]


def measurement(row: Any) -> Measurement:
    """Read the measurement off a row."""
    return Measurement(float(row.error), float(row.lmc), float(row.cka), CHILDREN)


def recorded_parent(rows: pd.DataFrame) -> RecordedParent:
    """Make a network of its rows.

    Args:
        rows: Rows of ``regime_frame``, or of :func:`prepare`, of one value and one dense seed.

    Returns:
        The network.

    Raises:
        PruneLimitError: If there are no rows, or they hold a density twice.
    """
    if rows.empty or rows.density.duplicated().any():
        raise PruneLimitError(
            f"rows holds {len(rows)} cells: give those of one value and one dense seed, each density once."
        )
    found = {density: measurement(row) for density, row in zip(rows.density.tolist(), rows.itertuples(), strict=True)}
    return RecordedParent(float(rows.dense_error.iloc[0]), found)


def prepare(frame: pd.DataFrame, hotter: int, axis: str, where: str, *, tolerance: float = 0.0) -> pd.DataFrame:
    """Make a grid ready for judging.

    Args:
        frame: Output of ``regime_frame``, or one with ``value``, ``density``, ``error``, ``lmc`` and ``cka``.
        hotter: +1 if a larger value is a higher temperature, -1 if a lower one is.
        axis: The words for the axis.
        where: The network, its data and where the numbers come from.
        tolerance: Differences of test error up to this one do not count.

    Returns:
        The cells of the columns (one density, one dense seed) that have an error and a connectivity at every value, with
        ``rank`` (place in temperature, 0 is coldest), ``judged`` (the error that decisions are judged by) and ``held_out``.
        Values that less than half of the columns have are left out first, so that a grid that is being filled counts too;
        with fewer than ``LEAST_VALUES`` of them there is nothing to decide, and no rows.
    """
    if frame.empty:
        return pd.DataFrame(columns=COLUMNS)
    found = frame.assign(title=f"{axis}, {where}", tolerance=tolerance + ROUNDING)
    if "seed" not in found:
        found["seed"] = 0
    found = found.dropna(subset=["error", "lmc"])
    columns = found.groupby("value").size() / len(found[["density", "seed"]].drop_duplicates())
    found = found[found.value.map(columns) >= 0.5].copy()
    values = sorted(found.value.unique(), key=lambda value: hotter * value)
    if len(values) < LEAST_VALUES:
        return pd.DataFrame(columns=COLUMNS)
    found["rank"] = found.value.map({value: rank for rank, value in enumerate(values)})
    found["name"] = [f"{axis} {value:g}" for value in found.value]
    if "key" not in found:
        found["key"] = [f"{row.name} {row.density:g} {row.seed}" for row in found.itertuples()]
    if "dense_error" not in found:
        # The digitised map has no dense networks: its highest density stands in for them.
        densest = found[found.density == found.density.max()].set_index(["value", "seed"]).error
        found["dense_error"] = densest.reindex(pd.MultiIndex.from_frame(found[["value", "seed"]])).to_numpy()
    whole = found.groupby(["density", "seed"]).value.transform("nunique") == len(values)
    found = found[whole].sort_values(["density", "seed", "rank"], ignore_index=True)
    cells = found.groupby(["value", "density"]).error
    others = cells.transform("size") - 1
    found["held_out"] = others > 0
    rest = (cells.transform("sum") - found.error) / others.where(others > 0)
    found["judged"] = rest.where(found.held_out, found.error)
    return found[COLUMNS]


def reference_cells() -> pd.DataFrame:
    """Return the digitised map of the three-regime paper, ready for judging.

    Returns:
        As :func:`prepare`. Its dense error is the error at the highest density, because the map has no dense networks;
        differences that the resolution of the figure may explain do not count.
    """
    where = f"PreResNet-20 on CIFAR-10, {SOURCE}"
    return prepare(reference_frame(), -1, "training epochs", where, tolerance=2 * RESOLUTION["error"])


def load_grids(
    grids: str | Sequence[str] | None = None, profiles: str | Sequence[str] | None = None, *, run_missing: bool = False
) -> list[pd.DataFrame]:
    """Load the recorded grids.

    Args:
        grids: Names of grids; ``None`` for all.
        profiles: Profiles; ``None`` for all.
        run_missing: Whether to run cells without a record now; meant for the quick profile.

    Returns:
        One output of ``regime_frame`` for every grid and profile that has a record.

    Raises:
        PruneLimitError: If a grid or a profile is unknown, or a grid that was asked for lacks a profile that was.
    """
    frames, both = [], grids is not None and profiles is not None
    wanted = pick_names("profile", profiles, PROFILES)
    for grid in find_grids(grids):
        for profile in wanted if both else [name for name in grid.profiles if name in wanted]:
            frame = regime_frame(grid.name, profile, run_missing=run_missing)
            if len(frame):
                frames.append(frame)
    return frames


def prepared_grids(frames: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """Make recorded grids ready for judging.

    Args:
        frames: Outputs of ``regime_frame``.

    Returns:
        Outputs of :func:`prepare`, one for each.
    """
    found = []
    for frame in frames:
        grid = find_grid(frame.grid.iloc[0])
        found.append(prepare(frame, grid.hotter, grid.title, regime_title(frame)))
    return found


def pooled_grids(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Put all grids of the same network, data and profile together into one family.

    Args:
        frames: Outputs of ``regime_frame``.

    Returns:
        Outputs of :func:`pool`, where there are several grids.
    """
    kinds: dict[str, list[pd.DataFrame]] = {}
    for frame, cells in zip(frames, prepared_grids(frames), strict=True):
        if len(cells):
            kinds.setdefault(regime_title(frame), []).append(cells)
    return [pool(parts, f"all {len(parts)} grids, {where}") for where, parts in kinds.items() if len(parts) > 1]


def stack(grids: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Put grids one below the other; without any there are no rows."""
    parts = [grid for grid in grids if len(grid)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def pool(grids: Sequence[pd.DataFrame], title: str) -> pd.DataFrame:
    """Put several grids together into one family of networks.

    Args:
        grids: Outputs of :func:`prepare`, of the same network and data.
        title: Name of the family on a page.

    Returns:
        Their cells at the densities and dense seeds that all of them have; a run that several grids share is there once.
    """
    columns = [set(zip(grid.density, grid.seed, strict=True)) for grid in grids if len(grid)]
    shared = set.intersection(*columns) if columns else set()
    whole = stack(grids).drop_duplicates(["key", "density", "seed"])
    return whole[[cell in shared for cell in zip(whole.density, whole.seed, strict=True)]].assign(title=title)
