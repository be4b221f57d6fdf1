"""Figures of pruners: accuracy against sparsity, and the limit of the networks that iterative pruning goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from prunelimit.figures.style import COLOURS, legend_below, panel_grid, percent_axis

_MARKS = "osD^vPX<>h"


def _spread(rows: pd.DataFrame, value: str, key: str) -> pd.DataFrame:
    return rows.groupby(key)[value].agg(["mean", "min", "max"]).reset_index()


def plot_pruners(frame: pd.DataFrame, limits: Mapping[str, float] | None = None) -> Figure:
    """Draw test accuracy against the weights that are kept, one panel per network, one line per method.

    Args:
        frame: Output of ``prune_frame``.
        limits: Title of a network to its predicted limit, drawn as a vertical line.

    Returns:
        The figure; bars reach from the worst to the best seed, the horizontal line is the dense network of the first
        method.
    """
    titles = list(dict.fromkeys(frame.title))
    rows = list(dict.fromkeys(frame.row))
    colours = dict(zip(rows, sns.color_palette("colorblind", len(rows)), strict=True))
    figure, axes = panel_grid(len(titles), 2, width=4.8 if len(titles) > 1 else 6.4, height=3.4)
    for axis, title in zip(axes, titles, strict=True):
        here = frame[frame.title == title]
        for number, row in enumerate(rows):
            mine = here[here.row == row]
            if mine.empty:
                continue
            spread = _spread(mine, "test_accuracy", "sparsity")
            errors = [spread["mean"] - spread["min"], spread["max"] - spread["mean"]]
            style = {"color": colours[row], "marker": _MARKS[number % len(_MARKS)], "markersize": 5, "label": row}
            axis.errorbar(1 - spread.sparsity, spread["mean"], errors, linewidth=1.3, elinewidth=1, capsize=2, **style)
        axis.axhline(here.dense_accuracy[here.row == here.row.iloc[0]].mean(), color="0.5", linewidth=0.9)
        if limits and title in limits:
            axis.axvline(1 - limits[title], color=COLOURS["formula"], linestyle="--", label="predicted limit of LOMP")
        _density_axis(axis, sorted(set(here.sparsity)))
        percent_axis(axis, "y")
        axis.set_title(title, loc="left")
        axis.set_ylabel("test accuracy")
    legend_below(figure, axes, columns=4 if len(titles) > 1 else 3)
    return figure


def _density_axis(axis: Axes, sparsities: Sequence[float]) -> None:
    """Make the axis logarithmic in what is kept, sparse networks on the right, and write both conventions."""
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xticks([1 - s for s in sparsities])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda kept, _: f"{100 * kept:.3g}\n({100 * (1 - kept):.4g})"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("% of weights kept (removed), logarithmic")


def plot_rounds(frame: pd.DataFrame) -> Figure:
    """Draw how the limit moves as iterative pruning goes on, one panel per network.

    Args:
        frame: Output of ``rounds_frame``; rounds whose network is dead are not drawn.

    Returns:
        Predicted and measured limit against the sparsity already reached; the diagonal is where nothing more could go.
    """
    frame = frame[frame.alive]
    titles = list(dict.fromkeys(frame.title))
    figure, axes = panel_grid(len(titles), 2, width=4.8 if len(titles) > 1 else 6.4, height=3.6)
    kinds = {
        "formula": ("o", "-", "formula, for the network of the round"),
        "measured": ("X", "-.", "one-shot, measured"),
    }
    for axis, title in zip(axes, titles, strict=True):
        here = frame[frame.title == title]
        rounds = here.groupby("round")
        place = rounds.sparsity.mean()
        for name, (mark, line, label) in kinds.items():
            values = rounds[name]
            errors = [values.mean() - values.min(), values.max() - values.mean()]
            style = {"color": COLOURS[name], "marker": mark, "linestyle": line, "markersize": 5, "label": label}
            axis.errorbar(place, values.mean(), errors, linewidth=1.3, elinewidth=1, capsize=2, **style)
        axis.fill_between(place, rounds.low.min(), rounds.high.max(), color=COLOURS["formula"], alpha=0.15, linewidth=0)
        axis.plot([0, 1], [0, 1], color="0.5", linewidth=0.9, label="already removed")
        axis.set_xlim(-0.03, 1.02)
        axis.set_ylim(min(0.5, here[["formula", "low", "measured"]].min().min()) - 0.02, 1.01)
        for which in "xy":
            percent_axis(axis, which)
        axis.set_title(title, loc="left")
        axis.set_xlabel("removed by the rounds so far")
        axis.set_ylabel("limit (fraction of all weights removed)")
    legend_below(figure, axes[0], columns=3 if len(titles) > 1 else 2)
    return figure


def describe_pruners(frame: pd.DataFrame) -> str:
    """Put the sparsest column of a figure of pruners into words, for its alternative text.

    Args:
        frame: Output of ``prune_frame``.

    Returns:
        One sentence per network.
    """
    sentences = []
    for title, here in frame.groupby("title", sort=False):
        words = []
        for row, mine in here.groupby("row", sort=False):
            mean = mine.groupby("sparsity").test_accuracy.mean()
            words.append(f"{row} {mean.iloc[0]:.1%} to {mean.iloc[-1]:.1%}")
        low, high = here.sparsity.min(), here.sparsity.max()
        sentences.append(f"{title}, test accuracy from {low:.4g} to {high:.4g} removed: {'; '.join(words)}.")
    return " ".join(sentences)


def describe_rounds(frame: pd.DataFrame) -> str:
    """Put a figure of rounds into words, for its alternative text.

    Args:
        frame: Output of ``rounds_frame``.

    Returns:
        One sentence per network.
    """
    sentences = []
    for title, here in frame[frame.alive].groupby("title", sort=False):
        rounds = here.groupby("seed")["round"]
        first, last = here.loc[rounds.idxmin()], here.loc[rounds.idxmax()]
        sentences.append(
            f"{title}: before pruning formula {first.formula.mean():.1%}, measured {first.measured.mean():.1%}; with "
            f"{last.sparsity.mean():.1%} removed by the rounds formula {last.formula.mean():.1%}, measured "
            f"{last.measured.mean():.1%}."
        )
    return " ".join(sentences)
