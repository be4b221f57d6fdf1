"""Figure of the paths between children: the training error along the straight line and along a trained curve."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from prunelimit.figures.style import legend_below, new_figure, percent_axis

_PALETTE = sns.color_palette("colorblind")

#: Colour, line and words of each curve.
_CURVES = {
    "straight": (_PALETTE[3], "-", "straight line"),
    "bent": (_PALETTE[0], "--", "Bezier curve, its middle trained"),
}


def plot_paths(along: pd.DataFrame, words: str = "training epochs") -> Figure:
    """Draw the training error between the children of some cells.

    Args:
        along: ``along`` of :func:`~prunelimit.experiments.path_frames.children_paths`.
        words: What ``value`` is.

    Returns:
        A row of panels per value, in the order of the frame, and a column per density, all on one scale.
    """
    values, densities = along.value.unique(), along.density.unique()
    figure, axes = new_figure(len(values), len(densities), width=3.2, height=2.3)
    top = along.error.max() * 1.08
    for row, value in zip(axes, values, strict=True):
        for axis, density in zip(row, densities, strict=True):
            for name, (colour, line, label) in _CURVES.items():
                part = along[(along.value == value) & (along.density == density) & (along.curve == name)]
                axis.plot(part.t, part.error, color=colour, linestyle=line, linewidth=2, label=label)
            axis.set_title(f"{words}: {value:g}, density {100 * density:g} %", loc="left", fontsize=9)
            axis.set_ylim(0, top)
            axis.set_xticks([0, 0.5, 1], ["first child", "t = 1/2", "second"])
            percent_axis(axis, "y")
        row[0].set_ylabel("training error")
    legend_below(figure, axes[0, 0])
    return figure


def describe_paths(along: pd.DataFrame) -> str:
    """Say in words what :func:`plot_paths` draws: the ends and the worst place of each curve.

    Args:
        along: As for :func:`plot_paths`.

    Returns:
        A sentence per curve.
    """
    said = []
    for _, part in along.groupby(["value", "density", "curve"], sort=False):
        value, density, curve = part.iloc[0][["value", "density", "curve"]]
        worst = part.iloc[int(part.error.argmax())]
        said.append(
            f"Value {value:g}, density {100 * density:g} %, {_CURVES[curve][2]}: {part.error.iloc[0]:.1%} at the first "
            f"child, {part.error.iloc[-1]:.1%} at the second, at most {worst.error:.1%} (t = {worst.t:.2f})."
        )
    return " ".join(said)


def describe_bending(cells: pd.DataFrame, words: str = "training epochs") -> str:
    """Say in words how much of each barrier the trained curve takes away, and where the children are sharper.

    Args:
        cells: ``cells`` of :func:`~prunelimit.experiments.path_frames.children_paths`.
        words: What ``value`` is.

    Returns:
        A paragraph on the barriers, and one per density on the traces of the first and the last value.
    """
    highest = cells.sort_values("barrier").iloc[-1]
    lower = int((cells.barrier_bent < cells.barrier).sum())
    said = [
        f"The highest barrier on a straight line is {highest.barrier:.1%} ({words}: {highest.value:g}, density "
        f"{100 * highest.density:g} %); on the trained curve {highest.barrier_bent:.1%} is left of it. The curve's barrier is "
        f"the lower one in {lower} of {len(cells)} cells."
    ]
    for _, column in cells.groupby("density"):
        first, last = column.iloc[0], column.iloc[-1]
        gap, noise = last.trace - first.trace, (first.trace_error**2 + last.trace_error**2) ** 0.5
        how = "larger" if gap > 0 else "smaller"
        clear = "" if abs(gap) > 2 * noise else ", which is within two standard errors"
        said.append(
            f"Density {100 * first.density:g} %: the trace is {how} at {last.value:g} than at {first.value:g} "
            f"({last.trace:.1f} against {first.trace:.1f}){clear}; the largest eigenvalue is {last.top:.2f} against {first.top:.2f}."
        )
    return "\n\n".join(said)
