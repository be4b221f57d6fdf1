"""Figures of the spectrum: what makes it hard, what each rule makes of it, and what is resolved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunelimit.figures.style import new_figure, palette, panel_grid, percent_axis

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY = sns.color_palette("colorblind")[:8]

#: One colour per rule, the same in every figure.
RULES = {
    "gauss": ("Gauss rule of H", _ORANGE, "-"),
    "radau": ("Gauss-Radau rule of H, node at 0", _PURPLE, "-"),
    "tail": ("tail average", "black", "-"),
    "high": ("Gauss rule of H²: never below", _BLUE, "--"),
    "low": ("Gauss-Radau rule of H²: never above", _BLUE, ":"),
}

#: Row norms below this share of the largest one are not drawn: rounding errors.
SMALLEST = 1e-8


def plot_eigenvalues(eigenvalues: np.ndarray, mu: float) -> Figure:
    """Draw all eigenvalues by magnitude, and the share that each contributes to the effective dimension.

    Args:
        eigenvalues: ``(D,)``.
        mu: The scale 2 epsilon / R^2 at the limit.

    Returns:
        Two panels.
    """
    figure, axes = new_figure(1, 2, width=4.8, height=3.5)
    left, right = axes[0]
    order = np.argsort(-np.abs(eigenvalues))
    values = eigenvalues[order]
    rank = np.arange(1, len(values) + 1)
    floor = np.abs(values).max() * 1e-12
    for sign, colour, label in ((1, _BLUE, "positive"), (-1, _RED, "negative")):
        chosen = np.abs(values[values * sign > floor])
        left.loglog(rank[: len(chosen)], chosen, ".", color=colour, markersize=3, label=f"{label}: {len(chosen):,}")
    left.axhline(mu, color="0.3", linestyle="--", linewidth=1, label=f"µ = {mu:.2g}")
    left.set_xlabel("rank by magnitude, each sign by itself")
    left.set_ylabel("|eigenvalue|")
    left.legend(fontsize=8.5)
    share = np.abs(values) / (np.abs(values) + mu)
    right.plot(rank / len(values), np.cumsum(share) / share.sum(), color="black")
    above = float(share[np.abs(values) > mu].sum() / share.sum())
    count = int((np.abs(values) > mu).sum())
    right.axvline(
        count / len(values), color="0.3", linestyle="--", linewidth=1, label=f"{count:,} above µ: {above:.0%}"
    )
    right.set_xlabel("share of the eigenvalues, largest first")
    right.set_ylabel("share of d(µ)")
    percent_axis(right)
    percent_axis(right, "y")
    right.legend(loc="lower right", fontsize=8.5)
    return figure


def plot_rules(table: pd.DataFrame, exact: float) -> Figure:
    """Draw what each rule says after each number of products, for one probe.

    Args:
        table: Columns ``steps`` and the names in ``RULES``: effective dimension as a share of D.
        exact: The share that the probe itself would give with all eigenvalues and eigenvectors.

    Returns:
        Two panels: the rules of H that swing, the rules of the square that enclose.
    """
    figure, axes = new_figure(1, 2, width=4.8, height=3.5)
    for axis, names in zip(axes[0], (("gauss", "radau", "tail"), ("high", "low", "tail")), strict=True):
        axis.axhline(exact, color=_GREEN, linewidth=1.5, label="truth for this probe")
        for name in names:
            label, colour, line = RULES[name]
            axis.plot(table.steps, table[name], color=colour, linestyle=line, linewidth=1.3, label=label)
        axis.set_xlabel("Hessian products")
        axis.set_ylabel("d(µ) / D")
        percent_axis(axis, "y")
        axis.legend(fontsize=8.5)
    shown = table[table.steps >= table.steps.max() // 8]
    axes[0, 0].set_ylim(min(shown.gauss.min(), shown.radau.min()) * 0.9, max(shown.gauss.max(), exact) * 1.25)
    return figure


def plot_histograms(table: pd.DataFrame) -> Figure:
    """Draw the effective dimension that smeared histograms give against the truth.

    Args:
        table: Columns ``mu``, ``exact``, ``low``, ``high`` (of the quadrature) and one further column per histogram.

    Returns:
        The figure.
    """
    figure, axes = new_figure(width=6.2, height=3.8)
    axis = axes[0, 0]
    axis.fill_between(
        table.mu, table.low, table.high, color=_BLUE, alpha=0.25, linewidth=0, label="quadrature: interval"
    )
    axis.loglog(table.mu, table.exact, color=_GREEN, linewidth=2, label="all eigenvalues")
    names = [name for name in table if name not in ("mu", "exact", "low", "high")]
    for name, line in zip(names, ("-", "--", "-.", ":"), strict=False):
        axis.loglog(table.mu, table[name], color=_RED, linestyle=line, linewidth=1.3, label=name)
    axis.set_xlabel("µ")
    axis.set_ylabel("d(µ) / D")
    axis.legend(fontsize=8.5)
    return figure


def plot_widths(table: pd.DataFrame) -> Figure:
    """Draw how the interval of the limit shrinks with steps, for several numbers of probes.

    Args:
        table: Columns ``steps``, ``probes``, ``width`` (certified), ``tail`` (of the rules behind the tail average) and
            ``error`` (of the value itself, against the dense truth), as fractions.

    Returns:
        The figure.
    """
    figure, axes = new_figure(width=8.2, height=3.8)
    axis = axes[0, 0]
    for probes, line in zip(sorted({int(p) for p in table.probes}), ("-", "--", ":"), strict=False):
        part = table[table.probes == probes]
        for column, colour, label in (
            ("width", _BLUE, "certified interval"),
            ("tail", _ORANGE, "spread of the rules of H"),
            ("error", "black", "true error of the value"),
        ):
            text = f"{label}, {probes} probe{'s' if probes > 1 else ''}"
            axis.plot(part.steps, part[column], color=colour, linestyle=line, marker=".", linewidth=1.3, label=text)
    axis.axhline(0.01, color="0.3", linewidth=1, linestyle=(0, (1, 1)))
    axis.annotate(
        "one point: resolved below", (0.02, 0.0092), ("axes fraction", "data"), va="top", fontsize=8.5, color="0.3"
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sorted(table.steps.unique()), [str(s) for s in sorted(table.steps.unique())])
    axis.set_xlabel("Hessian products per probe")
    axis.set_ylabel("width, as a fraction of the weights")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def plot_resolution(steps: pd.DataFrame, sizes: pd.DataFrame) -> Figure:
    """Draw the predicted limit of a recorded network against products, and against the data behind its Hessian.

    Args:
        steps: Columns ``examples``, ``steps``, ``sparsity``, ``low``, ``high``.
        sizes: The same columns at the last step of each data size, with the measured limits ``measured`` and
            ``fine_tuned`` of the same training settings.

    Returns:
        Two panels.
    """
    figure, axes = new_figure(1, 2, width=4.8, height=3.6)
    left, right = axes[0]
    colours = dict(
        zip(sorted(steps.examples.unique()), sns.color_palette("viridis", steps.examples.nunique()), strict=True)
    )
    for examples, part in steps.groupby("examples"):
        left.fill_between(part.steps, part.low, part.high, color=colours[examples], alpha=0.15, linewidth=0)
        left.plot(part.steps, part.sparsity, color=colours[examples], label=f"N = {examples:,}")
    left.set_xlabel("Hessian products")
    left.legend(fontsize=8.5)
    spread = [sizes.sparsity - sizes.low, sizes.high - sizes.sparsity]
    right.errorbar(sizes.examples, sizes.sparsity, spread, fmt="o", color=_BLUE, capsize=3, label="predicted: formula")
    for column, colour, label in (
        ("measured", _RED, "measured: one-shot"),
        ("fine_tuned", _PURPLE, "measured: fine-tuned"),
    ):
        right.axhline(float(sizes[column].iloc[0]), color=colour, linestyle="--", linewidth=1.2, label=label)
    right.set_xscale("log")
    right.set_xlabel("training images N behind the Hessian")
    right.legend(fontsize=8.5, loc="lower right")
    for axis in (left, right):
        axis.set_ylabel("predicted limit (fraction removed)")
        percent_axis(axis, "y")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    return figure


def plot_row_norms(panels: pd.DataFrame, checks: pd.DataFrame | None = None) -> Figure:
    """Draw figure F5: the norms of the rows of the Hessian, largest first, one panel per network.

    Args:
        panels: Columns ``title``, ``seed``, ``share`` (rank as a share of the rows), ``norm``, ``low``, ``high`` and
            ``zero`` (share of the rows that are exactly zero).
        checks: Columns ``title``, ``seed``, ``estimate``, ``low``, ``high``, ``exact`` of sampled rows, if any.

    Returns:
        One panel per network, with the exact norms of the sampled rows at the ranks of their estimates, and one panel that
        compares the sampled rows one by one.
    """
    titles = list(dict.fromkeys(panels.title))
    figure, axes = panel_grid(len(titles) + (checks is not None), 2, width=4.6, height=3.4)
    for axis, title in zip(axes, titles, strict=False):
        part = panels[panels.title == title]
        for number, (seed, line) in enumerate(part.groupby("seed")):
            axis.fill_between(line.share, line.low, line.high, color=_BLUE, alpha=0.25, linewidth=0)
            names = ("estimated, with error bars", "sampled rows, exact") if number == 0 else (None, None)
            axis.plot(line.share, line.norm.where(line.norm > 0), color=_BLUE, linewidth=1.5, label=names[0])
            if checks is not None:
                rows = checks[(checks.title == title) & (checks.seed == seed) & (checks.exact > 0)]
                ranks = np.interp(-rows.estimate, -line.norm, line.share)
                axis.plot(ranks, rows.exact, ".", color="black", markersize=4, label=names[1])
        zero = float(part.zero.mean())
        axis.axvspan(1 - zero, 1, color="0.6", alpha=0.4, linewidth=0, label=f"exactly zero: {zero:.2%}")
        axis.set_yscale("log")
        top = part.high.max()
        axis.set_ylim(max(part.low[part.low > 0].min(), top * SMALLEST), top * 2)
        axis.set_xlim(0, 1)
        axis.set_xlabel("share of the rows, largest first")
        axis.set_ylabel("L1 norm of the row")
        axis.set_title(title, loc="left")
        percent_axis(axis)
        axis.legend(fontsize=8, loc="lower left")
    if checks is not None:
        _compare_rows(axes[-1], checks)
    return figure


def _compare_rows(axis: Axes, checks: pd.DataFrame) -> None:
    """Draw estimated over exact norms of the sampled rows that are not zero."""
    there = checks[(checks.exact > checks.exact.max() * SMALLEST) & (checks.estimate > 0)]
    titles = list(dict.fromkeys(there.title))
    for number, (title, colour) in enumerate(zip(titles, palette(len(titles)), strict=False)):
        part, marker = there[there.title == title], "osD^vP*<>hX"[number % 11]
        low, middle, high = (part[name] / part.exact for name in ("low", "estimate", "high"))
        spread = [middle - low, high - middle]
        axis.errorbar(part.exact, middle, spread, fmt=marker, color=colour, label=title, markersize=3, elinewidth=0.5)
    axis.axhline(1, color="0.2", linewidth=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(0.2, 10)
    axis.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    axis.set_xlabel("exact norm of a sampled row")
    axis.set_ylabel("estimated / exact")
    axis.set_title("The sampled rows, one by one", loc="left")
    axis.legend(fontsize=8 if len(titles) < 6 else 5, loc="upper left", ncols=1 if len(titles) < 6 else 2)
