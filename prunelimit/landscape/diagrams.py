"""Phase diagrams as tables: a temperature-like parameter by density, the classes of the cells, and the edges between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.landscape.reference import RESOLUTION, SOURCE, reference_frame
from prunelimit.landscape.regimes import (
    CKA_THRESHOLD,
    LMC_THRESHOLD,
    REGIMES,
    Thresholds,
    classify_regime,
    median_cka,
    sensitivity,
)

#: What a diagram may show, and its name on a page.
QUANTITIES = {
    "error": "test error",
    "normalised_error": "normalised error",
    "lmc": "connectivity (LMC)",
    "cka": "similarity (CKA)",
}

#: Range in which the threshold of connectivity is moved: what cannot be told from zero in the published figure, and its
#: largest barriers.
LMC_RANGE = (-0.66, -RESOLUTION["lmc"])


def normalised_error(frame: pd.DataFrame, column: str | list[str] = "density") -> pd.Series:
    """Take the lowest test error of each density off.

    Args:
        frame: One row per cell, with ``density`` and ``error``.
        column: What the cells of one density have in common, where the frame holds several grids.

    Returns:
        What is left, as a fraction; zero at the best value of each density.
    """
    return frame.error - frame.groupby(column).error.transform("min")


def own_thresholds(frame: pd.DataFrame, lmc: float = LMC_THRESHOLD) -> Thresholds:
    """Return the thresholds of a grid: connectivity as everywhere, similarity by the rule of the median.

    Args:
        frame: One row per cell, with ``lmc`` and ``cka``.
        lmc: Threshold of connectivity.

    Returns:
        The thresholds; the similarity is that of the digitised map where no cell of the grid is connected.
    """
    if not ((frame.lmc >= lmc) & frame.cka.notna()).any():
        return Thresholds(lmc, CKA_THRESHOLD)
    return Thresholds(lmc, median_cka(frame.lmc, frame.cka, lmc))


@dataclasses.dataclass(frozen=True)
class Diagram:
    """A grid over a temperature-like parameter and density, averaged over seeds.

    Attributes:
        title: Network, data and where the numbers are from.
        axis: Name of the temperature-like parameter.
        hotter: +1 if a larger value is a higher temperature, -1 if a smaller one is.
        frame: One row per cell: ``value``, ``density``, ``error``, ``lmc``, ``cka``, and ``normalised_error`` if it is
            not to be computed. It may be empty.
        thresholds: Where the regimes are parted; by default by the rule of :func:`own_thresholds`.
    """

    title: str
    axis: str
    hotter: int
    frame: pd.DataFrame
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        """Refuse a direction that is none and cells that are there twice; fill in what is left to its rule."""
        if self.hotter not in (-1, 1):
            raise PruneLimitError(f"hotter={self.hotter!r} must be +1 or -1: the direction in which it gets hotter.")
        if self.frame.duplicated(["value", "density"]).any():
            raise PruneLimitError("frame has several rows for one value and density: average over seeds first.")
        if self.thresholds is None:
            object.__setattr__(self, "thresholds", own_thresholds(self.frame))
        if "normalised_error" not in self.frame:
            filled = self.frame.assign(normalised_error=normalised_error(self.frame))
            object.__setattr__(self, "frame", filled)

    @property
    def parted(self) -> Thresholds:
        """The thresholds that hold."""
        assert self.thresholds is not None
        return self.thresholds

    def table(self, quantity: str) -> pd.DataFrame:
        """Arrange one quantity.

        Args:
            quantity: One of :data:`QUANTITIES`.

        Returns:
            Rows are values, the hottest first; columns are densities, ascending. NaN where nothing is known.

        Raises:
            PruneLimitError: If the quantity is unknown.
        """
        if quantity not in QUANTITIES:
            raise unknown_name("quantity", quantity, QUANTITIES)
        table = self.frame.pivot(index="value", columns="density", values=quantity).astype(float)
        return table.sort_index(ascending=self.hotter < 0).sort_index(axis="columns")

    def classes(self, thresholds: Thresholds | None = None) -> pd.DataFrame:
        """Classify every cell.

        Args:
            thresholds: Other thresholds than the diagram's own.

        Returns:
            The same arrangement with ``"I"``, ``"II-A"``, ``"II-B"``, or an empty string where a value is missing.
        """
        parted, lmc = thresholds or self.parted, self.table("lmc")
        found = classify_regime(lmc, self.table("cka"), lmc_threshold=parted.lmc, cka_threshold=parted.cka)
        return pd.DataFrame(found, index=lmc.index, columns=lmc.columns)


def reference_diagram() -> Diagram:
    """Return the published diagrams of PreResNet-20 on CIFAR-10, over training epochs and density, as digitised.

    Its threshold of similarity is :data:`~prunelimit.landscape.regimes.CKA_THRESHOLD`.
    """
    return Diagram(f"PreResNet-20 on CIFAR-10 ({SOURCE})", "training epochs", -1, reference_frame(), Thresholds())


def edges(classes: pd.DataFrame) -> dict[str, list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Find the boundaries of the regimes: the cell edges on which two classes meet.

    Args:
        classes: Output of :meth:`Diagram.classes`.

    Returns:
        ``"connected"``: edges between I and the rest. ``"similar"``: edges between II-A and II-B. An edge is a pair of
        corners ``(column, row)``; cell ``(i, j)`` of row i and column j lies between the corners ``(j, i)`` and
        ``(j + 1, i + 1)``. Cells without a class have no boundary.
    """
    cells = classes.to_numpy()
    found: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {"connected": [], "similar": []}
    for (row, column), regime in np.ndenumerate(cells):
        for down, right in ((1, 0), (0, 1)):
            below, beside = row + down, column + right
            if below == cells.shape[0] or beside == cells.shape[1]:
                continue
            pair = {regime, cells[below, beside]}
            if len(pair) == 2 and "" not in pair:
                kind = "connected" if REGIMES[0] in pair else "similar"
                found[kind].append(((beside, below), (column + 1, row + 1)))
    return found


