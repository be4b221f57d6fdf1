"""Figures of the decisions have a panel per grid, marks for every answer, and words with numbers."""

import pandas as pd
import pytest

from prunelimit.experiments import advice_cells, advice_frames, advice_tables
from prunelimit.figures import advice


@pytest.fixture(scope="module")
def cells():
    one = advice_cells.reference_cells().query("density < 0.09")
    return pd.concat([one, one.assign(title="again")], ignore_index=True)


@pytest.fixture(scope="module")
def nothing():
    return advice_cells.prepare(pd.DataFrame(), 1, "a", "b")


def test_advice_has_a_mark_per_cell(cells):
    found = advice_frames.directions_frame(cells)
    figure = advice.plot_advice(found)
    panels = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert len(panels) == 2
    assert sum(len(line.get_xdata()) for line in panels[0].lines) == 64
    part = found[(found.title == "again") & (found.rule == "advice") & (found.direction == "raise")]
    assert f"raise in {len(part)} cells, right in {part.right.sum()}" in advice.describe_advice(found)


def test_outcomes_by_density_and_by_cost(cells):
    found = advice_frames.searches_frame(cells)
    summary = advice_tables.summary_frame(found)
    costs, above = advice.plot_costs(summary), advice.plot_above(found)
    assert len(costs.legends[0].get_texts()) == len(above.legends[0].get_texts()) == found.rule.nunique()
    stay = found[(found.title == "again") & (found.rule == "stay")]
    assert f"again: stay at the start {100 * stay.above.mean():.2f} points" in advice.describe_above(found)
    lines = {line.get_label(): line for line in above.axes[0].lines}
    assert lines["full sweep"].get_ydata().max() == 0


def test_tuning_shows_what_was_chosen(cells):
    found = advice_frames.searches_frame(cells, start=160, searches=["stay", "step", "sweep"])
    figure = advice.plot_tuning(found)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"advice, step by step", "full sweep", "default"}
    text = advice.describe_tuning(found)
    sweep = found[(found.rule == "sweep") & (found.density == 0.05)].chosen.iloc[0]
    assert f"full sweep: {sweep:g} at 5%" in text


def test_nothing_recorded_is_said(nothing):
    searches = advice_frames.searches_frame(nothing)
    for figure in (
        advice.plot_advice(advice_frames.directions_frame(nothing)),
        advice.plot_costs(advice_tables.summary_frame(searches)),
        advice.plot_above(advice_frames.choices_frame(nothing)),
        advice.plot_tuning(searches),
    ):
        assert [text.get_text() for text in figure.axes[0].texts] == ["no record of these grids"]
    for words in (
        advice.describe_advice(advice_frames.directions_frame(nothing)),
        advice.describe_above(searches),
        advice.describe_tuning(searches),
    ):
        assert words.endswith("No record.")
