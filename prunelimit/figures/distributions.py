"""Figures of the weights: how they are distributed, what that does to the limit, and how far apart two runs lie."""

from __future__ import annotations

from typing import Any

import matplotlib.ticker as ticker
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunelimit.figures.style import COLOURS, legend_below, new_figure, percent_axis, say_missing

_BLUE, _ORANGE, _GREEN = sns.color_palette("colorblind")[:3]

#: Densities below this share of the highest one do not widen the axis.
VISIBLE = 2e-3

#: One mark per profile.
MARKS = {"paper": "D", "laptop": "s", "quick": "o"}

#: What is compared in ``plot_variation``: words, colour, line.
KINDS = {
    "change": ("trained and initial", _ORANGE, "-"),
    "trained": ("two runs", _BLUE, "-"),
    "initial": ("two initial networks", _GREEN, "-"),
}


def plot_weights(density: pd.DataFrame, statistics: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw figure F7: the weights of every network, and its limit against their mean magnitude.

    Args:
        density: Output of ``density_frame``.
        statistics: Output of ``statistics_frame``.
        curves: Output of ``magnitude_frame``.

    Returns:
        One row per network. Left the share of the weights per factor of ten of the magnitude, with a line per seed. Right
        the limit if all weights are multiplied, one curve per seed, a dot at the network itself.
    """
    titles = list(dict.fromkeys([*density.title, *curves.title]))
    figure, axes = new_figure(max(len(titles), 1), 2, width=4.8, height=2.9)
    for (left, right), title in zip(axes, titles, strict=False):
        _draw_density(left, density[density.title == title], statistics[statistics.title == title])
        _draw_magnitudes(right, curves[curves.title == title])
        left.set_title(title, loc="left")
    legend_below(figure, axes.flat, 3)
    return figure


def _draw_density(axis: Axes, density: pd.DataFrame, statistics: pd.DataFrame) -> None:
    if density.empty:
        say_missing(axis, "the weights")
        return
    looks: dict[str, dict[str, Any]] = {
        "initial": {"color": "0.55", "linestyle": "--", "linewidth": 1.0, "label": "initial weights"},
        "trained": {"color": "black", "linewidth": 1.1, "alpha": 0.8, "label": "trained weights, one line per seed"},
    }
    for state, look in looks.items():
        for _, line in density[density.state == state].groupby("seed"):
            axis.plot(line.magnitude, line.density, **look)
    step = float(statistics.step.iloc[0])
    if step > 0:
        axis.axvline(
            step, color=COLOURS["accuracy"], linestyle=":", linewidth=1.6, label="learning rate × γ in the last epoch"
        )
    cut = statistics.cut.dropna()
    if len(cut):
        axis.axvspan(cut.min(), cut.max(), color=COLOURS["formula"], alpha=0.3, linewidth=0)
        text = "cut at the predicted limit: left of it is removed"
        axis.axvline(cut.mean(), color=COLOURS["formula"], linewidth=1.6, linestyle=(0, (6, 1)), label=text)
    shown = density[density.density > VISIBLE * density.density.max()]
    axis.set_xscale("log")
    axis.set_xlim(shown.magnitude.min(), shown.magnitude.max())
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(ticker.LogLocator(numticks=8))
    axis.set_xlabel("magnitude of a weight")
    axis.set_ylabel("share of the weights\nper factor of ten")


def _draw_magnitudes(axis: Axes, curves: pd.DataFrame) -> None:
    if curves.empty:
        say_missing(axis, "the limit")
        return
    colour, other = COLOURS["formula"], COLOURS["fine_tuned"]
    label = "limit of normal weights of the same length"
    normal: dict[str, Any] = {"color": other, "linestyle": "--", "linewidth": 1.2, "label": label}
    for _, line in curves.groupby("seed"):
        axis.fill_between(line.magnitude, line.low, line.high, color=colour, alpha=0.1, linewidth=0)
        axis.plot(
            line.magnitude,
            line.sparsity,
            color=colour,
            linewidth=1.2,
            label="limit of the weights times c, with its interval",
        )
        axis.plot(line.magnitude, line.normal, **normal)
    own = curves[curves.factor == 1]
    axis.plot(own.magnitude, own.sparsity, "o", color=colour, markersize=5, label="the network itself, c = 1")
    axis.plot(own.magnitude, own.normal, "o", color=other, markersize=5, markerfacecolor="white")
    axis.set_xscale("log")
    axis.set_xlim(curves.magnitude.min(), curves.magnitude.max())
    axis.set_xlabel("mean magnitude of the weights, times c")
    axis.set_ylabel("limit (fraction removed)")
    axis.set_ylim(top=min(axis.get_ylim()[1], 1.0))
    axis.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    percent_axis(axis, "y")


def plot_magnitudes(curves: pd.DataFrame) -> Figure:
    """Draw all networks at once: size of the weights, and shape of their distribution.

    Args:
        curves: Output of ``magnitude_frame``.

    Returns:
        Two panels: the curves of all networks with a dot for every seed, and the limit against the one that normally
        distributed weights of the same length would have.
    """
    figure, axes = new_figure(1, 2, width=5.0, height=4.4)
    left, right = axes[0]
    names = list(dict.fromkeys(curves.task))
    colours = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
    for (title, task, profile), part in curves.groupby(["title", "task", "profile"], sort=False):
        own = part[part.factor == 1]
        look: dict[str, Any] = {
            "color": colours[task],
            "marker": MARKS[str(profile)],
            "linestyle": "none",
            "markersize": 5.5,
        }
        for _, line in part.groupby("seed"):
            left.plot(line.magnitude, line.sparsity, color=colours[task], linewidth=0.8, alpha=0.6)
        left.plot(own.magnitude, own.sparsity, **look, label=title)
        spread = [own.sparsity - own.low, own.high - own.sparsity]
        right.errorbar(own.normal, own.sparsity, spread, **look, elinewidth=1)
    networks = curves[curves.factor == 1]
    low = min(networks.normal.min(), networks.low.min()) - 0.03 if len(networks) else 0.0
    right.plot([low, 1], [low, 1], color="0.4", linewidth=1, linestyle="--")
    right.text(0.96, 0.93, "shape does nothing", rotation=45, ha="right", va="top", rotation_mode="anchor", color="0.3")
    right.set_xlim(low, 1)
    right.set_ylim(low, 1.005)
    right.set_aspect("equal")
    right.set_xlabel("limit of normal weights of the same length")
    left.set_xscale("log")
    left.set_xlabel("mean magnitude of the weights, times c")
    left.set_title("size: along a curve", loc="left")
    right.set_title("shape: above the diagonal", loc="left")
    percent_axis(right)
    for axis in (left, right):
        axis.set_ylabel("limit (fraction removed)")
        percent_axis(axis, "y")
    legend_below(figure, left, 2)
    return figure


def plot_variation(frame: pd.DataFrame) -> Figure:
    """Draw the distance between weight distributions against the number of bins, and what it is without difference.

    Args:
        frame: Output of ``variation_frame``.

    Returns:
        One row per network: bins of equal width left, of equal mass right. Dots are means over the pairs, bars reach from
        the lowest to the highest; the dashed lines are the means of random divisions of the pooled weights, exactly.
    """
    titles = list(dict.fromkeys(frame.title))
    rules = ("equal width", "equal mass")
    figure, axes = new_figure(max(len(titles), 1), 2, width=4.8, height=2.9)
    for row, title in zip(axes, titles, strict=False):
        for axis, rule in zip(row, rules, strict=True):
            part = frame[(frame.title == title) & (frame.rule == rule)]
            for number, (kind, (words, colour, line)) in enumerate(KINDS.items()):
                _draw_distances(axis, part[part.kind == kind], words, colour, line, 1 + 0.07 * (number - 1))
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
            axis.yaxis.set_minor_locator(ticker.NullLocator())
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
            axis.set_ylabel("total variation distance")
            axis.set_xlabel(f"bins of {rule}")
        row[0].set_title(title, loc="left")
    legend_below(figure, axes.flat, 3, by_name=True)
    return figure


def _draw_distances(
    axis: Axes, part: pd.DataFrame, words: str, colour: tuple[float, ...], line: str, shift: float
) -> None:
    """Draw one kind of pair; the dots of several kinds stand side by side."""
    if part.empty:
        return
    grouped = part.groupby("bins")
    mean, low, high = (getattr(grouped.distance, name)() for name in ("mean", "min", "max"))
    look: dict[str, Any] = {
        "color": colour,
        "linestyle": line,
        "linewidth": 1.2,
        "marker": "o",
        "markersize": 4,
        "capsize": 2,
    }
    axis.errorbar(mean.index * shift, mean, [mean - low, high - mean], **look, label=words)
    null = grouped.expected.mean()
    axis.plot(null.index, null, color=colour, linestyle="--", linewidth=1.1, label=f"{words}: without difference")


def describe_weights(statistics: pd.DataFrame, curves: pd.DataFrame) -> str:
    """Put ``plot_weights`` into words.

    Args:
        statistics: Output of ``statistics_frame``.
        curves: Output of ``magnitude_frame``.

    Returns:
        A few sentences per network.
    """
    sentences = []
    for title in dict.fromkeys([*statistics.title, *curves.title]):
        part, line = statistics[statistics.title == title], curves[curves.title == title]
        text = f"{title}:"
        if len(part):
            text += (
                f" half of the magnitudes lie below {part['median'].mean():.2g}, {part.small.mean():.0%} below 0.001; the mean "
                f"is {part.mean_magnitude.mean():.2g}, before training {part.initial.mean():.2g}."
            )
        if len(line):
            own, ends = line[line.factor == 1], line.groupby("factor").sparsity.mean()
            text += (
                f" Predicted limit {own.sparsity.mean():.1%}, with all weights times {ends.index[0]:g} {ends.iloc[0]:.1%}, times "
                f"{ends.index[-1]:g} {ends.iloc[-1]:.1%}; of normal weights of the same length {own.normal.mean():.1%}."
            )
        sentences.append(text)
    return "Distribution of the weights, and the limit against their mean magnitude. " + " ".join(sentences)


def describe_magnitudes(curves: pd.DataFrame) -> str:
    """Put ``plot_magnitudes`` into words.

    Args:
        curves: Output of ``magnitude_frame``.

    Returns:
        One sentence per network.
    """
    own = curves[curves.factor == 1]
    sentences = [
        f"{title}: mean magnitude {part.magnitude.mean():.2g}, limit {part.sparsity.mean():.1%}, of normal weights "
        f"{part.normal.mean():.1%}."
        for title, part in own.groupby("title", sort=False)
    ]
    return "The limit of every network falls along its own curve as the weights grow. " + " ".join(sentences)


def describe_variation(frame: pd.DataFrame) -> str:
    """Put ``plot_variation`` into words.

    Args:
        frame: Output of ``variation_frame``.

    Returns:
        One sentence per network and rule, with the fewest and the most bins.
    """
    sentences = []
    chosen = frame[frame.rule.isin(["equal width", "equal mass"])]
    for (title, rule), part in chosen.groupby(["title", "rule"], sort=False):
        values = []
        for kind, (words, _, _) in KINDS.items():
            for bins in (int(part.bins.min()), int(part.bins.max())):
                pairs = part[(part.kind == kind) & (part.bins == bins)]
                if len(pairs):
                    means = f"{pairs.distance.mean():.1%}, without difference {pairs.expected.mean():.1%}"
                    values.append(f"{words}, {bins:,} bins: {means}")
        sentences.append(f"{title}, bins of {rule}: {'; '.join(values)}.")
    return "Total variation distance against the number of bins. " + " ".join(sentences)
