"""Phase diagrams of pruning: heat maps over temperature and density, the regimes, and how much depends on thresholds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.patheffects as effects
import matplotlib.ticker as ticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, FuncNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prunelimit.figures.style import legend_below, new_figure, palette, panel_grid, percent_axis, say_missing
from prunelimit.landscape.diagrams import QUANTITIES, Diagram, boundary_frame, edges, heating_changes
from prunelimit.landscape.regimes import REGIMES

_PALETTE = sns.color_palette("colorblind")

#: One colour per regime, light enough for the name that every cell carries as well.
REGIME_COLOURS = {
    regime: tuple(0.7 * np.array(_PALETTE[number]) + 0.3) for regime, number in zip(REGIMES, (3, 8, 0), strict=True)
}
REGIME_WORDS = dict(zip(REGIMES, ("poorly connected", "connected, dissimilar", "connected, similar"), strict=True))

#: Bright is good in every panel.
_MAPS = {"error": "viridis_r", "normalised_error": "viridis_r", "lmc": "viridis", "cka": "viridis"}

#: How the colour of a quantity grows, the inverse of that, and ticks, the most wanted first. Nearly all of what matters happens
#: near a perfect value, and a network that collapsed must not hide it.
_SCALES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[float, ...]]] = {
    "error": (lambda e: np.log(e + 0.01), lambda y: np.exp(y) - 0.01, (0.1, 0.2, 0.05, 0.5, 0.8, 0.15, 0.3, 0.02)),
    "normalised_error": (
        lambda e: np.arcsinh(e / 0.003),
        lambda y: 0.003 * np.sinh(y),
        (0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 0.003),
    ),
    "lmc": (
        lambda b: np.sign(b) * np.sqrt(np.abs(b)),
        lambda y: np.sign(y) * np.square(y),
        (0.0, -0.05, -0.2, -0.6, -0.4, -0.8),
    ),
    "cka": (lambda c: -np.log(1.003 - c), lambda y: 1.003 - np.exp(-y), (0.9, 0.99, 0.95, 0.7, 0.4, 0.98, 0.8, 1.0)),
}

#: Looks of the boundaries.
_BOUNDARIES: dict[str, tuple[Any, str]] = {
    "connected": ("-", "I | II: connectivity crosses its threshold"),
    "similar": ((0, (1.6, 0.9)), "II-A | II-B: similarity crosses its threshold"),
}


def _scale(diagrams: Sequence[Diagram], quantity: str) -> Normalize:
    """Span one scale over a quantity of all diagrams."""
    values = np.concatenate([np.zeros(0), *(d.frame[quantity].dropna().to_numpy(float) for d in diagrams)])
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if quantity in {"lmc", "normalised_error"}:
        low, high = min(low, 0.0), max(high, 0.0)
    return FuncNorm(_SCALES[quantity][:2], low, high if high > low else low + 1e-3)


def plot_diagrams(diagrams: Sequence[Diagram], beside: Sequence[Diagram] = ()) -> Figure:
    """Draw figure F2 of the three-regime paper: phase diagrams on the same axes and colour scales.

    Args:
        diagrams: The grids, one row of panels each.
        beside: Grids that are drawn elsewhere and share the colour scales.

    Returns:
        A column of panels per quantity. Density grows to the right and temperature upwards, each in equal steps from one
        value of the grid to the next. Lines are the cell edges on which two classes meet.
    """
    figure, axes = new_figure(max(len(diagrams), 1), len(QUANTITIES), width=3.1, height=2.9)
    figure.set_figheight(figure.get_figheight() + 0.9)
    for column, (quantity, words) in enumerate(QUANTITIES.items()):
        scale = _scale([*diagrams, *beside], quantity)
        for axis, diagram in zip(axes[:, column], diagrams, strict=False):
            table = diagram.table(quantity)
            _draw_cells(axis, table, diagram, label=column == 0)
            if table.size:
                axis.pcolormesh(table, cmap=_MAPS[quantity], norm=scale, zorder=1)
                _draw_boundaries(axis, diagram)
            axis.set_title(words, loc="left")
        _draw_bar(figure, list(axes[:, column]), quantity, scale)
    lines = [Line2D([], [], color="black", linewidth=2, linestyle=s, label=w) for s, w in _BOUNDARIES.values()]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _draw_cells(axis: Axes, table: pd.DataFrame, diagram: Diagram, label: bool = True) -> None:
    """Prepare a panel: one unit per cell, the hottest row on top, hatching where nothing is known."""
    axis.grid(False)
    name = "\n".join(textwrap.wrap(diagram.title, 38))
    if label:
        axis.set_ylabel(f"{name}\n{diagram.axis}, hotter ↑", fontsize=9)
    if not table.size:
        say_missing(axis, "this grid")
        return
    axis.patch.set(facecolor="0.92", edgecolor="0.7", hatch="////")
    axis.set_xlim(0, table.shape[1])
    axis.set_ylim(table.shape[0], 0)
    every = -(-len(table) // 10)
    axis.set_yticks(np.arange(0, len(table), every) + 0.5, [f"{value:g}" for value in table.index[::every]], fontsize=8)
    names = [f"{100 * density:g}" for density in table.columns]
    axis.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    axis.set_xlabel("density (% of weights kept)", fontsize=9)


def _draw_boundaries(axis: Axes, diagram: Diagram) -> None:
    halo = [effects.Stroke(linewidth=4, foreground="white"), effects.Normal()]
    for kind, found in edges(diagram.classes()).items():
        style = _BOUNDARIES[kind][0]
        lines = LineCollection(found, colors="black", linewidths=2, linestyles=[style], path_effects=halo, zorder=3)
        lines.set_label(kind)
        lines.set_clip_on(False)
        axis.add_collection(lines, autolim=False)


def _draw_bar(figure: Figure, axes: list[Axes], quantity: str, scale: Normalize) -> None:
    """Put the scale that a column of panels shares under it."""
    from matplotlib.cm import ScalarMappable

    mappable = ScalarMappable(scale, _MAPS[quantity])
    bar = figure.colorbar(mappable, ax=axes, location="bottom", shrink=0.9, aspect=25)
    low, high = bar.ax.get_xlim()
    ticks: list[float] = []
    for tick in _SCALES[quantity][2]:
        if low <= tick <= high and all(abs(scale(tick) - scale(other)) > 0.14 for other in ticks):
            ticks.append(tick)
    bar.set_ticks(ticks, labels=[f"{100 * tick:g}%" if "error" in quantity else f"{tick:g}" for tick in ticks])
    bar.ax.xaxis.set_minor_locator(ticker.NullLocator())
    bar.ax.tick_params(labelsize=8)


def plot_regimes(diagrams: Sequence[Diagram]) -> Figure:
    """Draw figure F1 of the three-regime paper from data: the class of every cell.

    Args:
        diagrams: The grids, one panel each, two in a row.

    Returns:
        Cells in the colour of their regime, with its name in them, and the edges on which classes meet.
    """
    figure, axes = panel_grid(max(len(diagrams), 1), 2, width=4.9, height=3.9)
    colours = ListedColormap([REGIME_COLOURS[regime] for regime in REGIMES])
    for axis, diagram in zip(axes, diagrams, strict=False):
        classes = diagram.classes()
        _draw_cells(axis, classes, diagram)
        if not classes.size:
            continue
        codes = classes.apply(lambda column: column.map({regime: k for k, regime in enumerate(REGIMES)}))
        axis.pcolormesh(codes.astype(float), cmap=colours, norm=BoundaryNorm([0, 1, 2, 3], 3), zorder=1)
        for (row, column), regime in np.ndenumerate(classes.to_numpy()):
            axis.text(column + 0.5, row + 0.5, regime, ha="center", va="center", fontsize=8, zorder=2)
        _draw_boundaries(axis, diagram)
    patches = [Patch(color=REGIME_COLOURS[r], label=f"{r}: {REGIME_WORDS[r]}") for r in REGIMES]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def plot_sensitivity(frame: pd.DataFrame, diagrams: Sequence[Diagram]) -> Figure:
    """Draw how many cells change their class if a threshold moves.

    Args:
        frame: Output of :func:`~prunelimit.landscape.diagrams.sensitivity_frame`.
        diagrams: The same grids, for the thresholds that hold.

    Returns:
        Two panels: the threshold of connectivity, and that of similarity. Every line is zero at its own threshold, where
        a dot marks it.
    """
    figure, axes = new_figure(1, 2, width=5.0, height=3.8)
    left, right = axes[0]
    names = [(diagram.title, diagram.axis) for diagram in diagrams]
    for diagram, name, colour in zip(diagrams, names, palette(len(names)), strict=False):
        part = frame[(frame.title == name[0]) & (frame.axis == name[1])]
        if part.empty:
            continue
        lines = dict(iter(part.groupby("moved")))
        label = f"{diagram.title}, {diagram.axis}"
        left.plot(-lines["lmc"].threshold, lines["lmc"].share, color=colour, label=label)
        left.plot(-lines["lmc, rule"].threshold, lines["lmc, rule"].share, color=colour, linestyle=":")
        left.plot(-diagram.parted.lmc, 0, "o", color=colour, markersize=5, clip_on=False)
        if "cka" in lines:
            right.plot(lines["cka"].threshold, lines["cka"].share, color=colour)
            right.plot(diagram.parted.cka, 0, "o", color=colour, markersize=5, clip_on=False)
    left.set_xscale("log")
    left.xaxis.set_major_locator(ticker.FixedLocator([0.005, 0.015, 0.05, 0.15, 0.5]))
    left.xaxis.set_minor_locator(ticker.NullLocator())
    left.xaxis.set_major_formatter(lambda value, _: f"−{value:g}")
    left.set_xlabel("threshold of connectivity (LMC)")
    right.set_xlabel("threshold of similarity (CKA)")
    left.set_title("connectivity; dotted: similarity by its rule", loc="left")
    right.set_title("similarity", loc="left")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.set_ylabel("cells that change their class")
        percent_axis(axis, "y")
    legend_below(figure, left, 1)
    return figure


def _span(values: pd.Series, form: str) -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def describe_transition(diagram: Diagram) -> str:
    """Say in numbers whether a grid shows the transitions of the three regimes.

    Args:
        diagram: The grid.

    Returns:
        Sentences: the classes, and how far each boundary moves from the hottest to the coldest row.
    """
    frame, classes, parted = diagram.frame, diagram.classes(), diagram.parted
    if frame.empty or not (classes != "").to_numpy().any():
        return "No cell has a record."
    counts = {regime: int((classes == regime).to_numpy().sum()) for regime in REGIMES}
    known = sum(counts.values())
    words = [f"Of {known} cells " + ", ".join(f"{count} are in {regime}" for regime, count in counts.items()) + "."]
    if not counts["I"]:
        words.append(f"All are connected: the lowest LMC is {frame.lmc.min():.3f}, the threshold {parted.lmc:g}.")
    elif counts["I"] == known:
        words.append(f"None is connected: the highest LMC is {frame.lmc.max():.3f}, the threshold {parted.lmc:g}.")
    bounds = boundary_frame(diagram)
    hot, cold = bounds.iloc[0], bounds.iloc[-1]
    for name, regime in (("connected_from", "Connected"), ("similar_from", "II-B")):
        ends = [
            f"from density {100 * d:.3g}% on" if d == d else "not at the highest density"
            for d in (hot[name], cold[name])
        ]
        words.append(f"{regime}: {ends[0]} at the hot end, {ends[1]} at the cold end.")
    changes, said = heating_changes(diagram)
    words.append(f"Of {changes} changes of class with one step of heat, {said} go from I or II-B to II-A.")
    return " ".join(words)


def describe_diagrams(diagrams: Sequence[Diagram]) -> str:
    """Put ``plot_diagrams`` into words.

    Args:
        diagrams: The grids that it draws.

    Returns:
        A few sentences per grid.
    """
    parts = [
        "Heat maps of test error, normalised error, connectivity and similarity; density to the right, temperature upwards."
    ]
    for diagram in diagrams:
        frame = diagram.frame
        text = f"{diagram.title}, {diagram.axis}:"
        if len(frame):
            text += (
                f" test error {_span(frame.error, '.1%')}, normalised {_span(frame.normalised_error, '.1%')}, LMC "
                f"{_span(frame.lmc, 'z.3f')}, CKA {_span(frame.cka, '.3f')}."
            )
        parts.append(f"{text} {describe_transition(diagram)}")
    return " ".join(parts)


def describe_regimes(diagrams: Sequence[Diagram]) -> str:
    """Put ``plot_regimes`` into words.

    Args:
        diagrams: The grids that it draws.

    Returns:
        A few sentences per grid.
    """
    parts = [f"{diagram.title}, {diagram.axis}: {describe_transition(diagram)}" for diagram in diagrams]
    return "The regime of every cell, density to the right, temperature upwards. " + " ".join(parts)


def describe_sensitivity(frame: pd.DataFrame) -> str:
    """Put ``plot_sensitivity`` into words.

    Args:
        frame: Output of :func:`~prunelimit.landscape.diagrams.sensitivity_frame`.

    Returns:
        One sentence per grid: the shares at the ends of each threshold's range.
    """
    names = {"lmc": "LMC", "lmc, rule": "LMC with the similarity by its rule", "cka": "CKA"}
    sentences = []
    for (title, axis), part in frame.groupby(["title", "axis"], sort=False):
        texts = []
        for moved, words in names.items():
            line = part[part.moved == moved].sort_values("threshold")
            if len(line):
                low, high = line.iloc[0], line.iloc[-1]
                texts.append(
                    f"{words} at {low.threshold:.3f} changes {low.share:.0%}, at {high.threshold:.3f} {high.share:.0%}"
                )
        sentences.append(f"{title}, {axis}: {'; '.join(texts)}.")
    return "Share of the cells that change their class if a threshold moves. " + " ".join(sentences)
