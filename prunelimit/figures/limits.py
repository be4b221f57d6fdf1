"""Figures of the limit: data frames in, matplotlib figures out, and a text equivalent for every picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunelimit.figures.style import COLOURS, LABELS, LINES, legend_below, new_figure, panel_grid, percent_axis

if TYPE_CHECKING:
    from prunelimit.experiments.frames import Cell
    from prunelimit.limit import PruningLimit


def _draw_crossing(axis: Axes, limit: PruningLimit) -> None:
    curve = limit.curve
    axis.plot(curve.sparsity, curve.sparsity, color="0.4", label="removed: s")
    axis.plot(curve.sparsity, curve.removable, color=COLOURS["formula"], label="removable at distance R(s)")
    axis.fill_between(curve.sparsity, curve.low, curve.high, color=COLOURS["formula"], alpha=0.2, linewidth=0)
    axis.plot([limit.sparsity], [limit.sparsity], "o", color="black", label=f"predicted limit {limit.sparsity:.1%}")
    percent_axis(axis, "y")
    axis.set_ylabel("fraction of weights")


def plot_limit(limit: PruningLimit) -> Figure:
    """Draw the crossing that defines a limit.

    Args:
        limit: Any :class:`~prunelimit.limit.PruningLimit`.

    Returns:
        For the formula the removable fraction against the sparsity; otherwise the rise of the loss against epsilon.
    """
    figure, axes = new_figure(width=5.2, height=3.6)
    axis, curve = axes[0, 0], limit.curve
    if "removable" in curve:
        _draw_crossing(axis, limit)
    else:
        axis.plot(curve.sparsity, curve.rise, ".-", color=COLOURS["measured"], label="rise of the training loss")
        axis.axhline(limit.epsilon, color="0.4", linestyle="--", label=f"ε = {limit.epsilon:.3g}")
        axis.axvline(limit.sparsity, color="black", linewidth=1, label=f"limit {limit.sparsity:.1%}")
        axis.set_yscale("symlog", linthresh=limit.epsilon)
        axis.set_ylabel("rise of the loss")
    percent_axis(axis)
    axis.set_xlabel("sparsity s (fraction removed)")
    axis.legend()
    return figure


def _panels(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    panels: dict[str, list[Cell]] = {}
    for cell in cells:
        panels.setdefault(cell.title, []).append(cell)
    return panels


def _mark_limits(axis: Axes, row: pd.DataFrame, names: Sequence[str]) -> None:
    """Draw mean limits as lines; the band of the formula holds every seed's interval."""
    for name in names:
        values = row[name].dropna()
        if not values.empty:
            axis.axvline(values.mean(), color=COLOURS[name], linestyle=LINES[name], linewidth=1.5, label=LABELS[name])
    axis.axvspan(row.formula_low.min(), row.formula_high.max(), color=COLOURS["formula"], alpha=0.12, linewidth=0)


def plot_sweeps(sweeps: pd.DataFrame, limits: pd.DataFrame) -> Figure:
    """Draw figure F2: loss and accuracy against sparsity, with the limits as lines.

    Args:
        sweeps: Output of ``sweep_frame``.
        limits: Output of ``limits_frame``.

    Returns:
        Two panels per network: test accuracy and training loss; bands are one standard deviation over seeds.
    """
    titles = list(dict.fromkeys(sweeps.title))
    figure, axes = new_figure(len(titles), 2)
    for (left, right), title in zip(axes, titles, strict=True):
        part, row = sweeps[sweeps.title == title], limits[limits.title == title]
        for axis, column, name in ((left, "test_accuracy", "accuracy"), (right, "train_loss", "loss")):
            # Adaptive sweeps look elsewhere for every seed: between its points a seed's curve is a straight line.
            curves = part.pivot_table(index="sparsity", columns="seed", values=column).interpolate(
                "index", limit_area="inside"
            )
            mean, spread = curves.mean(axis=1), curves.std(axis=1).fillna(0)
            axis.plot(mean.index, mean, color=COLOURS[name], linewidth=2)
            axis.fill_between(mean.index, mean - spread, mean + spread, color=COLOURS[name], alpha=0.25, linewidth=0)
            _mark_limits(axis, row, ("formula", "directional", "measured", "fine_tuned"))
            percent_axis(axis)
            axis.set_xlabel("sparsity (fraction removed)")
            axis.set_xlim(max(0.0, float(row[["measured", "formula"]].min().min()) - 0.35), 1.0)
        right.axhline((row.train_loss + row.epsilon).mean(), color="0.4", linestyle=(0, (1, 1)), linewidth=1)
        if part.train_loss.max() > 5 * part.train_loss.min():
            right.set_yscale("log")
        right.set_ylabel("training loss (nats)")
        left.set_ylabel("test accuracy, no retraining")
        percent_axis(left, "y")
        left.set_title(title, loc="left")
    legend_below(figure, axes[0, 0])
    return figure


