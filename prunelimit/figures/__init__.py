"""Data frames in, matplotlib figures out; one style, and a text equivalent for every picture."""

from prunelimit.figures.curvature import (
    plot_eigenvalues,
    plot_histograms,
    plot_resolution,
    plot_row_norms,
    plot_rules,
    plot_widths,
)
from prunelimit.figures.limits import (
    describe_limits,
    plot_answer,
    plot_cover,
    plot_limit,
    plot_radius,
    plot_sweeps,
)
from prunelimit.figures.style import STYLE, as_svg, new_figure, percent_axis, show

__all__ = [
    "STYLE",
    "as_svg",
    "describe_limits",
    "new_figure",
    "percent_axis",
    "plot_answer",
    "plot_cover",
    "plot_eigenvalues",
    "plot_histograms",
    "plot_limit",
    "plot_radius",
    "plot_resolution",
    "plot_row_norms",
    "plot_rules",
    "plot_sweeps",
    "plot_widths",
    "show",
]
