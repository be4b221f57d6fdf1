"""Figures of the synthesis: the limits of dense networks on the phase diagram of their children, and what they tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from prunelimit.figures.phase import REGIME_COLOURS, REGIME_WORDS
from prunelimit.figures.style import COLOURS, legend_place, new_figure, panel_grid
from prunelimit.landscape.diagrams import Diagram

#: Limits that are drawn: words, colour, line.
LINES: dict[str, tuple[str, Any, Any]] = {
    "formula": ("formula", COLOURS["formula"], "-"),
    "directional": ("directional", COLOURS["directional"], "--"),
    "refit": ("refit", COLOURS["fine_tuned"], ":"),
    "emp": ("EMP: no curvature", "0.45", (0, (1, 1))),
    "measured": ("one-shot, measured", COLOURS["measured"], "-."),
}

#: What is known for nothing, in the second figure.
RIVALS: dict[str, tuple[str, Any, Any]] = {
    "temperature": ("temperature", "black", "-"),
    "dense_train_loss": ("dense training loss", "black", "--"),
    "dense_error": ("dense test error", "black", ":"),
    "epsilon": ("tolerance ε", "black", "-."),
}

#: Factor by which the axis goes on beyond the densities of a grid; a limit near one would take it to nothing.
MARGIN = 1.5

#: The limit whose interval is drawn; with those of all, nothing could be told apart.
BAND = "formula"

OUTCOMES = {"lmc": "connectivity (expected: above 0)", "error": "test error (expected: below 0)"}


def _rows(cells: pd.DataFrame) -> dict[float, int]:
    """Give each value its row, the coldest at the bottom."""
    order = cells.drop_duplicates("value").sort_values("temperature").value
    return {float(value): row for row, value in enumerate(order)}


def _has_temperature(cells: pd.DataFrame) -> bool:
    return bool(len(cells)) and bool(cells.temperature.notna().all())


def plot_boundaries(found: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the limits of the dense parents over the regimes of their children.

    Args:
        found: Title to cells, output of ``all_cells``; those without a temperature are left out.

    Returns:
        A panel per grid: density to the right, temperature upwards in equal steps. Squares are cells in the colour of their
        regime, averaged over seeds. Each line is one kind of limit as a density, mean over dense seeds, with their range:
        what lies right of it is within the limit.
    """
    shown = {title: cells for title, cells in found.items() if _has_temperature(cells)}
    figure, axes = panel_grid(max(len(shown), 1), 2, width=4.9, height=3.7)
    for axis, (title, cells) in zip(axes, shown.items(), strict=False):
        rows = _rows(cells)
        for regime, part in _classes(cells).groupby("regime"):
            places = part.value.map(rows)
            axis.plot(part.density, places, "s", color=REGIME_COLOURS[str(regime)], markersize=11, zorder=1)
        for name, (_, colour, line) in LINES.items():
            _draw_limit(axis, cells, rows, name, colour, line)
        axis.set_title(title, loc="left")
        axis.set_yticks(list(rows.values()), [f"{value:g}" for value in rows], fontsize=8)
        axis.set_ylabel("hotter ↑")
        _density_axis(axis, sorted(cells.density.unique()))
        axis.set_xlim(cells.density.min() / MARGIN, max(cells.density.max() * MARGIN, 1.0))
    regimes = [
        Line2D([], [], marker="s", linestyle="", markersize=9, color=colour, label=f"{name}: {REGIME_WORDS[name]}")
        for name, colour in REGIME_COLOURS.items()
    ]
    limits = [Line2D([], [], color=c, linestyle=s, label=f"limit: {w}") for w, c, s in LINES.values()]
    figure.legend(handles=[*regimes, *limits], loc="outside lower center", ncols=2 if len(shown) < 2 else 3, fontsize=9)
    return figure


def _classes(cells: pd.DataFrame) -> pd.DataFrame:
    """Classify the cells of a grid, averaged over seeds."""
    means = cells.groupby(["value", "density"], as_index=False)[["error", "lmc", "cka"]].mean()
    table = Diagram("", "", 1, means).classes()
    named = table.melt(ignore_index=False, value_name="regime").reset_index()
    return named[named.regime.isin(list(REGIME_COLOURS))]