def plot_radius(cells: Sequence[Cell]) -> Figure:
    """Draw figure F4: what is removable at distance R, what magnitude pruning removes there, and where they cross.

    Args:
        cells: Recorded cells; one panel per title, one pair of lines per seed.

    Returns:
        The figure.
    """
    panels = _panels(cells)
    figure, axes = panel_grid(len(panels), 2)
    for axis, (title, group) in zip(axes, panels.items(), strict=True):
        for number, cell in enumerate(group):
            curve, limit = cell.limit.curve, cell.limit
            first = number == 0
            axis.plot(
                curve.radius,
                curve.removable,
                color=COLOURS["formula"],
                label="removable at R (theory)" if first else None,
            )
            axis.fill_between(curve.radius, curve.low, curve.high, color=COLOURS["formula"], alpha=0.15, linewidth=0)
            axis.plot(
                curve.radius,
                curve.sparsity,
                color="0.35",
                linestyle="--",
                label="removed at R (magnitude)" if first else None,
            )
            axis.plot(
                limit.radius, limit.sparsity, "o", color=COLOURS["formula"], label="predicted limit" if first else None
            )
            measured = cell.record["measured"]
            axis.plot(
                measured["radius"],
                measured["sparsity"],
                "X",
                color=COLOURS["measured"],
                label="measured: one-shot" if first else None,
            )
        # Beyond a few times the crossing nothing happens but a widening band.
        axis.set_xlim(
            0, min(max(4 * cell.limit.radius for cell in group), max(c.limit.curve.radius.max() for c in group))
        )
        axis.set_title(title, loc="left")
        axis.set_xlabel("distance R = ‖w* − w(s)‖")
        axis.set_ylabel("fraction of weights")
        percent_axis(axis, "y")
    legend_below(figure, axes[0])
    return figure


def _draw_marks(axis: Axes, limits: pd.DataFrame) -> None:
    """Draw one row of marks per network; a bar is the formula's interval or the spread over seeds."""
    titles = list(dict.fromkeys(limits.title))
    marks = {"formula": "o", "cut": "s", "directional": "D", "measured": "X", "fine_tuned": "P"}
    for level, title in enumerate(titles):
        row = limits[limits.title == title]
        for offset, (name, mark) in enumerate(marks.items()):
            values = row[name].dropna()
            if values.empty:
                continue
            height = -level + 0.28 - 0.14 * offset
            low, high = values.min(), values.max()
            if name == "formula":
                low, high = row.formula_low.min(), row.formula_high.max()
            label = None if level else LABELS[name]
            axis.plot([low, high], [height, height], color=COLOURS[name], linewidth=2.2, alpha=0.6)
            axis.plot(values.mean(), height, mark, color=COLOURS[name], markersize=8, label=label)
    names = [title.replace(" stand-in on ", ", ").replace(" on ", ", ") for title in titles]
    axis.set_yticks([-level for level in range(len(titles))], names, fontsize=9)
    axis.set_ylim(-len(titles) + 0.45, 0.55)
    axis.grid(visible=False, axis="y")
    percent_axis(axis)
    axis.set_xlabel("sparsity (fraction removed)")


def plot_answer(limits: pd.DataFrame) -> Figure:
    """Draw predictions and measurements side by side on one axis.

    Args:
        limits: Output of ``limits_frame``.

    Returns:
        One row of marks per network; thin bars are intervals or the spread over seeds.
    """
    figure, axes = new_figure(width=7.6, height=1.6 + 0.55 * limits.title.nunique())
    _draw_marks(axes[0, 0], limits)
    legend_below(figure, axes[0, 0])
    return figure


def plot_cover(limit: PruningLimit, title: str, limits: pd.DataFrame) -> Figure:
    """Draw the picture of the landing page: how a limit comes about, and how it compares with pruning for real.

    Args:
        limit: The formula's limit of one network.
        title: The network.
        limits: Output of ``limits_frame``.

    Returns:
        Two panels: the crossing on the left, predictions and measurements of every network on the right.
    """
    height = max(4.1, 1.6 + 0.4 * limits.title.nunique())
    figure, axes = new_figure(1, 2, width=4.2, height=height)
    left, right = axes[0]
    _draw_crossing(left, limit)
    percent_axis(left)
    left.set_xlabel("sparsity s (fraction removed)")
    left.set_title(title, loc="left")
    _draw_marks(right, limits)
    right.set_title("prediction and practice", loc="left")
    for axis in (left, right):
        axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.7 / height), fontsize=9)
    return figure


def describe_limits(limits: pd.DataFrame) -> str:
    """Put the numbers of a figure into words, for its alternative text.

    Args:
        limits: Output of ``limits_frame``.

    Returns:
        One sentence per network.
    """
    sentences = []
    for title, row in limits.groupby("title", sort=False):
        tuned = row.fine_tuned.dropna()
        cut = row.cut.dropna()
        for_cut = f", for the cut {cut.mean():.1%}" if not cut.empty else ""
        after = f", after fine-tuning {tuned.mean():.1%}" if not tuned.empty else ""
        sentences.append(
            f"{title}: formula {row.formula.mean():.1%} (interval {row.formula_low.min():.1%} to "
            f"{row.formula_high.max():.1%}){for_cut}, directional {row.directional.mean():.1%}, measured one-shot "
            f"{row.measured.mean():.1%}{after}."
        )
    return " ".join(sentences)
