"""Figures show the numbers that they are given, and say them in words."""

import html

import numpy as np
import pandas as pd
import pytest

from prunelimit import figures
from prunelimit.experiments import frames
from prunelimit.experiments.store import repository


@pytest.fixture
def cells(monkeypatch):
    """The recorded quick cells of FC5."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    return frames.load_cells("fc5-cifar10", "quick")


def test_the_crossing_is_marked_at_the_limit(cells):
    limit = cells[0].limit
    axis = limit.plot().axes[0]
    x, y = axis.lines[-1].get_data()
    assert (x[0], y[0]) == (limit.sparsity, limit.sparsity)


def test_sweeps_have_two_panels_per_network_and_a_line_per_limit(cells):
    limits = frames.limits_frame(cells)
    figure = figures.plot_sweeps(frames.sweep_frame(cells), limits)
    assert len(figure.axes) == 2
    verticals = {round(line.get_xdata()[0], 6) for line in figure.axes[0].lines[1:]}
    means = limits[["formula", "directional", "measured", "fine_tuned"]].mean()
    assert verticals == {round(v, 6) for v in means}


def test_sweeps_at_other_places_for_every_seed_are_averaged_between_their_points(cells):
    limits = frames.limits_frame(cells[:2])
    # Two straight lines, one above the other, known at different places: their mean is straight, and so is the band.
    places = {0: [0.0, 0.5, 0.999], 1: [0.0, 0.25, 0.999]}
    parts = [
        {"sparsity": s, "test_accuracy": 1 - s / 2 + 0.1 * k, "train_loss": 1 + s} for k in places for s in places[k]
    ]
    sweeps = pd.DataFrame(parts).assign(title=limits.title.iloc[0], seed=np.repeat([0, 1], 3))
    axis = figures.plot_sweeps(sweeps, limits).axes[0]
    x, y = axis.lines[0].get_data()
    np.testing.assert_allclose(x, [0, 0.25, 0.5, 0.999])
    np.testing.assert_allclose(y, 1.05 - x / 2)
    edges = axis.collections[0].get_paths()[0].vertices
    assert np.ptp(edges[np.isclose(edges[:, 0], 0.25)][:, 1]) == pytest.approx(np.sqrt(2) * 0.1)


def test_the_radius_figure_draws_every_seed(cells):
    figure = figures.plot_radius(cells)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_ydata()[0] for dot in dots] == [cell.limit.sparsity for cell in cells]


def test_the_description_holds_the_means(cells):
    limits = frames.limits_frame(cells)
    words = figures.describe_limits(limits)
    assert f"formula {limits.formula.mean():.1%}" in words
    assert f"after fine-tuning {limits.fine_tuned.mean():.1%}" in words


def test_equal_figures_become_equal_files(cells):
    limits = frames.limits_frame(cells)
    first, second = (figures.as_svg(figures.plot_answer(limits), "title") for _ in range(2))
    assert first == second
    assert b"<title>title</title>" in first or b"title" in first


def test_show_hands_the_text_equivalent_to_the_notebook(monkeypatch):
    seen = {}
    monkeypatch.setattr("IPython.display.display", lambda image, metadata: seen.update(metadata, data=image.data))
    figure, axes = figures.new_figure()
    axes[0, 0].plot(np.arange(3))
    figures.show(figure, "three points on a line")
    assert seen["alt"] == "three points on a line"
    assert seen["data"].startswith(b"\x89PNG")


def test_the_picture_in_the_readme_says_what_the_records_say(monkeypatch):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    words = figures.describe_limits(frames.limits_frame(frames.load_cells()))
    picture = html.unescape((repository() / "book" / "_static" / "limit.svg").read_text(encoding="utf-8"))
    assert words in picture, "draw it again: prunelimit figure answer --folder book/_static"