def boundary_frame(diagram: Diagram) -> pd.DataFrame:
    """Tell where the boundaries lie at every temperature.

    Args:
        diagram: The grid.

    Returns:
        One row per value with known cells, the hottest first: ``connected_from`` and ``similar_from``, the lowest density
        from which on all known cells are connected, and of regime II-B. NaN if not even the highest density is.
    """
    classes = diagram.classes()
    classes = classes[(classes != "").any(axis=1)]
    rows = []
    for _, line in classes.iterrows():
        known = line[line != ""]
        found = {}
        for name, wanted in (("connected_from", REGIMES[1:]), ("similar_from", REGIMES[2:])):
            # From the highest density down, as long as the class holds.
            held = known.isin(wanted)[::-1].cummin()
            found[name] = float(held[held].index.min()) if held.any() else np.nan
        rows.append(found)
    return pd.DataFrame(rows, index=classes.index, columns=["connected_from", "similar_from"], dtype=float)


def heating_steps(diagram: Diagram) -> pd.DataFrame:
    """Count what one step up in temperature does to the class of a cell, its density held.

    The model of three regimes says: it leads from I to II-A, and from II-B to II-A.

    Args:
        diagram: The grid.

    Returns:
        Rows are classes of the colder cell, columns those of the next hotter one; entries count neighbours that both have
        a class.
    """
    cells = diagram.classes().to_numpy()
    counts = pd.DataFrame(0, index=pd.Index(REGIMES, name="colder"), columns=pd.Index(REGIMES, name="hotter"))
    for hot, cold in zip(cells[:-1].reshape(-1), cells[1:].reshape(-1), strict=True):
        if hot and cold:
            counts.loc[cold, hot] += 1
    return counts


def heating_changes(diagram: Diagram) -> tuple[int, int]:
    """Count the changes of class with one step up in temperature, and those that the model of three regimes names.

    Args:
        diagram: The grid.

    Returns:
        All changes, and how many of them go from I or from II-B to II-A.
    """
    steps = heating_steps(diagram).to_numpy()
    return int(steps.sum() - np.trace(steps)), int(steps[0, 1] + steps[2, 1])


def rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Compute Spearman's rank correlation where both are known; NaN with fewer than three places, or if one is constant."""
    both = pd.DataFrame({"first": first, "second": second}).dropna()
    if len(both) < 3 or both.nunique().min() < 2:
        return float("nan")
    return float(both["first"].corr(both["second"], method="spearman"))


def heat_correlations(diagrams: Sequence[Diagram]) -> pd.DataFrame:
    """Correlate what was measured with the temperature, at the lowest and at the highest density.

    By the model of three regimes heating connects where the density is low, and makes dissimilar where it is high.

    Args:
        diagrams: The grids.

    Returns:
        One row per grid: ``title``, ``axis``, and per quantity among ``error``, ``lmc`` and ``cka`` the columns
        ``{quantity}_low`` and ``{quantity}_high``, Spearman's rank correlation with the temperature in the sparsest and in
        the densest column; ``lmc_density``, that of the density with the mean connectivity over all temperatures. NaN with
        fewer than three known values, or if all are equal.
    """
    names = ("error", "lmc", "cka")
    rows = []
    for diagram in diagrams:
        row: dict[str, object] = {"title": diagram.title, "axis": diagram.axis}
        for name in names:
            table = diagram.table(name)
            heat = pd.Series(np.arange(len(table), 0, -1, dtype=float), index=table.index)
            for end, place in (("low", 0), ("high", -1)):
                row[f"{name}_{end}"] = rank_correlation(table.iloc[:, place], heat) if table.size else np.nan
        mean = diagram.table("lmc").mean()
        row["lmc_density"] = rank_correlation(mean, mean.index.to_series())
        rows.append(row)
    columns = ["title", "axis", *(f"{name}_{end}" for name in names for end in ("low", "high")), "lmc_density"]
    return pd.DataFrame(rows, columns=columns)


def summary_frame(diagrams: Sequence[Diagram]) -> pd.DataFrame:
    """Tabulate thresholds, classes and boundaries of some grids.

    Args:
        diagrams: The grids.

    Returns:
        One row per grid: ``title``, ``axis``, the thresholds ``lmc`` and ``cka``, the ``cells`` with a class, how many are
        in ``"I"``, ``"II-A"`` and ``"II-B"``, the share ``moved`` that would change with the digitised map's threshold of
        similarity, ``connected_hot``, ``connected_cold``, ``similar_hot`` and ``similar_cold`` (:func:`boundary_frame` in
        the hottest and the coldest row), the ``changes`` of class from a cell to the next hotter one and how many of them are
        ``as_said`` by the model.
    """
    names = {"connected_hot": ("connected_from", 0), "connected_cold": ("connected_from", -1)}
    names |= {"similar_hot": ("similar_from", 0), "similar_cold": ("similar_from", -1)}
    rows = []
    for diagram in diagrams:
        parted, classes = diagram.parted, diagram.classes().to_numpy()
        counts = {regime: int((classes == regime).sum()) for regime in REGIMES}
        row = {"title": diagram.title, "axis": diagram.axis, "lmc": parted.lmc, "cka": parted.cka}
        row |= {"cells": sum(counts.values()), **counts, "moved": np.nan}
        if row["cells"]:
            digitised = Thresholds(parted.lmc, CKA_THRESHOLD)
            row["moved"] = sensitivity(diagram.frame.lmc, diagram.frame.cka, [digitised], parted)[0]
        bounds = boundary_frame(diagram)
        row |= {name: bounds[column].iloc[end] if len(bounds) else np.nan for name, (column, end) in names.items()}
        row["changes"], row["as_said"] = heating_changes(diagram)
        rows.append(row)
    columns = ["title", "axis", "lmc", "cka", "cells", *REGIMES, "moved", *names, "changes", "as_said"]
    return pd.DataFrame(rows, columns=columns)


