"""How good the decisions by regime are: each is taken in every cell of a grid and judged by what the grid says.

Grids come from :mod:`prunelimit.experiments.advice_cells`, which has ``prepare`` and ``pool``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.advice_cells import CHILDREN, measurement, recorded_parent
from prunelimit.landscape.advice import RULES, advise, choose_model, follow_advice, tune_rho
from prunelimit.landscape.parents import Measurement
from prunelimit.landscape.regimes import CKA_THRESHOLD, LMC_THRESHOLD, Thresholds

#: Rules for one step, as a page writes them, to what is done in regime II-B; the last two look at nothing.
STEP_RULES = {"advice": "keep", "advice, lower in II-B": "lower", "always raise": "raise", "always lower": "lower"}

#: Ways to search an axis, as a page writes them.
SEARCHES = ("stay", "step", "step, lower in II-B", "bisect", "bisect, lower in II-B", "downhill", "sweep")


def thresholds_for(
    cells: pd.DataFrame, density: float, lmc: float = LMC_THRESHOLD, quantile: float = 0.5
) -> Thresholds:
    """Choose thresholds for a column without looking at it.

    Args:
        cells: Output of ``prepare``, of one grid.
        density: Density of the column.
        lmc: Connectivity from which on children are connected.
        quantile: Of the similarity among the connected cells at all other densities, from which on they are similar.

    Returns:
        The thresholds; the similarity is the default one if no other cell is connected.

    Raises:
        PruneLimitError: If one of the two is out of range.
    """
    if not 0 <= quantile <= 1:
        raise PruneLimitError(f"quantile={quantile!r} must lie between 0 and 1.")
    other = cells[(cells.density != density) & (cells.lmc >= lmc)].cka.dropna()
    return Thresholds(lmc, float(np.quantile(other, quantile)) if len(other) else CKA_THRESHOLD)


def _columns(cells: pd.DataFrame) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """Go through grids, densities and dense seeds; values come coldest first."""
    for key, column in cells.groupby(["title", "density", "seed"], sort=False):
        yield dict(zip(["title", "density", "seed"], key, strict=True)), column.sort_values("rank")


def directions_frame(cells: pd.DataFrame, *, lmc: float = LMC_THRESHOLD, quantile: float = 0.5) -> pd.DataFrame:
    """Ask at every cell where to go, and judge the answer.

    An answer is right if the best value of the column lies in that direction; ``keep`` is right if the cell is the best one,
    or worse by no more than the tolerance. At such a cell both directions are wrong.

    Args:
        cells: Outputs of ``prepare``, one or several.
        lmc: See :func:`thresholds_for`.
        quantile: See :func:`thresholds_for`.

    Returns:
        One row per cell and rule: ``rule``, ``value``, ``rank``, ``regime``, ``direction``, ``right``, ``gain`` (by how much one
        step in that direction lowers the error; zero for ``keep`` and at the end of the axis) and ``above`` (error above the
        lowest of the column). Cells without a regime are left out.
    """
    rows = []
    for place, column in _columns(cells):
        judged, tolerance = column.judged.to_numpy(), column.tolerance.iloc[0]
        best = int(judged.argmin())
        thresholds = thresholds_for(cells[cells.title == place["title"]], place["density"], lmc, quantile)
        for here, row in enumerate(column.itertuples()):
            regime, _ = advise(measurement(row), thresholds)
            above = judged[here] - judged[best]
            wanted = 0 if above <= tolerance else int(np.sign(best - here))
            for rule, how in STEP_RULES.items() if regime else ():
                turn = advise(measurement(row), thresholds, how)[1] if rule.startswith("advice") else how
                step = {"raise": 1, "lower": -1, "keep": 0}[turn]
                reached = min(max(here + step, 0), len(judged) - 1)
                rows.append(
                    place
                    | {"rule": rule, "value": row.value, "rank": here, "regime": regime, "direction": turn}
                    | {"right": step == wanted, "gain": judged[here] - judged[reached], "above": above}
                )
    names = ["title", "density", "seed", "rule", "value", "rank", "regime", "direction", "right", "gain", "above"]
    return pd.DataFrame(rows, columns=names)


def _downhill(errors: np.ndarray, start: int) -> set[int]:
    """Search by the error alone: look at both neighbours, then go on while it falls; return the places visited."""
    visited, here = {start}, start
    while True:
        near = {place for place in (here - 1, here + 1) if place in range(len(errors))}
        visited |= near
        lowest = min(sorted(visited), key=lambda place: errors[place])
        if lowest == here:
            return visited
        here = lowest


def _search(how: str, axis: Mapping[float, Measurement], start: float, thresholds: Thresholds) -> tuple[float, int]:
    """Search an axis, coldest first; return the value chosen and how many were measured."""
    values = list(axis)
    errors = np.array([axis[value].error for value in values])
    if how in {"stay", "sweep"}:
        return (start, 0) if how == "stay" else (values[int(errors.argmin())], len(errors))
    if how == "downhill":
        visited = _downhill(errors, values.index(start))
        return values[min(sorted(visited), key=lambda place: errors[place])], len(visited)
    strategy, _, goal = how.partition(", ")
    at_goal = "lower" if goal else "keep"
    walk = follow_advice(axis.__getitem__, values, start, thresholds=thresholds, at_goal=at_goal, strategy=strategy)
    return walk.value, len(walk.trace)


def searches_frame(
    cells: pd.DataFrame,
    *,
    start: float | None = None,
    searches: Sequence[str] = SEARCHES,
    lmc: float = LMC_THRESHOLD,
    quantile: float = 0.5,
) -> pd.DataFrame:
    """Search every column for a good value, from every start or from one, and judge what was found.

    Args:
        cells: Outputs of ``prepare``, one or several.
        start: Value to begin at; by default each in turn.
        searches: Of ``SEARCHES``: ``stay`` measures nothing, ``step`` and ``bisect`` follow the advice, ``downhill`` looks at both
            neighbours and follows the error, ``sweep`` measures every value and takes the lowest error.
        lmc: See :func:`thresholds_for`.
        quantile: See :func:`thresholds_for`.

    Returns:
        One row per column, start and search: ``rule``, ``start``, ``chosen``, ``error`` (judged), ``above`` (the same above the
        lowest of the column), ``right`` (whether that is within the tolerance), ``gain`` (over staying), ``retrainings`` and
        ``saved`` (fewer retrainings than the sweep).
    """
    rows = []
    for place, column in _columns(cells):
        judged = dict(zip(column.value.tolist(), column.judged.tolist(), strict=True))
        lowest, tolerance = min(judged.values()), column.tolerance.iloc[0]
        thresholds = thresholds_for(cells[cells.title == place["title"]], place["density"], lmc, quantile)
        axis = dict(zip(judged, map(measurement, column.itertuples()), strict=True))
        for begin in axis if start is None else [value for value in axis if value == start]:
            for how in searches:
                found, measured = _search(how, axis, begin, thresholds)
                above = judged[found] - lowest
                rows.append(
                    place
                    | {"rule": how, "start": begin, "chosen": found, "error": judged[found]}
                    | {"above": above, "right": above <= tolerance, "gain": judged[begin] - judged[found]}
                    | {"retrainings": CHILDREN * measured, "saved": CHILDREN * (len(column) - measured)}
                )
    names = ["title", "density", "seed", "rule", "start", "chosen", "error", "above", "right", "gain"]
    return pd.DataFrame(rows, columns=[*names, "retrainings", "saved"])


def tuning_frame(
    cells: pd.DataFrame, default: float, *, lmc: float = LMC_THRESHOLD, quantile: float = 0.5
) -> pd.DataFrame:
    """Tune the radius of SAM in every column, and tell the way.

    Args:
        cells: Outputs of ``prepare`` for grids over the radius of SAM, one or several.
        default: Where it begins; of a grid that lacks it, the nearest value.
        lmc: See :func:`thresholds_for`.
        quantile: See :func:`thresholds_for`.

    Returns:
        One row per column, as a page writes it: the radii visited with their regimes, why the walk ended, the radius chosen,
        the retrainings and those saved against a sweep.
    """
    rows = []
    for place, column in _columns(cells):
        parents = {rho: recorded_parent(part) for rho, part in zip(column.value.tolist(), _rows(column), strict=True)}
        walk = tune_rho(
            lambda rho, density, parents=parents: parents[rho].measure(density),  # type: ignore[misc]
            place["density"],
            values=list(parents),
            default=nearest(column.value, default),
            thresholds=thresholds_for(cells[cells.title == place["title"]], place["density"], lmc, quantile),
        )
        way = " → ".join(f"{step.value:g} ({step.regime or 'no regime'})" for step in walk.trace)
        rows.append((*place.values(), way, walk.reason, walk.value, walk.retrainings, walk.saved))
    names = ["grid", "density", "dense seed", "way", "ended", "radius", "retrainings", "saved"]
    return pd.DataFrame(rows, columns=names)


def _rows(column: pd.DataFrame) -> list[pd.DataFrame]:
    return [column.iloc[[place]] for place in range(len(column))]


def nearest(values: pd.Series, default: float) -> float:
    """Return the value of the axis that is nearest to a default radius; a radius is at least zero."""
    if not default >= 0:
        raise PruneLimitError(f"default={default!r} must be at least 0: it is the radius to begin at.")
    return float(min(values.unique(), key=lambda value: abs(value - default)))


def rho_frame(
    cells: pd.DataFrame, default: float, *, lmc: float = LMC_THRESHOLD, quantile: float = 0.5
) -> pd.DataFrame:
    """Search every column from one value, the default, and judge what was found.

    Args:
        cells: Outputs of ``prepare`` for grids over the radius of SAM, one or several.
        default: Where the searches begin; of a grid that lacks it, the nearest value.
        lmc: See :func:`thresholds_for`.
        quantile: See :func:`thresholds_for`.

    Returns:
        Output of :func:`searches_frame`, where ``stay`` is the default, and a rule ``sgd``, the radius zero, if the grid has it
        and it is not the default.
    """
    parts = [searches_frame(cells.head(0))]
    for _, part in cells.groupby("title", sort=False):
        start = nearest(part.value, default)
        ways = ("stay", "step", "bisect", "downhill", "sweep")
        found = searches_frame(part, start=start, searches=ways, lmc=lmc, quantile=quantile)
        parts.append(found)
        if start != 0 and (part.value == 0).any():
            plain = searches_frame(part, start=0.0, searches=["stay"]).assign(rule="sgd", start=start)
            stay = found[found.rule == "stay"].set_index(["density", "seed"]).error
            plain["gain"] = stay.loc[list(zip(plain.density, plain.seed, strict=True))].to_numpy() - plain.error
            parts.append(plain)
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def choices_frame(
    cells: pd.DataFrame, *, rules: Sequence[str] = RULES, lmc: float = LMC_THRESHOLD, own: bool = False
) -> pd.DataFrame:
    """Choose a network from every column by every rule, and judge the choice.

    Args:
        cells: Outputs of ``prepare`` or ``pool``; a column is a family.
        rules: Of :data:`~prunelimit.landscape.advice.RULES`.
        lmc: Connectivity from which on children are connected.
        own: Whether the children of the network chosen judge the choice, and not those of the other dense seeds. Rules that
            look at the test error of the children are then right by construction, or nearly.

    Returns:
        One row per family and rule: ``rule``, ``chosen``, ``error`` (judged), ``above`` (the same above the lowest of the family),
        ``right`` (whether that is within the tolerance), ``gain`` (over the choice by dense error), ``beyond`` (over the choice by the
        error of the children), ``connected`` (the share of the family) and ``retrainings``.
    """
    rows = []
    for place, column in _columns(cells):
        family = {str(name): recorded_parent(part) for name, part in column.groupby("name", sort=False)}
        judged, tolerance = column.set_index("name")["error" if own else "judged"], column.tolerance.iloc[0]
        dense, error = (judged[choose_model(family, place["density"], rule=rule).name] for rule in ("dense", "error"))
        for rule in rules:
            choice = choose_model(family, place["density"], rule=rule, thresholds=Thresholds(lmc=lmc))
            above = judged[choice.name] - judged.min()
            rows.append(
                place
                | {"rule": rule, "chosen": choice.name, "error": judged[choice.name], "above": above}
                | {
                    "right": above <= tolerance,
                    "gain": dense - judged[choice.name],
                    "beyond": error - judged[choice.name],
                }
                | {"connected": float((column.lmc >= lmc).mean()), "retrainings": choice.retrainings}
            )
    names = ["title", "density", "seed", "rule", "chosen", "error", "above", "right", "gain", "beyond", "connected"]
    return pd.DataFrame(rows, columns=[*names, "retrainings"])
