"""Pictures of the recorded comparisons."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from prunelimit.figures.style import legend_below, new_figure

_COLOURS = dict(
    zip(
        ("prunelimit", "prunelimit-joint", "pyhessian", "pyhessian-loader", "curvlinops", "released"),
        (sns.color_palette("colorblind")[i] for i in (0, 4, 3, 1, 2, 7)),
        strict=True,
    )
)
_LINES = {
    "prunelimit": "-",
    "prunelimit-joint": "-",
    "pyhessian": "--",
    "pyhessian-loader": (0, (1, 1)),
    "curvlinops": "-.",
    "released": ":",
}


def plot_errors(table: pd.DataFrame, scales: int = 4) -> Figure:
    """Draw the error of d(mu) against the CPU seconds spent, one column per network and one row per mu.

    Args:
        table: Columns ``network``, ``dimension``, ``method``, ``CPU seconds``, ``scale``, ``error`` and ``noise``.
        scales: Rows, from the largest to the smallest mu.

    Returns:
        The figure.
    """
    networks = list(dict.fromkeys(table.network))
    known = sorted(table.scale.unique(), reverse=True)
    chosen = [known[round(i * (len(known) - 1) / max(scales - 1, 1))] for i in range(min(scales, len(known)))]
    figure, axes = new_figure(len(chosen), len(networks), width=3.9, height=2.5)
    for row, scale in zip(axes, chosen, strict=True):
        for axis, network in zip(row, networks, strict=True):
            part = table[(table.network == network) & (table.scale == scale)]
            for method, curve in part.groupby("method", sort=False):
                axis.loglog(
                    curve["CPU seconds"],
                    curve.error,
                    color=_COLOURS[str(method)],
                    linestyle=_LINES[str(method)],
                    marker=".",
                    linewidth=1.3,
                    label=method,
                )
            axis.axhline(part.noise.iloc[0], color="0.4", linewidth=1, linestyle=(0, (1, 1)))
            axis.set_title(f"{network}, D = {part.dimension.iloc[0]:,}: µ = {scale:.1g} × largest", fontsize=9)
        row[0].set_ylabel("relative error of d(µ)")
    for axis in axes[-1]:
        axis.set_xlabel("CPU seconds")
    legend_below(figure, axes[0], 3)
    return figure


def plot_growth(table: pd.DataFrame) -> Figure:
    """Draw how our CPU seconds grow with images, weights and steps.

    Args:
        table: Columns ``sweep``, ``timed``, ``size``, ``CPU seconds`` and ``exponent``.

    Returns:
        One panel per sweep, on logarithmic axes, with the fitted exponent in the legend.
    """
    sweeps = list(dict.fromkeys(table.sweep))
    figure, axes = new_figure(1, len(sweeps), width=3.5, height=3.1)
    for axis, sweep in zip(axes[0], sweeps, strict=True):
        part = table[table.sweep == sweep]
        for (timed, curve), line in zip(part.groupby("timed", sort=False), ("-", "--"), strict=False):
            label = f"{timed}: exponent {curve.exponent.iloc[0]:.2f}"
            colour = _COLOURS["prunelimit"]
            axis.loglog(curve["size"], curve["CPU seconds"], color=colour, linestyle=line, marker="o", label=label)
        axis.set_xlabel(sweep)
        axis.set_ylabel("CPU seconds")
        _plain_ticks(axis)
        axis.legend(fontsize=8, loc="lower right")
        low, high = axis.get_ylim()
        axis.set_ylim(low / (high / low) ** 0.25, high)  # room for the legend under the end of the curve
    return figure


def _plain_ticks(axis: Axes) -> None:
    """Write the ticks of logarithmic axes as numbers that do not run into each other; those between stay unnamed."""
    for side, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        side.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plot_many(table: pd.DataFrame) -> Figure:
    """Draw how many times faster training at once is: against the number of networks, and against their size.

    Args:
        table: Columns ``network``, ``parameters``, ``at once`` and ``times faster``; networks with one row each are those
            whose size varies.

    Returns:
        Two panels; below the line at one, one at a time is faster.
    """
    figure, axes = new_figure(1, 2, width=4.4, height=3.2)
    many, size = axes[0]
    single = table.groupby("network").network.transform("size") == 1
    for (name, part), colour in zip(
        table[~single].groupby("network", sort=False), sns.color_palette("colorblind"), strict=False
    ):
        many.plot(part["at once"], part["times faster"], color=colour, marker="o", label=name)
    many.set_xscale("log", base=2)
    many.set_xticks(counts := sorted(table[~single]["at once"].unique()), [str(count) for count in counts])
    many.set_xlabel("networks trained at once")
    many.set_ylabel("times faster than one at a time")
    many.legend(fontsize=8)
    part = table[single]
    size.semilogx(part.parameters, part["times faster"], color=_COLOURS["prunelimit"], marker="o")
    size.set_xlabel("parameters of each network")
    size.set_title(", ".join(f"{count} MLPs at once" for count in part["at once"].unique()), fontsize=9)
    for axis in (many, size):
        axis.axhline(1, color="0.4", linewidth=1, linestyle=(0, (1, 1)))
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    return figure