def regime_shares(diagrams: Sequence[Diagram]) -> pd.DataFrame:
    """Tabulate the regimes of some grids.

    Args:
        diagrams: The grids.

    Returns:
        One row per grid and regime: ``title``, ``axis``, ``regime``, ``cells``, their ``share`` of the cells with a class,
        and the means over them of ``error``, ``normalised_error``, ``lmc`` and ``cka``; NaN if there are none.
    """
    rows = []
    for diagram in diagrams:
        frame, parted = diagram.frame, diagram.parted
        classes = np.asarray(classify_regime(frame.lmc, frame.cka, lmc_threshold=parted.lmc, cka_threshold=parted.cka))
        known = int((classes != "").sum())
        for regime in REGIMES:
            part = frame[classes == regime]
            row = {"title": diagram.title, "axis": diagram.axis, "regime": regime, "cells": len(part)}
            row |= {"share": len(part) / known if known else np.nan}
            rows.append(row | {name: part[name].mean() for name in QUANTITIES})
    columns = ["title", "axis", "regime", "cells", "share", *QUANTITIES]
    return pd.DataFrame(rows, columns=columns)


def factor_frame(diagrams: Sequence[Diagram], factor: float = 2) -> pd.DataFrame:
    """Count the cells that change their class if a threshold's distance from perfect is divided or multiplied by a factor.

    Args:
        diagrams: The grids; those without any class are left out.
        factor: Above 1. The distance is ``-lmc`` or ``1 - cka``.

    Returns:
        One row per grid: ``title``, ``axis``, and the shares ``lmc_divided``, ``lmc_multiplied``, ``cka_divided`` and
        ``cka_multiplied``; a similarity is at least zero.
    """
    rows = []
    for diagram in diagrams:
        frame, parted = diagram.frame, diagram.parted
        if not (diagram.classes() != "").to_numpy().any():
            continue
        others = [Thresholds(parted.lmc * c, parted.cka) for c in (1 / factor, factor)]
        others += [Thresholds(parted.lmc, max(1 - (1 - parted.cka) * c, 0.0)) for c in (1 / factor, factor)]
        shares = sensitivity(frame.lmc, frame.cka, others, parted)
        names = ("lmc_divided", "lmc_multiplied", "cka_divided", "cka_multiplied")
        rows.append({"title": diagram.title, "axis": diagram.axis} | dict(zip(names, shares, strict=True)))
    return pd.DataFrame(
        rows, columns=["title", "axis", "lmc_divided", "lmc_multiplied", "cka_divided", "cka_multiplied"]
    )


def sensitivity_frame(diagrams: Sequence[Diagram], points: int = 121) -> pd.DataFrame:
    """Move each threshold and count the cells that change their class.

    Args:
        diagrams: The grids; those without any class are left out.
        points: Places per threshold, beside its own.

    Returns:
        Columns ``title``, ``axis``, ``moved``, ``threshold`` and ``share`` of the cells that change. ``moved`` is
        ``"lmc"``, the threshold of similarity held; ``"lmc, rule"``, the threshold of similarity by the rule of the median
        among the cells that are connected then; or ``"cka"``. Connectivity is moved over :data:`LMC_RANGE`, similarity
        over the range of the connected cells.
    """
    parts = []
    places = -np.geomspace(-LMC_RANGE[0], -LMC_RANGE[1], points)
    for diagram in diagrams:
        frame, parted = diagram.frame, diagram.parted
        if not (diagram.classes() != "").to_numpy().any():
            continue
        moved = {"lmc": [Thresholds(lmc, parted.cka) for lmc in np.union1d(places, parted.lmc)]}
        moved["lmc, rule"] = [own_thresholds(frame, lmc) for lmc in np.union1d(places, parted.lmc)]
        similar = frame.cka[frame.lmc >= parted.lmc].dropna()
        if len(similar):
            reach = np.linspace(similar.min(), similar.max(), points)
            moved["cka"] = [Thresholds(parted.lmc, cka) for cka in np.union1d(reach, parted.cka)]
        for name, others in moved.items():
            share = sensitivity(frame.lmc, frame.cka, others, parted)
            threshold = [other.cka if name == "cka" else other.lmc for other in others]
            keys = {"title": diagram.title, "axis": diagram.axis, "moved": name}
            parts.append(pd.DataFrame({"threshold": threshold, "share": share}).assign(**keys))
    columns = ["title", "axis", "moved", "threshold", "share"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
