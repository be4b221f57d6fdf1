"""Figures of the theory: quadratics that one chooses, weights that are scaled, and the bound by the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunelimit.figures.style import COLOURS, legend_below, new_figure, palette, panel_grid, percent_axis

if TYPE_CHECKING:
    from prunelimit.experiments.frames import Cell

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY = sns.color_palette("colorblind")[:8]

#: What was tried: its name, colour and mark.
TRIED = {
    "random": ("random subspace", _ORANGE, "o"),
    "coordinates": ("zeros in the removed places", _PURPLE, "s"),
}

#: Orientation of the eigenvectors: its colour and line.
TURNED = {
    "cut": (_GREY, ":"),
    "random": (_PURPLE, "-"),
    "independent": (_GREEN, "--"),
    "small": (_RED, "-."),
    "large": (_BROWN, (0, (5, 1, 1, 1, 1, 1))),
}

#: Colour of the bound by the trace.
_TRACE = _BROWN

#: The smallest rise that is drawn, in units of epsilon.
LOWEST = 1e-3


def plot_success(success: pd.DataFrame, predictions: pd.DataFrame) -> Figure:
    """Draw how often a subspace meets the sublevel set of a quadratic, with the predicted limit and its window.

    Args:
        success: Output of ``success_frame``.
        predictions: Output of ``prediction_frame``; one panel per row.

    Returns:
        The figure.
    """
    figure, axes = panel_grid(len(predictions), 3, 4.0, 3.0)
    for axis, (_, row) in zip(axes, predictions.iterrows(), strict=True):
        axis.axvspan(row.lower, row.upper, color=COLOURS["formula"], alpha=0.12, linewidth=0, label="window s₋ to s₊")
        axis.axvline(row.formula, color=COLOURS["formula"], linewidth=1.8, label="predicted limit s*")
        for subspace, (label, colour, mark) in TRIED.items():
            part = success[(success.name == row["name"]) & (success.subspace == subspace)]
            axis.plot(part.sparsity, part.probability, color=colour, linewidth=1)
            share = part.probability
            turn = part[(share != share.shift(fill_value=1.0)) | (share != share.shift(-1, fill_value=0.0))]
            spread = np.clip([turn.probability - turn.low, turn.high - turn.probability], 0, 1)
            style = {"markersize": 3.5, "elinewidth": 0.8, "color": colour, "label": label}
            axis.errorbar(turn.sparsity, turn.probability, spread, fmt=mark, **style)
            text = f"mean rise = ε: {label}"
            axis.axvline(row[f"{subspace}_mean"], color=colour, linestyle="--", linewidth=1.2, label=text)
        axis.set_title(row["name"], loc="left")
        axis.set_xlim(0, 1)
        axis.set_xlabel("sparsity s")
        axis.set_ylabel("share of trials that meet")
        percent_axis(axis)
        percent_axis(axis, "y")
    legend_below(figure, axes[0], 3)
    return figure


def plot_orientations(panels: dict[str, pd.DataFrame], limits: dict[str, float]) -> Figure:
    """Draw the smallest rise over the kept coordinates against the sparsity, for each orientation of the eigenvectors.

    Args:
        panels: Name of the quadratic to its ``orientation_frame``.
        limits: Name to the predicted limit.

    Returns:
        One panel per quadratic.
    """
    figure, axes = panel_grid(len(panels), 2, 5.0, 3.6)
    for axis, (name, frame) in zip(axes, panels.items(), strict=True):
        for key, (colour, line) in TURNED.items():
            part = frame[frame.orientation == key].sort_values("sparsity")
            style = {"color": colour, "linestyle": line, "linewidth": 1.6, "label": part.label.iloc[0]}
            axis.plot(part.sparsity, part["median"], **style)
            axis.fill_between(part.sparsity, part.low, part.high, color=colour, alpha=0.18, linewidth=0)
        axis.axhline(1, color="0.2", linewidth=1)
        axis.axvline(limits[name], color=COLOURS["formula"], linewidth=1.8, label="predicted limit s*")
        axis.set_yscale("log")
        axis.set_ylim(LOWEST, max(50.0, float(frame["median"].max()) * 1.5))
        axis.set_title(name, loc="left")
        axis.set_xlabel("sparsity s")
        axis.set_ylabel("smallest rise / ε")
        percent_axis(axis)
    legend_below(figure, axes[0])
    return figure


def plot_ball(frame: pd.DataFrame) -> Figure:
    """Draw the exact probability that a random subspace meets a ball, with a window that closes around another place.

    Args:
        frame: Output of ``ball_frame``.

    Returns:
        One panel per dimension.
    """
    groups = list(frame.groupby("dimension"))
    figure, axes = panel_grid(len(groups), 3, 4.0, 3.0)
    for axis, (dimension, part) in zip(axes, groups, strict=True):
        row = part.iloc[0]
        axis.axvspan(row.lower, row.upper, color=COLOURS["formula"], alpha=0.12, linewidth=0, label="window s₋ to s₊")
        axis.axvline(row.formula, color=COLOURS["formula"], linewidth=1.8, label="predicted limit s*")
        axis.plot(part.sparsity, part.probability, color=TRIED["random"][1], linewidth=1.8, label="exact probability")
        axis.set_title(f"a ball, D = {dimension:,}", loc="left")
        axis.set_xlim(0.3, 1)
        axis.set_xlabel("sparsity s")
        axis.set_ylabel("probability of meeting")
        percent_axis(axis)
        percent_axis(axis, "y")
    legend_below(figure, axes[0], 3)
    return figure


def _titles(table: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    """Give every network of a table a colour."""
    titles = list(dict.fromkeys(table.title))
    colours = palette(len(titles))
    order = (0, 1, 2, 4, 5, 8, 3, 6) if len(titles) <= 8 else range(len(titles))
    return dict(zip(titles, (colours[i] for i in order), strict=False))


def plot_scaled_weights(cells: Sequence[Cell], scaling: pd.DataFrame) -> Figure:
    """Draw figure F6: one falling curve, and the rising ones of weights multiplied by c, with their crossings.

    Args:
        cells: Recorded cells; the first of each title gives its curves.
        scaling: Output of ``scaling_frame`` for them.

    Returns:
        One panel per network, and one with the limit against c, all seeds and their intervals.
    """
    first = {cell.title: cell for cell in reversed(cells)}
    titles = [title for title in dict.fromkeys(scaling.title) if title in first]
    figure, axes = panel_grid(len(titles) + 1, 2, 5.2, 3.5)
    factors = sorted({float(c) for c in scaling.factor})
    shades = dict(zip(factors, sns.color_palette("flare", len(factors)), strict=True))
    for axis, title in zip(axes, titles, strict=False):
        cell = first[title]
        curve = cell.limit.curve
        reach = scaling[(scaling.title == title) & (scaling.seed == cell.seed)]
        axis.plot(curve.radius, curve.removable, color=COLOURS["formula"], label="removable at R (theory)")
        axis.fill_between(curve.radius, curve.low, curve.high, color=COLOURS["formula"], alpha=0.15, linewidth=0)
        for row in reach.itertuples():
            c, colour = float(str(row.factor)), shades[float(str(row.factor))]
            axis.plot(
                c * curve.radius,
                curve.sparsity,
                color=colour,
                linestyle="--",
                linewidth=1.2,
                label=f"removed, c = {c:g}",
            )
            axis.plot([row.radius], [row.sparsity], "o", color=colour, markersize=6)
        _frame_crossings(axis, reach)
        axis.set_title(title, loc="left")
    legend_below(figure, axes[0], 3)
    last = axes[-1]
    for number, (title, colour) in enumerate(_titles(scaling).items()):
        _limits_over(last, scaling[scaling.title == title], colour, title, 0.06 * number - 0.09)
    last.set_xlabel("weights multiplied by c, Hessian held fixed")
    last.set_ylabel("predicted limit (fraction removed)")
    last.set_xticks(factors)
    _round_percents(last)
    if len(axes) % 2:  # the place beside the last panel is free
        last.legend(loc="upper left", bbox_to_anchor=(1.05, 1.0), fontsize=9).set_in_layout(False)
    else:
        last.legend(fontsize=7.5)
    return figure


def _frame_crossings(axis: Axes, reach: pd.DataFrame) -> None:
    axis.set_xlim(0, 1.6 * float(reach.radius.max()))
    spread = float(reach.high.max() - reach.low.min())
    axis.set_ylim(max(0.0, float(reach.low.min()) - 2 * spread), min(1.0, float(reach.high.max()) + spread))
    axis.set_xlabel("distance R")
    axis.set_ylabel("fraction of weights")
    _round_percents(axis)


def _round_percents(axis: Axes) -> None:
    axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    percent_axis(axis, "y")


def _limits_over(axis: Axes, part: pd.DataFrame, colour: tuple[float, ...], label: str, offset: float) -> None:
    """Draw the mean over seeds; the bar holds the interval of every seed."""
    grouped = part.groupby("factor")
    value, low, high = grouped.sparsity.mean(), grouped.low.min(), grouped.high.max()
    spread = [value - low, high - value]
    axis.errorbar(value.index + offset, value, spread, fmt="o-", color=colour, capsize=2, markersize=4, label=label)


def plot_rescaling(growth: pd.DataFrame, rescaling: pd.DataFrame) -> Figure:
    """Draw what scaling does to a real network: all weights at once, and one layer against the next.

    Args:
        growth: Output of ``growth_frame``.
        rescaling: Output of ``rescaling_frame``.

    Returns:
        Two panels.
    """
    figure, axes = new_figure(1, 2, width=5.2, height=4.0)
    left, right = axes[0]
    held = {"color": COLOURS["formula"], "linestyle": ":", "marker": "o", "markerfacecolor": "white"}
    left.plot(growth.factor, growth.held, **held, label="formula, Hessian held fixed")
    spread = [growth.formula - growth.low, growth.high - growth.formula]
    own = {"color": COLOURS["formula"], "capsize": 2}
    left.errorbar(growth.factor, growth.formula, spread, fmt="o-", **own, label="formula, its own Hessian")
    left.plot(growth.factor, growth.measured, "X-", color=COLOURS["measured"], label="measured: one-shot")
    left.set_xlabel("all weights multiplied by c")
    left.set_title("another function", loc="left")
    for column, text, line, face in (("", "masks by magnitude", "-", None), ("_fixed", "masks of c = 1", ":", "white")):
        for name, mark in (("formula", "o"), ("measured", "X")):
            style = {"linestyle": line, "marker": mark, "color": COLOURS[name]}
            style |= {"markerfacecolor": face} if face else {}
            right.plot(rescaling.factor, rescaling[name + column], **style, label=f"{name}, {text}")
    right.set_xscale("log", base=2)
    right.set_xticks(list(rescaling.factor), [f"{c:g}" for c in rescaling.factor])
    right.set_xlabel("one layer multiplied by c, the next one divided")
    right.set_title("the same function", loc="left")
    for axis in (left, right):
        axis.set_ylabel("limit (fraction removed)")
        _round_percents(axis)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=8.5)
    return figure


def plot_bounds(curves: pd.DataFrame, limits: pd.DataFrame) -> Figure:
    """Draw the removable fraction of quadratics by the formula and by the trace.

    Args:
        curves: Output of ``bound_curves``.
        limits: Output of ``bound_limits``; one panel per row.

    Returns:
        The figure.
    """
    figure, axes = panel_grid(len(limits), 3, 4.0, 3.0)
    for axis, (_, row) in zip(axes, limits.iterrows(), strict=True):
        part = curves[curves.name == row["name"]]
        axis.plot(part.sparsity, part.sparsity, color="0.4", label="removed: s")
        axis.plot(part.sparsity, part.formula, color=COLOURS["formula"], label="removable: formula")
        axis.plot(part.sparsity, part.bound, color=_TRACE, linestyle="--", label="removable: trace bound")
        axis.fill_between(part.sparsity, part.bound, part.formula, color=_TRACE, alpha=0.1, linewidth=0)
        axis.plot([row.formula], [row.formula], "o", color=COLOURS["formula"])
        axis.plot([row.bound], [row.bound], "D", color=_TRACE)
        axis.text(0.84, 0.99, f"lost: {row.lost * 100:.1f} points", transform=axis.transAxes, ha="right", va="top")
        axis.set_title(row["name"], loc="left")
        axis.set_xlabel("sparsity s")
        axis.set_ylabel("fraction of weights")
        percent_axis(axis)
        percent_axis(axis, "y")
    legend_below(figure, axes[0], 3)
    return figure


def _rows(table: pd.DataFrame) -> list[str]:
    rows = zip(table.title, table.profile, table.seed, strict=True)
    return [f"{title.split(' on ')[0]} ({profile}), seed {seed}" for title, profile, seed in rows]


def plot_traces(table: pd.DataFrame, concentration: pd.DataFrame) -> Figure:
    """Draw the limits of recorded networks by the formula and by the trace, and where the trace sits.

    Args:
        table: Output of ``trace_frame``.
        concentration: Output of ``concentration_frame``.

    Returns:
        Two panels: limits with their intervals, one row per network and seed; share of the trace against the share of the
        eigenvalues.
    """
    figure, axes = new_figure(1, 2, width=5.4, height=1.8 + 0.22 * len(table))
    left, right = axes[0]
    levels = -np.arange(len(table), dtype=float)
    marks = (("formula", "o", COLOURS["formula"], "formula"), ("bound", "D", _TRACE, "trace bound"))
    for shift, (name, mark, colour, label) in zip((0.15, -0.15), marks, strict=True):
        spread = np.clip([table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]], 0, 1)
        style = {"color": colour, "elinewidth": 2, "markersize": 5, "label": label}
        left.errorbar(table[name], levels + shift, xerr=spread, fmt=mark, **style)
    left.plot(table.measured, levels, "X", color=COLOURS["measured"], markersize=5, label="measured: one-shot")
    colours = _titles(table)
    left.set_yticks(levels, _rows(table))
    left.set_xlabel("limit (fraction removed)")
    percent_axis(left)
    left.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=3, fontsize=8.5)
    for title, seed in dict.fromkeys(zip(concentration.title, concentration.seed, strict=True)):
        part = concentration[(concentration.title == title) & (concentration.seed == seed)]
        first = concentration[concentration.title == title].seed.iloc[0] == seed
        right.plot(part.eigenvalues, part.trace, color=colours[title], linewidth=1.2, label=title if first else None)
    right.set_xscale("log")
    right.set_xlabel("share of the eigenvalues, largest first (estimate)")
    right.set_ylabel("share of Tr|H|")
    right.set_xlim(right.get_xlim()[0], 1)
    percent_axis(right, "y")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8.5)
    return figure