def _draw_limit(axis: Axes, cells: pd.DataFrame, rows: dict[float, int], name: str, colour: Any, line: Any) -> None:
    density = 1 - cells.drop_duplicates(["value", "seed"]).set_index("value")[name].dropna()
    if density.empty:
        return
    table = density.groupby(level=0).agg(["mean", "min", "max"])
    table.index = pd.Index([rows[float(value)] for value in table.index])
    table = table.sort_index()
    axis.plot(table["mean"], table.index, color=colour, linestyle=line, linewidth=1.8, zorder=3, label=name)
    axis.fill_betweenx(table.index, table["min"], table["max"], color=colour, alpha=0.12, linewidth=0, zorder=2)


def _density_axis(axis: Axes, densities: list[float]) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(densities))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(densities, [f"{100 * density:g}" for density in densities], fontsize=8)
    axis.set_xlabel("density (% of weights kept)")


def plot_correlations(found: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw what each limit tells about the children at each density by itself.

    Args:
        found: Title to output of ``density_frame``.

    Returns:
        A row per grid: rank correlation with connectivity, and with the test error. Coloured lines are limits, one of them with
        its interval; black ones what is known for nothing.
    """
    figure, axes = new_figure(max(len(found), 1), 2, width=4.9, height=3.0)
    for pair, (title, table) in zip(axes, found.items(), strict=False):
        for axis, (outcome, words) in zip(pair, OUTCOMES.items(), strict=True):
            own = table[(table.outcome == outcome) & table.value.notna()]
            for name, (_, colour, line) in {**LINES, **RIVALS}.items():
                part = own[own.predictor == name].sort_values("density")
                if part.empty:
                    continue
                axis.plot(part.density, part.value, color=colour, linestyle=line, marker=".", linewidth=1.4, label=name)
                if name == BAND:
                    axis.fill_between(part.density, part.low, part.high, color=colour, alpha=0.12, linewidth=0)
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set_ylim(-1.05, 1.05)
            axis.set_title(f"{title}: {words}", loc="left", fontsize=9.5)
            axis.set_ylabel("rank correlation")
            if len(own):
                _density_axis(axis, sorted(own.density.unique()))
    handles = [Line2D([], [], color=c, linestyle=s, label=w) for w, c, s in [*LINES.values(), *RIVALS.values()]]
    figure.legend(handles=handles, loc=legend_place(figure), ncols=4, fontsize=9)
    return figure


def describe_boundaries(found: Mapping[str, pd.DataFrame]) -> str:
    """Put :func:`plot_boundaries` into words: the limits at both ends of the temperature, and the share of regime I.

    Args:
        found: As for the figure.

    Returns:
        A few sentences per grid.
    """
    sentences = ["Limits of the dense networks, as densities, over the regimes of their children."]
    for title, cells in found.items():
        if not _has_temperature(cells):
            continue
        classes = _classes(cells)
        parts = []
        for name, (words, _, _) in LINES.items():
            ends = [cells[cells.temperature == t][name] for t in (cells.temperature.max(), cells.temperature.min())]
            if not any(end.isna().all() for end in ends):
                parts.append(
                    f"{words} {1 - ends[0].mean():.1%} at the hot end and {1 - ends[1].mean():.1%} at the cold one"
                )
        first = f"{title}: {int((classes.regime == 'I').sum())} of {len(classes)} cells are in regime I."
        sentences.append(f"{first} Density at the limit: {'; '.join(parts)}.")
    return " ".join(sentences)


def describe_correlations(found: Mapping[str, pd.DataFrame]) -> str:
    """Put :func:`plot_correlations` into words: the range of each correlation over the densities.

    Args:
        found: As for the figure.

    Returns:
        A sentence per grid and outcome.
    """
    sentences = []
    for title, table in found.items():
        for outcome, words in OUTCOMES.items():
            parts = []
            for name, (label, _, _) in {**LINES, **RIVALS}.items():
                values = table[(table.outcome == outcome) & (table.predictor == name)].value.to_numpy(float)
                values = values[~np.isnan(values)]
                if values.size:
                    parts.append(f"{label} {values.min():.2f} to {values.max():.2f}")
            sentences.append(f"{title}, {words}: {'; '.join(parts) or 'nothing varies'}.")
    return "Rank correlations at each density. " + " ".join(sentences)
