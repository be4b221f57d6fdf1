"""Figure F5 draws the curves and the exact rows that it is given."""

import numpy as np
import pandas as pd
import pytest

from prunelimit import figures


@pytest.fixture
def curves():
    """Two networks, the first with two seeds; a quarter of the second one's rows is zero."""
    share = np.linspace(0, 1, 9)
    parts = []
    for title, seed, zero in (("a", 0, 0.0), ("a", 1, 0.0), ("b", 0, 0.25)):
        norm = np.where(share <= 1 - zero, 10.0 ** (-4 * share), 0.0)
        keys = {"title": title, "seed": seed, "zero": zero}
        parts.append(pd.DataFrame({"share": share, "norm": norm, "low": norm / 2, "high": norm * 2}).assign(**keys))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def checks():
    exact = np.array([0.5, 1e-2, 0.0])
    table = pd.DataFrame({"estimate": 1.2 * exact, "low": 0.6 * exact, "high": 2.4 * exact, "exact": exact, "seed": 0})
    return pd.concat([table.assign(title=title) for title in ("a", "b")], ignore_index=True)


def test_there_is_a_panel_per_network_and_one_for_the_check(curves, checks):
    figure = figures.plot_row_norms(curves, checks)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["a", "b", "The sampled rows, one by one"]
    assert len(figures.plot_row_norms(curves).axes) == 2


def test_every_seed_has_a_line_and_zero_norms_are_not_drawn(curves):
    first, second = figures.plot_row_norms(curves).axes
    assert len(first.lines) == 2
    np.testing.assert_allclose(first.lines[0].get_ydata(), 10.0 ** (-4 * np.linspace(0, 1, 9)))
    assert np.isnan(second.lines[0].get_ydata()[-2:]).all()
    assert "exactly zero: 25.00%" in [text.get_text() for text in second.get_legend().get_texts()]


def test_exact_rows_lie_at_the_rank_of_their_estimate(curves, checks):
    axis = figures.plot_row_norms(curves, checks).axes[0]
    dots = next(line for line in axis.lines if line.get_marker() == ".")
    np.testing.assert_allclose(dots.get_ydata(), [0.5, 1e-2])
    ranks = dots.get_xdata()
    assert 0 < ranks[0] < 0.125  # between the norms 1 and 10 ** -0.5
    assert 0.375 < ranks[1] < 0.5


def test_the_check_shows_ratios_of_rows_that_are_not_zero(curves, checks):
    axis = figures.plot_row_norms(curves, checks).axes[2]
    containers = axis.containers
    assert len(containers) == 2
    np.testing.assert_allclose(containers[0].lines[0].get_ydata().astype(float), [1.2, 1.2])
