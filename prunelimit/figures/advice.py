"""Figures of the decisions by regime: which way to go in every cell, and how far above the best network one ends."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib.ticker as ticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunelimit.figures.style import legend_below, panel_grid, say_missing

_PALETTE = sns.color_palette("colorblind")
_MARKS = "osD^vPX"

#: Greys that marks stand out from; by the root, because most cells are near the best.
_LIGHT = LinearSegmentedColormap.from_list("light", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5)])

#: Direction of an advice to its mark.
ARROWS = {"raise": "^", "lower": "v", "keep": "o"}

#: Colour of an answer that is right, and of one that is not.
ANSWERS = {True: _PALETTE[0], False: _PALETTE[3]}

#: Searches and rules: words in a legend.
WORDS = {
    "stay": "stay at the start",
    "step": "advice, step by step",
    "step, lower in II-B": "advice, step by step, lower in II-B",
    "bisect": "advice, by bisection",
    "bisect, lower in II-B": "advice, by bisection, lower in II-B",
    "downhill": "error, downhill",
    "sweep": "full sweep",
    "sgd": "plain SGD",
    "dense": "lowest dense error",
    "error": "lowest error of the children",
    "lmc+error": "connected, then lowest error",
    "lmc+cka": "connected, then highest CKA",
    "lmc+dense": "connected, then lowest dense error",
}


def _panels(titles: list[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Start a figure of one panel per title, two in a row; without titles one that says so."""
    figure, axes = panel_grid(max(len(titles), 1), 2, width=width if len(titles) > 1 else 6.4, height=height)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title("\n".join(textwrap.wrap(title, 62)), loc="left", fontsize=9)
    if not titles:
        say_missing(axes[0], "these grids")
    return figure, axes


def _density_axis(axis: Axes, densities: list[float]) -> None:
    axis.set_xticks(range(len(densities)), [f"{100 * density:g}" for density in densities], fontsize=8)
    axis.set_xlabel("density (% of weights kept)", fontsize=9)


def _points_axis(axis: Axes) -> None:
    """Write an axis of errors in points; by its root, because most rules end near the best."""
    axis.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axis.set_ylim(bottom=0, top=1.1 * max(axis.get_ylim()[1], 0.1))
    axis.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_ylabel("points above the best", fontsize=9)


