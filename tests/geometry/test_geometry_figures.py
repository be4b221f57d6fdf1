"""Geometry figures show the numbers that they are given."""

import numpy as np
import pytest

from prunelimit import figures
from prunelimit.experiments import geometry_frames as frames
from prunelimit.geometry import EllipsoidCone


@pytest.fixture(scope="module")
def tables():
    thresholds = frames.thresholds_frame([10, 20], rotations=20)
    phase = frames.phase_frame(thresholds)
    return phase, frames.window_frame(thresholds, phase, 0.1)


def test_the_tangents_that_are_drawn_touch_the_ellipse_that_is_drawn() -> None:
    cone = EllipsoidCone([1.5, 0.55], [2.6, 1.35])
    _, axes = figures.new_figure()
    figures.draw_sight(axes[0, 0], cone, frames.lines_frame(cone, 9))
    curves = {len(line.get_xdata()): np.array(line.get_data()) for line in axes[0, 0].lines}
    angles = np.arctan2(curves[400][1], curves[400][0])
    edges = np.arctan2(*cone.edges().T[::-1])
    assert sorted(edges) == pytest.approx([angles.min(), angles.max()], abs=1e-4)


def test_cones_have_four_panels_and_their_data() -> None:
    cone = EllipsoidCone([1.5, 0.55], [2.6, 1.35])
    sizes = frames.dimension_frame(["ball", "wide"], 20, [0.6, 1.2, 3.0], ["random", "flattest", "stiffest"], 50)
    figure = figures.plot_cones(
        cone, frames.lines_frame(cone, 9), sizes, frames.concentration_frame([10, 20], 0.4, 50), 20
    )
    assert len(figure.axes) == 4
    heights = {round(float(y), 9) for line in figure.axes[1].lines for y in line.get_ydata()}
    wide = sizes[(sizes.ellipsoid == "wide") & (sizes.direction == "random")]
    assert {round(y / 20, 9) for y in [*wide.measured, *wide.formula, *wide.confocal]} <= heights
    errors = {round(float(y), 9) for line in figure.axes[3].lines for y in np.ravel(line.get_ydata())}
    assert {round(y / 20, 9) for y in sizes[sizes.ellipsoid == "wide"].difference} <= errors


def test_phase_draws_exact_curves_windows_and_places(tables) -> None:
    phase, windows = tables
    figure = figures.plot_phase(phase, windows)
    for axis, cone in zip(figure.axes, dict.fromkeys(phase.cone), strict=True):
        assert axis.get_title(loc="left") == cone
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axis.lines]
        part = phase[(phase.cone == cone) & (phase.total == 20)]
        wanted = part.exact if part.exact.notna().all() else part.probability
        assert any(len(y) == 21 and np.allclose(y, wanted) for y in drawn)
        row = windows[(windows.cone == cone) & (windows.total == 20)].iloc[0]
        assert any(np.allclose(line.get_xdata(), row.predicted / 20) for line in axis.lines)


def test_collapse_draws_every_curve_and_width(tables) -> None:
    phase, windows = tables
    left, right = figures.plot_collapse(phase, windows).axes
    assert len(left.lines) == 2 + 8
    marks = {round(float(y), 9) for line in right.lines for y in line.get_ydata()}
    assert {round(float(v), 9) for v in windows.half_width / windows.total} <= marks
