"""Figures of convex geometry: the cone over an ellipsoid, its statistical dimension, and subspaces that meet it or miss."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunelimit.figures.style import COLOURS, new_figure, percent_axis
from prunelimit.geometry import EllipsoidCone

_PALETTE = sns.color_palette("colorblind")

#: Direction of the offset: its colour and mark.
_DIRECTIONS = {
    "random": (_PALETTE[1], "o"),
    "flattest": (_PALETTE[3], "s"),
    "stiffest": (_PALETTE[2], "^"),
}


def draw_sight(axis: Axes, cone: EllipsoidCone, lines: pd.DataFrame) -> None:
    """Draw an ellipse, the point that it is seen from, the cone of sight, and lines through the point.

    Args:
        axis: Where to draw.
        cone: The cone over an ellipse; the point is the origin.
        lines: Output of ``lines_frame``.
    """
    turn = np.linspace(0, 2 * math.pi, 400)
    center, axes = cone.center_offset, cone.half_axes
    reach = 1.25 * float(np.linalg.norm(center)) + float(axes.max())
    for angle, meets in zip(lines.angle.to_numpy(), lines.meets.to_numpy(), strict=True):
        end = 2 * reach * np.array([math.cos(angle), math.sin(angle)])
        colour, line = (_PALETTE[2], "-") if meets else ("0.6", ":")
        axis.plot([-end[0], end[0]], [-end[1], end[1]], color=colour, linestyle=line, linewidth=1.1, zorder=1)
    edges = 4 * cone.edges() * reach
    axis.fill(*np.vstack([[0, 0], edges]).T, color=COLOURS["formula"], alpha=0.14, linewidth=0)
    for edge in edges:
        axis.plot([0, edge[0]], [0, edge[1]], color=COLOURS["formula"], linewidth=1.6)
    axis.fill(center[0] + axes[0] * np.cos(turn), center[1] + axes[1] * np.sin(turn), color="white", zorder=2)
    axis.plot(center[0] + axes[0] * np.cos(turn), center[1] + axes[1] * np.sin(turn), color="black", zorder=3)
    # The central section: all of the ellipse that lies across the line of sight, the part that the formula sees.
    across = np.array([-center[1], center[0]]) / np.linalg.norm(center)
    half = across / np.linalg.norm(across / axes)
    section = np.stack([center - half, center + half])
    axis.plot(*section.T, color=COLOURS["accuracy"], linewidth=2.2, zorder=4)
    axis.plot(
        *np.stack([section[0], [0, 0], section[1]]).T,
        color=COLOURS["accuracy"],
        linewidth=1.1,
        linestyle="--",
        zorder=4,
    )
    axis.plot(*center, "o", color="black", zorder=5)
    axis.plot(0, 0, "X", color=COLOURS["measured"], markersize=9, zorder=5)
    axis.annotate("w*", (center[0], center[1]), xytext=(5, 5), textcoords="offset points", zorder=6)
    axis.annotate("p = w(s)", (0, 0), xytext=(-6, -15), textcoords="offset points", ha="right")
    axis.set_xlim(-0.55 * center[0], center[0] + 1.2 * axes[0])
    axis.set_ylim(-0.75 * center[1], center[1] + 1.6 * axes[1])
    shown = (
        ("cone of sight", COLOURS["formula"], "-"),
        ("central section", COLOURS["accuracy"], "-"),
        ("line that meets", _PALETTE[2], "-"),
        ("line that misses", "0.6", ":"),
    )
    for label, colour, line in shown:
        axis.plot([], [], color=colour, linestyle=line, label=label)
    axis.legend(loc="upper left", fontsize=8)
    axis.set_aspect("equal")
    axis.set_axis_off()


def _distance_axis(axis: Axes) -> None:
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()


def _draw_distances(axis: Axes, dimensions: pd.DataFrame, total: int) -> None:
    shown = (
        ("wide", "random", _PALETTE[1], "o"),
        ("wide", "flattest", _PALETTE[3], "s"),
        ("ball", "random", _PALETTE[4], "D"),
    )
    for name, direction, colour, mark in shown:
        part = dimensions[(dimensions.ellipsoid == name) & (dimensions.direction == direction)].sort_values("distance")
        title = name if name == "ball" else f"{name}, {direction} direction"
        axis.errorbar(
            part.distance,
            part.measured / total,
            yerr=2 * part.error / total,
            fmt=mark,
            markersize=4.5,
            color=colour,
            label=title,
        )
        exact = part.exact if name == "ball" else part.confocal
        axis.plot(part.distance, exact / total, color=colour, linewidth=1.2)
        if direction == "random":
            axis.plot(part.distance, part.formula / total, color=colour, linestyle="--", linewidth=1.2)
    axis.plot([], [], color="0.3", linestyle="--", label="formula, with R")
    axis.plot([], [], color="0.3", label="confocal distance (ball: exact)")
    _distance_axis(axis)
    axis.set_xlabel("distance R (longest half-axis of the wide one: 1)")
    axis.set_ylabel("statistical dimension / D")
    axis.legend(fontsize=8)


def _draw_concentration(axis: Axes, concentration: pd.DataFrame) -> None:
    totals = list(dict.fromkeys(concentration.total))
    bins = np.linspace(0, max(1.0, float(concentration.share.quantile(0.999))), 61).tolist()
    for total, colour in zip(totals, sns.color_palette("crest", len(totals)), strict=True):
        share = concentration.share[concentration.total == total]
        axis.hist(share, bins, density=True, histtype="stepfilled", color=colour, alpha=0.35, linewidth=0)
        axis.hist(share, bins, density=True, histtype="step", color=colour, label=f"D = {total:,}")
    axis.set_xlabel("‖Π ξ‖² / D")
    axis.set_ylabel("density")
    axis.legend(fontsize=9)


def _draw_differences(axis: Axes, dimensions: pd.DataFrame, total: int) -> None:
    wide = dimensions[dimensions.ellipsoid == "wide"]
    for direction, (colour, mark) in _DIRECTIONS.items():
        part = wide[wide.direction == direction].sort_values("distance")
        axis.errorbar(
            part.distance,
            part.difference / total,
            yerr=2 * part.error / total,
            fmt=f"{mark}--",
            markersize=4.5,
            color=colour,
            label=f"formula, {direction}",
        )
        off = (part.confocal - part.measured) / total
        axis.plot(
            part.distance,
            off,
            mark,
            color=colour,
            markersize=4.5,
            markerfacecolor="none",
            label=f"confocal, {direction}",
        )
    axis.axhline(0, color="0.4", linewidth=1)
    _distance_axis(axis)
    percent_axis(axis, "y")
    axis.set_xlabel("distance R")
    axis.set_ylabel("formula − measured, share of D")
    axis.legend(fontsize=8)


def plot_cones(
    cone: EllipsoidCone, lines: pd.DataFrame, dimensions: pd.DataFrame, concentration: pd.DataFrame, total: int
) -> Figure:
    """Draw figure F1: the cone of sight, its statistical dimension, its concentration, and the error of the formula.

    Args:
        cone: The cone over an ellipse.
        lines: Output of ``lines_frame`` for it.
        dimensions: Output of ``dimension_frame`` with the ball and the wide ellipsoid.
        concentration: Output of ``concentration_frame``.
        total: Dimension D of ``dimensions``.

    Returns:
        Four panels.
    """
    figure, axes = new_figure(2, 2, width=5.0, height=3.7)
    draw_sight(axes[0, 0], cone, lines)
    _draw_distances(axes[0, 1], dimensions, total)
    _draw_concentration(axes[1, 0], concentration)
    _draw_differences(axes[1, 1], dimensions, total)
    titles = (
        "a. the cone of sight, and lines through p",
        "b. its size against distance",
        "c. one projection is enough",
        "d. error of the formula",
    )
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title, loc="left")
    return figure


def plot_phase(phase: pd.DataFrame, windows: pd.DataFrame) -> Figure:
    """Draw how often a random subspace meets a cone, against its dimension.

    Args:
        phase: Output of ``phase_frame``.
        windows: Output of ``window_frame``.

    Returns:
        One panel per cone: marks with Wilson intervals, lines where the probability is known exactly, the place D - delta, and under the
        curves the kinematic formula's window for each D, cut off at 0 and 1.
    """
    names, totals = list(dict.fromkeys(phase.cone)), list(dict.fromkeys(phase.total))
    figure, axes = new_figure(2, -(-len(names) // 2), width=5.0, height=3.5)
    colours = sns.color_palette("crest", len(totals))
    for axis, name in zip(axes.flat, names, strict=False):
        for level, (total, colour, mark) in enumerate(zip(totals, colours, "osD^vP*X" * len(totals), strict=False)):
            part = phase[(phase.cone == name) & (phase.total == total)]
            x = part.dimension / total
            # A mark at every dimension would hide the bars: some thirty per curve, most of them where it rises.
            rising = part[(part.low > 1e-9) & (part.high < 1 - 1e-9) & (part.dimension % max(1, total // 50) == 0)]
            bars = [rising.probability - rising.low, rising.high - rising.probability]
            axis.errorbar(
                rising.dimension / total,
                rising.probability,
                yerr=np.maximum(bars, 0),
                fmt=mark,
                markersize=3,
                linewidth=0.8,
                color=colour,
                label=f"D = {total}",
            )
            known = part.exact.notna().all()
            axis.plot(
                x,
                part.exact if known else part.probability,
                color=colour,
                linewidth=1.3,
                linestyle="-" if known else ":",
            )
            row = windows[(windows.cone == name) & (windows.total == total)].iloc[0]
            span = [max(0, row.predicted - row.allowed) / total, min(total, row.predicted + row.allowed) / total]
            height = -0.08 - 0.055 * level
            axis.plot(span, [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
            axis.plot(row.predicted / total, height, "|", color="black", markersize=7)
        axis.axvline(row.predicted / total, color="0.4", linewidth=1, linestyle="--")
        axis.set_title(name, loc="left")
        axis.set_xlim(0, 1)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_xlabel("dimension of the subspace m / D")
        axis.set_ylabel("probability of meeting")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    axes[0, 0].legend(fontsize=8, loc="upper left")
    return figure


def plot_collapse(phase: pd.DataFrame, windows: pd.DataFrame) -> Figure:
    """Draw all curves over the gap in units of the root of D, and the widths of the transitions.

    Args:
        phase: Output of ``phase_frame``.
        windows: Output of ``window_frame``.

    Returns:
        Left: the curves of all cones and dimensions, and the kinematic formula's bounds, which depend on the scaled gap alone. Right: half
        the width of the transition against D, measured and allowed.
    """
    names = list(dict.fromkeys(phase.cone))
    figure, axes = new_figure(1, 2, width=5.2, height=3.8)
    left, right = axes[0]
    gap = np.linspace(-10, 10, 401)
    failure = np.minimum(4 * np.exp(-(gap**2) / 8), 1)
    left.plot(gap, np.where(gap > 0, 1 - failure, 0), color="0.35", linewidth=1.4, label="kinematic formula: bounds")
    left.plot(gap, np.where(gap < 0, failure, 1), color="0.35", linewidth=1.4)
    left.fill_between(
        gap, np.where(gap > 0, 1 - failure, 0), np.where(gap < 0, failure, 1), color="0.5", alpha=0.12, linewidth=0
    )
    for name, colour, mark in zip(names, _PALETTE[:4], "osD^", strict=False):
        part = phase[phase.cone == name]
        for total, group in part.groupby("total"):
            first = total == part.total.min()
            left.plot(
                group.scaled, group.probability, color=colour, linewidth=1, alpha=0.8, label=name if first else None
            )
        rows = windows[windows.cone == name]
        right.plot(rows.total, rows.half_width / rows.total, mark, color=colour, label=name)
    rows = windows.drop_duplicates("total")
    right.plot(
        rows.total, rows.allowed / rows.total, color="0.35", linewidth=1.4, label="allowed by the kinematic formula"
    )
    scale = float((windows.half_width / np.sqrt(windows.total)).mean())
    right.plot(
        rows.total, scale / np.sqrt(rows.total), color="0.35", linestyle=":", label="slope of one over the root of D"
    )
    left.set_xlim(-8, 8)
    left.set_xlabel("(m + δ − D) / √D")
    left.set_ylabel("probability of meeting")
    left.set_title("one curve for every D", loc="left")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xticks(rows.total, [f"{t}" for t in rows.total])
    right.minorticks_off()
    right.set_xlabel("dimension D")
    right.set_ylabel("half-width of the transition / D")
    right.set_title("how wide the transition is", loc="left")
    handles, labels = left.get_legend_handles_labels()
    slope = dict(zip(*right.get_legend_handles_labels()[::-1], strict=True))["slope of one over the root of D"]
    labels.append("slope of one over the root of D")
    figure.legend([*handles, slope], labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure
