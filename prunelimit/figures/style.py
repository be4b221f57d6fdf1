"""The style that every figure shares, and how a figure gets onto a page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

#: One colour per meaning, the same in every figure; the palette is safe for the colour-blind.
COLOURS = dict(
    zip(
        ("formula", "cut", "directional", "measured", "fine_tuned", "accuracy", "loss"),
        (sns.color_palette("colorblind")[i] for i in (0, 9, 2, 3, 4, 1, 7)),
        strict=True,
    )
)
LINES = {"formula": "-", "cut": (0, (5, 1)), "directional": "--", "measured": "-.", "fine_tuned": ":"}
LABELS = {
    "formula": "predicted: formula",
    "cut": "predicted: formula for the cut",
    "directional": "predicted: directional",
    "measured": "measured: one-shot, loss within ε",
    "fine_tuned": "measured: fine-tuned",
}

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "prunelimit",  # equal figures become equal files
}


def new_figure(rows: int = 1, columns: int = 1, width: float = 4.4, height: float = 3.3) -> tuple[Figure, np.ndarray]:
    """Start a figure in the book's style.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.

    Returns:
        The figure and its axes, always as a two-dimensional array.
    """
    with mpl.rc_context({**sns.axes_style("ticks"), **STYLE}):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def panel_grid(count: int, columns: int, width: float = 4.4, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """Start a figure of so many panels in the book's style; those that are left over are hidden.

    Args:
        count: Number of panels.
        columns: Panels in a row, at most.
        width: Width of a panel in inches.
        height: Height of a panel in inches.

    Returns:
        The figure and the axes of the panels, row by row.
    """
    columns = min(count, columns)
    figure, axes = new_figure(-(-count // columns), columns, width=width, height=height)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def palette(count: int) -> list[tuple[float, float, float]]:
    """Return at least so many colours: those that are safe for the colour-blind as long as they suffice."""
    return list(sns.color_palette("colorblind") if count <= 8 else sns.color_palette("husl", count))


def legend_place(figure: Figure) -> Literal["outside upper center", "outside lower center"]:
    """Say where the legend of all panels goes: under them, and above them if they fill more than a screen."""
    return "outside upper center" if figure.get_figheight() > 12 else "outside lower center"


def legend_below(figure: Figure, axes: Axes | Iterable[Axes], columns: int = 2, by_name: bool = False) -> None:
    """Put one legend under all panels, or above them if they fill more than a screen.

    Args:
        figure: The figure.
        axes: The panel or panels whose labels go into it, each label once.
        columns: Columns of the legend.
        by_name: Whether to sort the labels.
    """
    panels = [axes] if isinstance(axes, Axes) else axes
    known = {label: handle for axis in panels for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if known:
        labels = sorted(known) if by_name else list(known)
        handles = [known[label] for label in labels]
        figure.legend(handles, labels, loc=legend_place(figure), ncols=columns, fontsize=9)


def say_missing(axis: Axes, what: str) -> None:
    """Write into an empty panel what there is no record of."""
    axis.text(0.5, 0.5, f"no record of {what}", transform=axis.transAxes, ha="center", va="center", color="0.4")
    axis.set_xticks([])
    axis.set_yticks([])


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook together with its text equivalent.

    Args:
        figure: The figure.
        alt: What the figure shows, for readers who cannot see it; it becomes the image's alternative text in the book.
    """
    from io import BytesIO

    from IPython.display import Image, display

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"])
    width = int(figure.get_figwidth() * 100)
    display(Image(buffer.getvalue(), width=width, alt=alt), metadata={"alt": alt})


def as_svg(figure: Figure, title: str) -> bytes:
    """Render a figure as SVG: the same bytes for the same figure.

    Args:
        figure: The figure.
        title: Its text equivalent, kept in the file.

    Returns:
        The file's content.
    """
    from io import BytesIO

    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    return buffer.getvalue()


def percent_axis(axis: Axes, which: str = "x") -> None:
    """Write an axis of fractions in per cent."""
    getattr(axis, f"{which}axis").set_major_formatter(PercentFormatter(1, decimals=0))