def plot_advice(directions: pd.DataFrame) -> Figure:
    """Draw the advice in every cell, and whether it is right.

    Args:
        directions: Output of ``directions_frame``.

    Returns:
        One panel per grid, density to the right and temperature upwards, in equal steps. The darker a cell, the higher its
        test error above the best of its density. Marks point where the advice leads, one per dense seed.
    """
    chosen = directions[directions.rule == "advice"]
    titles = list(dict.fromkeys(chosen.title))
    figure, axes = _panels(titles, width=4.9, height=3.8)
    for axis, title in zip(axes, titles, strict=False):
        mesh = _draw_advice(axis, chosen[chosen.title == title])
        bar = figure.colorbar(mesh, ax=axis, location="right", shrink=0.8, aspect=25)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("points above the best", fontsize=9)
    look: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = [Line2D([], [], marker=ARROWS[k], color="0.3", label=k, **look) for k in ARROWS]
    answers = {True: "right: the best value lies there", False: "wrong"}
    handles += [Line2D([], [], marker="s", color=ANSWERS[k], label=w, **look) for k, w in answers.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def _draw_advice(axis: Axes, part: pd.DataFrame) -> QuadMesh:
    """Draw one panel; return its mesh."""
    densities, seeds = sorted(part.density.unique()), sorted(part.seed.unique())
    values = part.drop_duplicates("rank").sort_values("rank").set_index("rank").value
    columns = {density: place for place, density in enumerate(densities)}
    rows = {rank: place for place, rank in enumerate(values.index)}
    cells = np.full((len(rows), len(columns)), np.nan)
    for cell in part.groupby(["rank", "density"], as_index=False).above.mean().itertuples():
        cells[rows[cell.rank], columns[cell.density]] = 100 * cell.above
    edges = np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5
    mesh = axis.pcolormesh(*edges, cells, cmap=_LIGHT, norm=PowerNorm(0.5, 0, max(np.nanmax(cells), 0.1)))
    offsets = {seed: (place - (len(seeds) - 1) / 2) * 0.7 / len(seeds) for place, seed in enumerate(seeds)}
    for (direction, right), group in part.groupby(["direction", "right"]):
        x = group.density.map(columns) + group.seed.map(offsets)
        axis.plot(x, group["rank"].map(rows), ARROWS[str(direction)], color=ANSWERS[bool(right)], markersize=4.5)
    axis.grid(False)
    every = -(-len(rows) // 10)
    axis.set_yticks(range(0, len(rows), every), [f"{value:g}" for value in values[::every]], fontsize=8)
    axis.set_ylabel("value, hotter ↑", fontsize=9)
    _density_axis(axis, densities)
    return mesh


def plot_costs(summary: pd.DataFrame) -> Figure:
    """Draw what searches cost against what they find.

    Args:
        summary: Output of ``summary_frame`` of searches.

    Returns:
        One panel per grid: test error above the best against retrainings; bars are the intervals of the error.
    """
    titles = list(dict.fromkeys(summary.title))
    figure, axes = _panels(titles, width=4.9, height=3.4)
    rules = list(dict.fromkeys(summary.rule))
    colours = dict(zip(rules, sns.color_palette("colorblind", len(rules)), strict=True))
    for axis, title in zip(axes, titles, strict=False):
        for number, row in enumerate(summary[summary.title == title].itertuples()):
            spread = [[100 * (row.above - row.above_low)], [100 * (row.above_high - row.above)]]
            look = {"color": colours[row.rule], "marker": _MARKS[number % len(_MARKS)], "linestyle": "none"}
            axis.errorbar(
                [row.retrainings],
                [100 * row.above],
                spread,
                **look,
                capsize=2,
                markersize=6,
                label=WORDS.get(row.rule, row.rule),
            )
        axis.set_xlim(left=-0.5)
        axis.set_xlabel("retrainings, mean")
        _points_axis(axis)
    legend_below(figure, axes)
    return figure


def plot_above(outcomes: pd.DataFrame) -> Figure:
    """Draw how far above the best network each rule ends, by density.

    Args:
        outcomes: Output of ``searches_frame`` or ``choices_frame``.

    Returns:
        One panel per grid; lines are means over dense seeds and starts.
    """
    titles = list(dict.fromkeys(outcomes.title))
    figure, axes = _panels(titles, width=4.9, height=3.3)
    rules = list(dict.fromkeys(outcomes.rule))
    colours = dict(zip(rules, sns.color_palette("colorblind", len(rules)), strict=True))
    for axis, title in zip(axes, titles, strict=False):
        part = outcomes[outcomes.title == title]
        densities = sorted(part.density.unique())
        for number, rule in enumerate(rules):
            mean = part[part.rule == rule].groupby("density").above.mean()
            # Lines that coincide stay visible side by side.
            x = [densities.index(density) + 0.08 * (number - (len(rules) - 1) / 2) for density in mean.index]
            look = {"color": colours[rule], "marker": _MARKS[number % len(_MARKS)], "linewidth": 1.1}
            axis.plot(x, 100 * mean, label=WORDS.get(rule, rule), **look)
        _density_axis(axis, densities)
        _points_axis(axis)
    legend_below(figure, axes)
    return figure


def plot_tuning(outcomes: pd.DataFrame) -> Figure:
    """Draw which value was chosen at each density, against the best one.

    Args:
        outcomes: Output of ``searches_frame`` from one start.

    Returns:
        One panel per grid: a mark for every dense seed, side by side; the line is the value that the search starts from.
    """
    titles = list(dict.fromkeys(outcomes.title))
    figure, axes = _panels(titles, width=4.9, height=3.3)
    rules = [rule for rule in dict.fromkeys(outcomes.rule) if rule != "stay"]
    colours = dict(zip(rules, sns.color_palette("colorblind", len(rules)), strict=True))
    for axis, title in zip(axes, titles, strict=False):
        part = outcomes[outcomes.title == title]
        densities, values = sorted(part.density.unique()), sorted({*part.chosen, *part.start})
        seeds = sorted(part.seed.unique())
        for number, rule in enumerate(rules):
            mine = part[part.rule == rule]
            shift = 0.7 * ((number + 0.5) / len(rules) - 0.5)
            x = [
                densities.index(d) + shift + 0.06 * seeds.index(s) for d, s in zip(mine.density, mine.seed, strict=True)
            ]
            y = [values.index(value) for value in mine.chosen]
            look = {"color": colours[rule], "marker": _MARKS[number % len(_MARKS)], "linestyle": "none"}
            axis.plot(x, y, **look, markersize=5, alpha=0.8, label=WORDS.get(rule, rule))
        axis.axhline(values.index(part.start.iloc[0]), color="0.5", linewidth=0.9, linestyle="--", label="default")
        axis.set_yticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set_ylabel("value chosen")
        _density_axis(axis, densities)
    legend_below(figure, axes)
    return figure


def describe_advice(directions: pd.DataFrame) -> str:
    """Put ``plot_advice`` into words.

    Args:
        directions: Output of ``directions_frame``.

    Returns:
        A sentence per grid.
    """
    chosen = directions[directions.rule == "advice"]
    sentences = []
    for title, part in chosen.groupby("title", sort=False):
        turns = part.groupby("direction").right.agg(["sum", "size"])
        words = [f"{turn} in {row['size']} cells, right in {row['sum']}" for turn, row in turns.iterrows()]
        sentences.append(f"{title}: {'; '.join(words)}.")
    return "Advice in every cell, density to the right, temperature upwards. " + " ".join(sentences or ["No record."])


def describe_above(outcomes: pd.DataFrame) -> str:
    """Put ``plot_above`` or ``plot_costs`` into words.

    Args:
        outcomes: Output of ``searches_frame`` or ``choices_frame``.

    Returns:
        A sentence per grid.
    """
    sentences = []
    for title, part in outcomes.groupby("title", sort=False):
        found = part.groupby("rule", sort=False)[["above", "retrainings"]].mean()
        words = [
            f"{WORDS.get(str(rule), rule)} {100 * row.above:.2f} points after {row.retrainings:.1f} retrainings"
            for rule, row in found.iterrows()
        ]
        sentences.append(f"{title}: {'; '.join(words)}.")
    return "Mean test error above the best of its density. " + " ".join(sentences or ["No record."])


def describe_tuning(outcomes: pd.DataFrame) -> str:
    """Put ``plot_tuning`` into words.

    Args:
        outcomes: Output of ``searches_frame`` from one start.

    Returns:
        A sentence per grid and rule.
    """
    sentences = []
    for (title, rule), part in outcomes[outcomes.rule != "stay"].groupby(["title", "rule"], sort=False):
        by_density = part.groupby("density").chosen.agg(
            lambda chosen: " and ".join(f"{v:g}" for v in sorted(set(chosen)))
        )
        found = zip(by_density.index, by_density, strict=True)
        words = ", ".join(f"{values} at {100 * density:g}%" for density, values in found)
        sentences.append(f"{title}, {WORDS.get(str(rule), rule)}: {words}.")
    return "Values chosen by density. " + " ".join(sentences or ["No record."])
