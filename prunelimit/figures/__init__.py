"""Data frames in, matplotlib figures out; one style, and a text equivalent for every picture."""

from prunelimit.figures.benchmarks import plot_errors, plot_growth
from prunelimit.figures.curvature import (
    plot_eigenvalues,
    plot_histograms,
    plot_resolution,
    plot_row_norms,
    plot_rules,
    plot_widths,
)
from prunelimit.figures.geometry import draw_sight, plot_collapse, plot_cones, plot_phase
from prunelimit.figures.ladder import (
    describe_directions,
    describe_ladder,
    plot_directions,
    plot_expansions,
    plot_ladder,
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
from prunelimit.figures.theory import (
    plot_ball,
    plot_bounds,
    plot_orientations,
    plot_rescaling,
    plot_scaled_weights,
    plot_success,
    plot_traces,
)
from prunelimit.figures.theory_words import (
    describe_ball,
    describe_bounds,
    describe_orientations,
    describe_rescaling,
    describe_scaling,
    describe_success,
    describe_traces,
)

__all__ = [
    "STYLE",
    "as_svg",
    "describe_ball",
    "describe_bounds",
    "describe_directions",
    "describe_ladder",
    "describe_limits",
    "describe_orientations",
    "describe_rescaling",
    "describe_scaling",
    "describe_success",
    "describe_traces",
    "draw_sight",
    "new_figure",
    "percent_axis",
    "plot_answer",
    "plot_ball",
    "plot_bounds",
    "plot_collapse",
    "plot_cones",
    "plot_cover",
    "plot_directions",
    "plot_eigenvalues",
    "plot_errors",
    "plot_expansions",
    "plot_growth",
    "plot_histograms",
    "plot_ladder",
    "plot_limit",
    "plot_orientations",
    "plot_phase",
    "plot_radius",
    "plot_rescaling",
    "plot_resolution",
    "plot_row_norms",
    "plot_rules",
    "plot_scaled_weights",
    "plot_success",
    "plot_sweeps",
    "plot_traces",
    "plot_widths",
    "show",
]
