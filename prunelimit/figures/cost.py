"""What a prediction costs: measurements, the fitted model, and where it leads beyond them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunelimit.figures.style import new_figure

_TITLES = {
    "product": ("a product, per example", "multiply-adds per example", "CPU seconds"),
    "besides": ("a step besides its product, per weight", "Lanczos steps", "CPU seconds"),
    "memory": ("memory above the network", "weights", "GiB at the peak"),
}
_HELD_OUT = ("s", "D", "^", "v")


def plot_cost(points: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw measurements and model on logarithmic axes, one panel each for products, other work and memory.

    Args:
        points: Columns ``panel``, ``group``, ``x``, ``y`` and ``role``: fitted, left out or held out.
        curves: Columns ``panel``, ``group``, ``x``, ``y``, ``low``, ``high``, ``wide_low``, ``wide_high`` and ``extrapolated``.

    Returns:
        The figure. Curves are dashed, and their bands lighter, where they are extrapolated.
    """
    panels = [panel for panel in _TITLES if panel in set(points.panel)]
    figure, axes = new_figure(1, len(panels), width=4.0, height=3.9)
    for axis, panel in zip(axes[0], panels, strict=True):
        title, across, up = _TITLES[panel]
        _draw(axis, points[points.panel == panel], curves[curves.panel == panel])
        axis.set(title=title, xlabel=across, ylabel=up, xscale="log", yscale="log")
        if panel == "besides":
            counts = sorted(set(points[points.panel == panel].x))
            axis.set_xticks(counts, [f"{count:g}" for count in counts])
            axis.minorticks_off()
        axis.legend(fontsize=7.5)
    return figure


def _draw(axis: Axes, points: pd.DataFrame, curves: pd.DataFrame) -> None:
    """Draw one panel."""
    colours = dict(zip(dict.fromkeys(curves.group), sns.color_palette("colorblind"), strict=False))
    for group in colours:
        curve, colour = curves[curves.group == group], colours[group]
        inside, beyond = curve[~curve.extrapolated], curve[curve.extrapolated]
        axis.plot(inside.x, inside.y, color=colour, label=str(group))
        if len(beyond):
            joined = pd.concat([inside.tail(1), beyond])
            label = "extrapolated" if group == curves.group.iloc[-1] else None
            axis.plot(joined.x, joined.y, color=colour, linestyle="--", label=label)
        for part, strength in ((inside, 0.25), (beyond, 0.12)):
            axis.fill_between(part.x, part.low, part.high, color=colour, alpha=strength, linewidth=0)
        if (curve.wide_high > curve.high).any():
            axis.plot(
                curve.x, curve.wide_low, color=colour, linewidth=0.8, linestyle=":", label="networks of any shape"
            )
            axis.plot(curve.x, curve.wide_high, color=colour, linewidth=0.8, linestyle=":")
    markers = iter(_HELD_OUT)
    for (group, role), part in points.groupby(["group", "role"], sort=False):
        look: dict[str, Any] = {"color": colours.get(group, next(iter(colours.values()), "C0")), "marker": "o"}
        if role == "held out":
            look = {"color": "0.15", "marker": next(markers, "x"), "label": f"{group}, held out"}
        if role == "left out":
            look |= {"markerfacecolor": "none", "label": "left out: in the cache"}
        axis.plot(part.x, part.y, linestyle="none", markersize=5, **look)


def describe_cost(curves: pd.DataFrame) -> str:
    """Say in words where the curves end.

    Args:
        curves: As for :func:`plot_cost`.

    Returns:
        The text equivalent of the figure.
    """
    units = {"product": "s per example", "besides": "s per weight", "memory": "GiB"}
    parts = []
    for (panel, group), curve in curves.groupby(["panel", "group"], sort=False):
        last = curve.iloc[-1]
        how = "extrapolated to" if last.extrapolated else "at"
        parts.append(f"{_TITLES[str(panel)][0]} ({group}), {how} {last.x:.3g}: {last.y:.2g} {units[str(panel)]}")
    return "Measurements and model on logarithmic axes. " + "; ".join(parts) + "."
