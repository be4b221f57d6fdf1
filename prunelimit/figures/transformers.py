"""Figure of transformers: loss against sparsity for several criteria, with the predicted limits."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from prunelimit.figures.style import COLOURS, LINES, legend_below, palette, panel_grid, percent_axis

_MARKS = "osD^vPX<>h"


def plot_transformers(sweeps: pd.DataFrame, networks: pd.DataFrame, limits: pd.DataFrame, epsilon: float) -> Figure:
    """Draw the rise of the training loss against sparsity, one panel per network, one line per criterion.

    Args:
        sweeps: Output of ``transformer_sweeps``.
        networks: Output of ``network_frame``.
        limits: Output of ``criterion_frame``.
        epsilon: Tolerated rise.

    Returns:
        The figure. The band is the interval of the formula's limit; the dashed line is the limit that the second-order expansion
        along the magnitude path predicts.
    """
    titles, names = list(networks.title), list(dict.fromkeys(sweeps.criterion))
    taken = (COLOURS["formula"], COLOURS["directional"])
    colours = dict(zip(names, (c for c in palette(len(names)) if c not in taken), strict=False))
    figure, axes = panel_grid(len(titles), 3, width=3.9, height=3.4)
    for axis, title in zip(axes, titles, strict=True):
        here, row = sweeps[sweeps.title == title], networks[networks.title == title].iloc[0]
        for name in names:
            mine = here[here.criterion == name]
            style = {"color": colours[name], "marker": _MARKS[names.index(name) % len(_MARKS)], "markersize": 4}
            axis.plot(mine.sparsity, mine.rise, linewidth=1.2, label=name, **style)
        axis.axhline(epsilon, color="0.4", linestyle=(0, (1, 1)), linewidth=1, label="tolerated rise ε")
        axis.axvspan(row.formula_low, row.formula_high, color=COLOURS["formula"], alpha=0.12, linewidth=0)
        axis.axvline(row.formula, color=COLOURS["formula"], linewidth=1.5, label="predicted: formula, and its interval")
        expanded = limits[(limits.title == title) & (limits.criterion == names[0])].directional
        if expanded.notna().any():
            style = {"color": COLOURS["directional"], "linestyle": LINES["directional"], "linewidth": 1.5}
            axis.axvline(float(expanded.iloc[0]), label=f"predicted: directional, {names[0]}", **style)
        axis.set_yscale("symlog", linthresh=epsilon / 5)
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=min(-epsilon / 10, 1.2 * here.rise.min()))
        percent_axis(axis)
        axis.set_xlabel("sparsity (fraction removed)")
        axis.set_ylabel("rise of the training loss (nats)")
        axis.set_title(title, loc="left")
    legend_below(figure, axes[0], columns=3)
    return figure


def describe_transformers(sweeps: pd.DataFrame, networks: pd.DataFrame, limits: pd.DataFrame) -> str:
    """Say what :func:`plot_transformers` shows.

    Args:
        sweeps: As there.
        networks: As there.
        limits: As there.

    Returns:
        The text equivalent.
    """
    parts = []
    for row in networks.itertuples():
        here = limits[limits.title == row.title]
        losses = sweeps[(sweeps.title == row.title) & (sweeps.sparsity == 0.5)]
        parts.append(
            f"{row.title}: formula {row.formula:.1%} ({row.formula_low:.1%} to {row.formula_high:.1%}); measured "
            + ", ".join(f"{r.criterion} {r.measured:.1%}" for r in here.itertuples())
            + "; rise of the loss at 50%: "
            + ", ".join(f"{r.criterion} {r.rise:.2g}" for r in losses.itertuples())
        )
    return "Rise of the training loss against sparsity, by criterion. " + ". ".join(parts) + "."
