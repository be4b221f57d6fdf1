"""Phase diagrams show the values of their frames in their places, on shared scales, with the boundaries between classes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, QuadMesh

from prunelimit import figures
from prunelimit.figures import phase
from prunelimit.landscape.diagrams import (
    QUANTITIES,
    Diagram,
    edges,
    reference_diagram,
    regime_shares,
    sensitivity_frame,
)


@pytest.fixture(scope="module")
def reference():
    return reference_diagram()


@pytest.fixture(scope="module")
def own():
    """A grid in which larger values are hotter, with a missing cell and a path that is better than its ends."""
    values, densities = [0.1, 0.2, 0.4], [0.02, 0.1]
    frame = pd.DataFrame([(v, d) for v in values for d in densities], columns=["value", "density"])
    frame["error"] = [0.30, 0.10, 0.25, 0.11, 0.28, 0.12]
    frame["lmc"] = [-0.4, -0.01, -0.1, -0.02, 0.02, -0.01]
    frame["cka"] = [0.70, 0.98, 0.75, 0.95, 0.90, 0.94]
    return Diagram("MLP on digits", "learning rate", 1, frame.drop(index=1))


@pytest.fixture(scope="module")
def empty(own):
    return Diagram("MLP on digits", "SAM ρ", 1, own.frame[:0])


def meshes(figure):
    """Return the heat maps by quantity, row by row."""
    found = [[c for c in axis.collections if isinstance(c, QuadMesh)] for axis in figure.axes]
    return [mesh[0] for mesh, axis in zip(found, figure.axes, strict=True) if mesh and axis.get_title(loc="left")]


def test_every_quantity_is_in_its_place_with_the_hot_end_on_top(reference, own):
    drawn = meshes(figures.plot_diagrams([reference, own]))
    assert len(drawn) == 8
    for mesh, quantity in zip(drawn[4:], QUANTITIES, strict=True):
        values = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(3, 2)
        expected = own.frame.pivot(index="value", columns="density", values=quantity).loc[[0.4, 0.2, 0.1]]
        np.testing.assert_allclose(values, expected)
    axis = figures.plot_diagrams([own]).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0.4", "0.2", "0.1"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["2", "10"]
    assert axis.get_ylim() == (3, 0)


def test_scales_are_shared_by_all_grids_and_span_them(reference, own):
    drawn = meshes(figures.plot_diagrams([reference, own]))
    for first, second, quantity in zip(drawn[:4], drawn[4:], QUANTITIES, strict=True):
        assert first.norm is second.norm
        values = pd.concat([reference.frame[quantity], own.frame[quantity]])
        assert first.norm.vmin <= values.min()
        assert first.norm.vmax >= values.max()
    alone = meshes(figures.plot_diagrams([own], beside=[reference]))
    assert [(m.norm.vmin, m.norm.vmax) for m in alone] == [(m.norm.vmin, m.norm.vmax) for m in drawn[:4]]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_scales_rise_and_can_be_inverted(quantity, reference, empty):
    scale = phase._scale([reference], quantity)
    values = np.linspace(scale.vmin, scale.vmax, 50)
    assert (np.diff(scale(values)) > 0).all()
    np.testing.assert_allclose(scale.inverse(scale(values)), values, atol=1e-12)
    assert phase._scale([empty], quantity).vmax == 1


def test_scales_are_stretched_towards_the_good_end():
    assert 1 - phase._scale([reference_diagram()], "lmc")(-0.05) > 0.2
    collapsed = reference_diagram().frame
    collapsed = collapsed.assign(error=collapsed.error.where(collapsed.value > 10, 0.9), value=collapsed.value + 1)
    both = [reference_diagram(), Diagram("a", "b", -1, collapsed)]
    assert phase._scale(both, "error")(0.2) - phase._scale(both, "error")(0.1) > 0.2


def test_ticks_of_a_bar_do_not_touch(reference, own):
    figure = figures.plot_diagrams([reference, own])
    bars = [axis for axis in figure.axes if not axis.get_title(loc="left")]
    assert len(bars) == 4
    for bar, quantity in zip(bars, QUANTITIES, strict=True):
        places = np.sort(phase._scale([reference, own], quantity)(bar.get_xticks()))
        assert len(places) >= 3
        assert np.diff(places).min() > 0.14


def test_boundaries_are_the_edges_between_classes(reference):
    axis = figures.plot_diagrams([reference]).axes[2]
    lines = {c.get_label(): c for c in axis.collections if isinstance(c, LineCollection)}
    for kind, found in edges(reference.classes()).items():
        np.testing.assert_array_equal(lines[kind].get_segments(), found)


def test_regimes_are_named_and_coloured(reference, own):
    figure = figures.plot_regimes([reference, own])
    left, right = figure.axes
    names = [text.get_text() for text in left.texts]
    assert len(names) == 144
    assert {name: names.count(name) for name in set(names)} == dict(
        zip(("I", "II-A", "II-B"), regime_shares([reference]).cells, strict=True)
    )
    assert sum(bool(text.get_text()) for text in right.texts) == 5
    mesh = next(c for c in right.collections if isinstance(c, QuadMesh))
    assert mesh.get_array().mask.sum() == 1
    coldest = mesh.cmap(mesh.norm(mesh.get_array().reshape(3, 2)[-1, 0]))
    np.testing.assert_allclose(coldest[:3], phase.REGIME_COLOURS["I"])


def test_colours_of_the_regimes_differ_in_lightness_or_hue():
    colours = np.array(list(phase.REGIME_COLOURS.values()))
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert lightness.min() > 0.4  # dark letters are legible
    assert min(abs(colours[i] - colours[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.2


def test_sensitivity_is_drawn_with_a_dot_at_each_threshold(reference, own):
    diagrams = [reference, own]
    frame = sensitivity_frame(diagrams, points=21)
    left, right = figures.plot_sensitivity(frame, diagrams).axes
    curves = [line for line in left.lines if len(line.get_xdata()) == 22]
    part = frame[(frame.title == reference.title) & (frame.moved == "lmc")]
    np.testing.assert_allclose(curves[0].get_xdata(), -part.threshold)
    np.testing.assert_allclose(curves[0].get_ydata(), part.share)
    dots = [float(line.get_xdata()[0]) for line in right.lines if line.get_marker() == "o"]
    assert dots == [diagram.parted.cka for diagram in diagrams]
    assert [text.get_text() for text in figures.plot_sensitivity(frame, diagrams).legends[0].get_texts()] == [
        f"{diagram.title}, {diagram.axis}" for diagram in diagrams
    ]


def test_words_carry_the_numbers(reference, own, empty):
    text = figures.describe_diagrams([reference, own, empty])
    assert "digitised from the published figure" in text
    assert "test error 7.6% to 17.5%, normalised 0.0% to 3.2%, LMC -0.676 to -0.001, CKA 0.883 to 0.993." in text
    assert "Of 5 cells 2 are in I" in text
    assert "Of 7 changes of class with one step of heat, 6 go from I or II-B to II-A." in text
    assert "SAM ρ: No cell has a record." in text
    assert "from density 6% on at the hot end, from density 14% on at the cold end" in figures.describe_regimes(
        [reference]
    )
    assert "LMC at -0.660 changes" in figures.describe_sensitivity(sensitivity_frame([reference]))


def test_a_grid_on_one_side_says_so(own):
    connected = Diagram("a", "b", 1, own.frame.assign(lmc=-0.01))
    assert "All are connected: the lowest LMC is -0.010" in figures.describe_transition(connected)
    apart = figures.describe_transition(Diagram("a", "b", 1, own.frame.assign(lmc=-0.3)))
    assert "None is connected: the highest LMC is -0.300" in apart
    assert "Connected: not at the highest density at the hot end" in apart


def test_nothing_recorded_is_a_figure_that_says_so(empty):
    figure = figures.plot_diagrams([empty])
    assert [axis.texts[0].get_text() for axis in figure.axes[:4]] == ["no record of this grid"] * 4
    assert figures.plot_regimes([empty]).axes[0].texts[0].get_text() == "no record of this grid"
    assert len(figures.plot_sensitivity(sensitivity_frame([empty]), [empty]).axes) == 2
    assert len(figures.plot_diagrams([]).axes) == 8
    for drawn in (figure, figures.plot_regimes([])):
        assert figures.as_svg(drawn, "empty")
