"""Figures of the ladder: limits rung by rung, the direction of the cut, and how far the expansion of the loss holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunelimit.figures.style import legend_below, new_figure, panel_grid, percent_axis

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY = sns.color_palette("colorblind")[:8]

#: Colours and marks of the networks on one panel.
_NETWORKS = ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "D"), (_PURPLE, "^"))

#: Expansions of the loss: name, colour, line and its width; the first two may lie on each other.
_EXPANDED = {
    "absolute": ("|H| alone", _PURPLE, "-", 4.0),
    "signed": ("H alone", _GREEN, "--", 1.5),
    "sloped": ("H and gradient", _ORANGE, "-.", 1.5),
}

#: The smallest rise on a logarithmic axis, in units of epsilon.
LOWEST = 1e-3


def plot_ladder(frame: pd.DataFrame, branches: dict[str, str]) -> Figure:
    """Draw the limits from rung to rung.

    Args:
        frame: Output of ``rungs_frame``.
        branches: Branch to the title of its panel.

    Returns:
        One row of panels per profile, one column per branch; a line per network and seed. Bars are the bracket of a search
        or the spread over random subspaces.
    """
    profiles = list(dict.fromkeys(frame.profile))
    longest = int(frame.place.max()) + 1
    figure, axes = new_figure(len(profiles), len(branches), width=5.6, height=1.2 + 0.3 * longest)
    for row, profile in zip(axes, profiles, strict=True):
        part = frame[frame.profile == profile]
        edge = max(0.0, float(part.low.min()) - 0.04)
        for axis, (branch, title) in zip(row, branches.items(), strict=True):
            _draw_rungs(axis, part[part.branch == branch], list(dict.fromkeys(frame.task)))
            data = part.title.iloc[0].rpartition(", ")[2]
            axis.set_title(f"{title}: {data} ({profile})", loc="left")
            axis.set_xlim(edge, 1.0)
    legend_below(figure, axes[:, 0], 4)
    return figure


def _draw_rungs(axis: Axes, part: pd.DataFrame, tasks: list[str]) -> None:
    """Draw one panel: the formula on top, reality at the bottom."""
    labels = part.drop_duplicates("place").sort_values("place").label.tolist()
    for number, task in enumerate(tasks):
        colour, mark = _NETWORKS[number % len(_NETWORKS)]
        shift = 0.14 * (number - (len(tasks) - 1) / 2)
        for count, (_, one) in enumerate(part[part.task == task].groupby("seed")):
            height = -one.place.to_numpy() - shift
            label = one.title.iloc[0].rpartition(", ")[0] if count == 0 else None
            axis.plot(one.sparsity, height, color=colour, linewidth=0.8, alpha=0.5)
            axis.hlines(height, one.low, one.high, color=colour, linewidth=2.2, alpha=0.6)
            axis.plot(one.sparsity, height, mark, color=colour, markersize=4.5, alpha=0.85, label=label)
    axis.set_yticks([-place for place in range(len(labels))], labels)
    axis.set_ylim(-len(labels) + 0.5, 0.5)
    percent_axis(axis)
    axis.set_xlabel("limit: sparsity (fraction removed)")


def plot_directions(frame: pd.DataFrame, kinds: dict[str, str]) -> Figure:
    """Draw the rise of the loss along steps of one length in different directions.

    Args:
        frame: Output of ``directions_frame``, for one place.
        kinds: Kind to its name.

    Returns:
        One panel per network: the true rise of every step of every seed, and the mean of its expansion by H and gradient.
    """
    titles = list(dict.fromkeys(frame.title))
    figure, axes = panel_grid(len(titles), 2, width=5.2, height=3.1)
    for axis, title in zip(axes, titles, strict=True):
        for place, kind in enumerate(kinds):
            part = frame[(frame.title == title) & (frame.kind == kind)]
            colour = _RED if kind == "cut" else _BLUE
            heights = -place + 0.22 * np.linspace(-1, 1, len(part)) * (len(part) > 1)
            first = place == 1
            axis.plot(
                part.rise, heights, ".", color=colour, alpha=0.6, markersize=5, label="the loss" if first else None
            )
            mean = part.sloped.mean()
            axis.plot(mean, -place, "|", color="black", markersize=13, label="H and gradient, mean" if first else None)
        axis.axvline(1, color="0.4", linestyle="--", linewidth=1)
        _signed_decades(axis, frame[frame.title == title].rise)
        axis.set_yticks([-place for place in range(len(kinds))], list(kinds.values()))
        axis.set_title(title, loc="left")
        axis.set_xlabel("rise of the loss / ε")
    legend_below(figure, axes[0], 2)
    return figure


def _signed_decades(axis: Axes, values: pd.Series) -> None:
    """Draw an axis in decades that may hold zero and a little less."""
    low, high = float(values.min()), float(values.max())
    least = 0.1 if low > 0.1 else -0.1 if low > -0.1 else -(10 ** np.ceil(np.log10(-low)))
    top = max(1, int(np.ceil(np.log10(max(high, 1.0)) + 0.1)))
    ticks = [least, 0.0] if least < 0 else []
    ticks += [10.0**power for power in range(-1, top + 1, 2 if top > 2 else 1)]
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set_xlim(least, 10.0**top)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def plot_expansions(path: pd.DataFrame) -> Figure:
    """Draw the rise of the loss along the cut, true and by its expansions.

    Args:
        path: Output of ``path_frame``.

    Returns:
        One panel per network, averaged over seeds; rises below a thousandth of epsilon are left out. The vertical line is
        the formula's limit.
    """
    titles = list(dict.fromkeys(path.title))
    figure, axes = panel_grid(len(titles), 2, width=4.8, height=3.2)
    for axis, title in zip(axes, titles, strict=True):
        part = path[path.title == title]
        means = part.groupby("sparsity")[["rise", *_EXPANDED]].mean()
        means = means.where(means > LOWEST)
        axis.plot(means.index, means.rise, color=_RED, linewidth=2, label="the loss")
        for name, (label, colour, line, thick) in _EXPANDED.items():
            shade = 0.35 if name == "absolute" else 1.0
            axis.plot(means.index, means[name], color=colour, linestyle=line, linewidth=thick, alpha=shade, label=label)
        axis.axhline(1, color="0.4", linestyle="--", linewidth=1)
        axis.axvline(part.formula.mean(), color=_BLUE, linewidth=1, label="the formula's limit")
        axis.set_yscale("log")
        there = means.rise.dropna()
        axis.set_xlim(float(there.index.min()) if len(there) else 0.0, 1.0)
        # No halves of a per cent, which the labels would round.
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        percent_axis(axis)
        axis.set_title(title, loc="left")
        axis.set_xlabel("sparsity (fraction removed)")
        axis.set_ylabel("rise / ε")
    legend_below(figure, axes[0], 3)
    return figure


def describe_ladder(frame: pd.DataFrame, branch: str) -> str:
    """Put one branch into words, for the figure's alternative text.

    Args:
        frame: Output of ``rungs_frame``.
        branch: Which branch.

    Returns:
        One sentence per network, with the mean limit of every rung.
    """
    part = frame[frame.branch == branch]
    sentences = []
    for title, one in part.groupby("title", sort=False):
        means = one.sort_values("place").groupby("label", sort=False).sparsity.mean()
        sentences.append(f"{title}: " + ", ".join(f"{label} {value:.1%}" for label, value in means.items()) + ".")
    return " ".join(sentences)


def describe_directions(frame: pd.DataFrame, kinds: dict[str, str]) -> str:
    """Put the rises along steps of one length into words.

    Args:
        frame: Output of ``directions_frame``, for one place.
        kinds: Kind to its name.

    Returns:
        One sentence per network, with the mean rise of every kind in units of epsilon.
    """
    sentences = []
    for title, one in frame.groupby("title", sort=False):
        means = one.groupby("kind", sort=False).rise.mean()
        sentences.append(f"{title}: " + ", ".join(f"{name} {means[kind]:.2g}" for kind, name in kinds.items()) + ".")
    return " ".join(sentences)
