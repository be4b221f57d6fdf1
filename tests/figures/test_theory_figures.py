"""Figures of the theory show the numbers that they are given, and say them in words."""

import numpy as np
import pandas as pd
import pytest

from prunelimit import figures
from prunelimit.experiments import frames, quadratic, quadratic_frames, theory_frames
from prunelimit.experiments.store import repository


@pytest.fixture(scope="module")
def wells():
    return quadratic.family_wells(40, 0.02)


@pytest.fixture
def cells(monkeypatch):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    return frames.load_cells("fc5-cifar10", "quick")


def verticals(axis):
    return {round(float(line.get_xdata()[0]), 6) for line in axis.lines if np.ptp(line.get_xdata()) == 0}


def test_every_quadratic_has_a_panel_with_its_limits(wells):
    success = quadratic_frames.success_frame(wells, trials=4, points=11)
    predictions = quadratic_frames.prediction_frame(wells, success)
    figure = figures.plot_success(success, predictions)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in panels] == list(wells)
    for axis, (_, row) in zip(panels, predictions.iterrows(), strict=True):
        expected = {round(row[name], 6) for name in ("formula", "random_mean", "coordinates_mean")}
        assert expected <= verticals(axis)
    words = figures.describe_success(predictions)
    assert f"predicted limit {predictions.formula[1]:.1%}" in words


def test_orientations_are_drawn_and_told(wells):
    name = "power law"
    turned = {name: quadratic_frames.orientation_frame(wells[name], draws=3, points=21)}
    table = quadratic_frames.orientation_table(wells, turned)
    axis = figures.plot_orientations(turned, {name: table["formula s*"][0]}).axes[0]
    assert {line.get_label() for line in axis.lines} >= set(quadratic_frames.CASES.values())
    assert round(wells[name].predicted(), 6) in verticals(axis)
    words = figures.describe_orientations(table, [name])
    for label in quadratic_frames.CASES.values():
        assert f"{table[label][0]:.1%} ({label})" in words


def test_the_ball_has_a_panel_per_dimension():
    ball = quadratic_frames.ball_frame([50, 500], 0.1)
    figure = figures.plot_ball(ball)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a ball, D = 50", "a ball, D = 500"]
    places = quadratic_frames.ball_places(ball)
    assert f"one half at {places.half[1]:.1%}" in figures.describe_ball(places)


def test_crossings_of_scaled_weights_lie_on_the_falling_curve(cells):
    scaling = theory_frames.scaling_frame(cells, [1, 3])
    figure = figures.plot_scaled_weights(cells, scaling)
    axis = figure.axes[0]
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_marker() == "o"]
    own = scaling[scaling.seed == 0]
    assert dots == list(zip(own.radius, own.sparsity, strict=True))
    curve = cells[0].limit.curve
    for radius, sparsity in dots:
        assert np.interp(radius, curve.radius, curve.removable) == pytest.approx(sparsity, abs=2e-3)
    mean = scaling[scaling.factor == 3].sparsity.mean()
    assert f"{mean:.1%} at c = 3" in figures.describe_scaling(scaling)


def test_rescaling_shows_every_limit():
    growth = pd.DataFrame({"factor": [1.0, 2.0], "held": [0.8, 0.7], "formula": [0.8, 0.9]})
    growth = growth.assign(low=growth.formula - 0.01, high=growth.formula + 0.01, measured=[0.75, 0.74])
    exchange = pd.DataFrame({"factor": [0.5, 1.0, 2.0], "formula": [0.81, 0.8, 0.79], "measured": [0.7, 0.75, 0.6]})
    exchange = exchange.assign(formula_fixed=[0.77, 0.8, 0.76], measured_fixed=0.75)
    left, right = figures.plot_rescaling(growth, exchange).axes
    assert any(list(line.get_ydata()) == [0.8, 0.7] for line in left.lines)
    assert [list(line.get_ydata()) for line in right.lines] == [
        exchange[name].tolist() for name in ("formula", "measured", "formula_fixed", "measured_fixed")
    ]
    words = figures.describe_rescaling(growth, exchange)
    assert "held fixed from 80.0% to 70.0%" in words
    assert "measured limit in 60.0% to 75.0%" in words


def test_the_trace_bound_is_marked_where_it_crosses(wells):
    limits = theory_frames.bound_limits(wells)
    figure = figures.plot_bounds(theory_frames.bound_curves(wells), limits)
    for axis, (_, row) in zip(figure.axes, limits.iterrows(), strict=True):
        marks = {line.get_marker(): line.get_xdata()[0] for line in axis.lines if line.get_marker() in ("o", "D")}
        assert marks == {"o": row.formula, "D": row.bound}
    assert f"trace bound {limits.bound[0]:.1%}" in figures.describe_bounds(limits)


def test_recorded_networks_have_a_row_and_a_curve_each(cells):
    table, held = theory_frames.trace_frame(cells), theory_frames.concentration_frame(cells)
    left, right = figures.plot_traces(table, held).axes
    assert len(left.get_yticks()) == len(right.lines) == len(cells)
    assert left.get_yticklabels()[0].get_text() == "FC5 stand-in (quick), seed 0"
    assert f"trace bound {table.bound.mean():.1%}" in figures.describe_traces(table)
