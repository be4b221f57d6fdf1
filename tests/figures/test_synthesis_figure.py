"""Figures of the synthesis draw the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest

from prunelimit.figures import synthesis as drawn


@pytest.fixture
def cells():
    rows = []
    for value in (1.0, 2.0, 4.0):
        for seed in (0, 1):
            for density in (0.1, 0.5):
                row = {
                    "value": value,
                    "temperature": -value,
                    "seed": seed,
                    "density": density,
                    "error": 0.1,
                    "cka": 0.99,
                }
                row |= {"lmc": -0.4 if (value, density) == (4.0, 0.1) else 0.0}
                row |= {"formula": 0.9 - value / 10 + seed / 50, "directional": 0.5, "refit": np.nan, "emp": 0.3}
                rows.append(row | {"measured": 0.6})
    return pd.DataFrame(rows)


@pytest.fixture
def densities():
    rows = [
        {"outcome": outcome, "density": d, "predictor": name, "value": v, "low": v - 0.1, "high": v + 0.1}
        for outcome, sign in (("lmc", 1), ("error", -1))
        for name, size in (("formula", 0.8), ("temperature", 0.5), ("measured", np.nan))
        for d in (0.1, 0.5)
        for v in (sign * size * d,)
    ]
    return pd.DataFrame(rows)


def test_limits_lie_at_their_densities_and_the_hottest_is_on_top(cells):
    axis = drawn.plot_boundaries({"a": cells}).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_allclose(lines["formula"].get_xdata(), [1 - 0.51, 1 - 0.71, 1 - 0.81])
    np.testing.assert_allclose(lines["formula"].get_ydata(), [0, 1, 2])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["4", "2", "1"]
    assert "refit" not in lines
    squares = [line for line in axis.lines if line.get_marker() == "s"]
    assert sorted(len(line.get_xdata()) for line in squares) == [1, 5]
    alone = min(squares, key=lambda line: len(line.get_xdata()))
    assert (alone.get_xdata()[0], alone.get_ydata()[0]) == (0.1, 0)  # regime I at the cold end


def test_correlations_are_drawn_by_density(densities):
    left, right = drawn.plot_correlations({"a": densities}).axes
    lines = {line.get_label(): line for line in left.lines}
    np.testing.assert_allclose(lines["formula"].get_xydata(), [[0.1, 0.08], [0.5, 0.4]])
    np.testing.assert_allclose(lines["temperature"].get_ydata(), [0.05, 0.25])
    assert "measured" not in lines
    assert len(left.collections) == 1
    assert right.get_title(loc="left") == "a: test error (expected: below 0)"


def test_words_carry_the_numbers(cells, densities):
    text = drawn.describe_boundaries({"a": cells, "all": cells.assign(temperature=np.nan)})
    assert "a: 1 of 6 cells are in regime I." in text
    assert "formula 19.0% at the hot end and 49.0% at the cold one" in text
    assert "refit" not in text
    assert "all:" not in text
    text = drawn.describe_correlations({"a": densities})
    assert "a, connectivity (expected: above 0): formula 0.08 to 0.40; temperature 0.05 to 0.25." in text


def test_nothing_recorded_is_an_empty_figure(densities):
    assert len(drawn.plot_boundaries({}).axes) == 1
    assert len(drawn.plot_correlations({}).axes) == 2
    assert len(drawn.plot_correlations({"a": densities[:0]}).axes) == 2
