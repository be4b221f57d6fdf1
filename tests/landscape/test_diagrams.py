"""Grids are arranged by temperature and density, and boundaries lie where two classes meet."""

import numpy as np
import pandas as pd
import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.landscape import Thresholds
from prunelimit.landscape.diagrams import (
    Diagram,
    boundary_frame,
    edges,
    factor_frame,
    heat_correlations,
    heating_steps,
    normalised_error,
    own_thresholds,
    reference_diagram,
    regime_shares,
    sensitivity_frame,
    summary_frame,
)
from prunelimit.landscape.regimes import CKA_THRESHOLD, REGIMES

THRESHOLDS = Thresholds(-0.05, 0.9)


def grid(classes, hotter=-1, **columns):
    """Build a diagram of given classes, rows from hot to cold; an empty string is a cell that is not there."""
    values = [1.0, 2.0, 4.0][::-hotter]
    known = {"I": (-0.5, 0.99), "II-A": (-0.01, 0.8), "II-B": (0.0, 0.95)}
    rows = [
        {"value": value, "density": density, "error": 0.1, "lmc": known[name][0], "cka": known[name][1]}
        for value, line in zip(values, classes, strict=False)
        for density, name in zip([0.1, 0.2, 0.4], line, strict=False)
        if name
    ]
    frame = pd.DataFrame(rows, columns=["value", "density", "error", "lmc", "cka"]).assign(**columns)
    return Diagram("net on data", "epochs", hotter, frame.sample(frac=1, random_state=0), THRESHOLDS)


CLASSES = [["II-A", "II-A", "II-B"], ["I", "II-A", "II-B"], ["I", "I", "II-B"]]


@pytest.mark.parametrize("hotter", [1, -1])
def test_the_hottest_row_is_on_top(hotter):
    diagram = grid(CLASSES, hotter)
    found = diagram.classes()
    assert found.to_numpy().tolist() == CLASSES
    assert found.index[0] == (4.0 if hotter > 0 else 1.0)
    assert list(found.columns) == [0.1, 0.2, 0.4]


def test_edges_part_the_classes():
    found = edges(grid(CLASSES).classes())
    connected = {((0, 1), (1, 1)), ((1, 1), (1, 2)), ((1, 2), (2, 2)), ((2, 2), (2, 3))}
    assert set(found["connected"]) == connected
    assert set(found["similar"]) == {((2, 0), (2, 1)), ((2, 1), (2, 2))}


def test_missing_cells_have_no_edges():
    found = edges(grid([["I", "", "II-B"], ["I", "II-A", "II-B"]]).classes())
    assert found == {"connected": [((1, 1), (1, 2))], "similar": [((2, 1), (2, 2))]}


def test_every_edge_is_counted_by_hand_on_the_digitised_map():
    classes = reference_diagram().classes().to_numpy()
    pairs = [*zip(classes[1:].ravel(), classes[:-1].ravel(), strict=True)]
    pairs += [*zip(classes[:, 1:].ravel(), classes[:, :-1].ravel(), strict=True)]
    found = edges(reference_diagram().classes())
    assert len(found["connected"]) == sum(("I" in pair) and pair[0] != pair[1] for pair in pairs)
    assert len(found["similar"]) == sum(set(pair) == {"II-A", "II-B"} for pair in pairs)


def test_boundaries_are_the_lowest_densities_that_hold():
    found = boundary_frame(grid(CLASSES))
    assert found.connected_from.tolist() == [0.1, 0.2, 0.4]
    assert found.similar_from.tolist() == [0.4, 0.4, 0.4]
    broken = boundary_frame(grid([["II-B", "I", "II-A"], ["II-B", "II-B", "I"], ["", "II-B", ""]]))
    np.testing.assert_allclose(broken.connected_from, [0.4, np.nan, 0.2])
    np.testing.assert_allclose(broken.similar_from, [np.nan, np.nan, 0.2])


def test_rows_without_records_have_no_boundary():
    found = boundary_frame(grid([["", "II-A"], ["", ""], ["I", "II-B"]]))
    assert found.index.tolist() == [1.0, 4.0]


def test_heating_steps_count_neighbours():
    counts = heating_steps(grid(CLASSES))
    assert counts.loc["I", "II-A"] == 2
    assert counts.loc["I", "I"] == 1
    assert counts.loc["II-A", "II-A"] == 1
    assert counts.loc["II-B", "II-B"] == 2
    assert counts.to_numpy().sum() == 6
    assert heating_steps(grid([["II-A", ""], ["", "I"]])).to_numpy().sum() == 0


def test_shares_and_means_of_the_regimes():
    table = regime_shares([grid(CLASSES)]).set_index("regime")
    assert list(table.index) == list(REGIMES)
    assert table.cells.tolist() == [3, 3, 3]
    np.testing.assert_allclose(table.share, 1 / 3)
    np.testing.assert_allclose(table.lmc, [-0.5, -0.01, 0.0])


def test_the_normalised_error_is_zero_at_the_best_of_each_density():
    frame = pd.DataFrame({"density": [0.1, 0.2, 0.1, 0.2], "error": [0.5, 0.25, 0.25, 0.75]})
    assert normalised_error(frame).tolist() == [0.25, 0, 0, 0.5]
    own = reference_diagram().frame.drop(columns="normalised_error")
    computed = Diagram("a", "b", -1, own).frame.normalised_error
    assert (computed - reference_diagram().frame.normalised_error).abs().max() < 0.0015


def test_thresholds_of_an_own_grid():
    frame = grid(CLASSES).frame
    assert own_thresholds(frame) == Thresholds(-0.05, (0.8 + 0.95) / 2)
    assert own_thresholds(frame, -0.6).cka == 0.95
    assert own_thresholds(frame[frame.lmc < -0.05]).cka == CKA_THRESHOLD
    assert Diagram("a", "b", 1, frame).parted == own_thresholds(frame)
    assert reference_diagram().parted == Thresholds()


def test_sensitivity_is_zero_at_the_thresholds_that_hold():
    diagram = grid(CLASSES)
    frame = sensitivity_frame([diagram, grid([], 1)], points=41)
    assert set(frame.moved) == {"lmc", "lmc, rule", "cka"}
    moved = frame[frame.moved == "lmc"]
    # At the lowest threshold all is connected; the three cells of regime I are similar by themselves.
    np.testing.assert_allclose(moved.share[moved.threshold < -0.5], 1 / 3)
    np.testing.assert_allclose(moved.share[moved.threshold.between(-0.49, -0.011)], 0)
    np.testing.assert_allclose(moved.share[moved.threshold > -0.0099], 1 / 3)
    moved = frame[frame.moved == "cka"].set_index("threshold").share
    assert moved.index.min() == 0.8
    assert moved.index.max() == 0.95
    assert moved.iloc[0] == pytest.approx(1 / 3)
    assert moved.iloc[-1] == 0


def test_correlations_are_with_the_temperature():
    frame = grid(CLASSES).frame
    own = Diagram("a", "b", -1, frame.assign(lmc=-frame.value, cka=frame.value / 4, error=0.1))
    found = heat_correlations([own, Diagram("a", "b", 1, own.frame), grid([])])
    assert found.lmc_low.tolist()[:2] == pytest.approx([1, -1])
    assert found.cka_high.tolist()[:2] == pytest.approx([-1, 1])
    assert found.error_low.isna().all()
    assert found.lmc_density.isna().all()  # the same at all densities
    assert heat_correlations([grid(CLASSES)]).lmc_density[0] == pytest.approx(1)
    assert found.iloc[2, 2:].isna().all()


def test_moving_by_a_factor():
    found = factor_frame([grid(CLASSES), grid([])]).iloc[0]
    assert (found.lmc_divided, found.lmc_multiplied) == (0, 0)
    # 1 - 0.9 halved is the similarity 0.95 of the cells in II-B; doubled it is the 0.8 of those in II-A.
    assert (found.cka_divided, found.cka_multiplied) == (0, pytest.approx(1 / 3))
    assert factor_frame([grid(CLASSES)], 6).lmc_divided[0] == pytest.approx(1 / 3)


def test_the_summary_counts_what_the_model_says():
    found = summary_frame([grid(CLASSES), grid([["I", "II-B"], ["II-A", "II-A"]])])
    assert found["I"].tolist() == [3, 1]
    assert found.changes.tolist() == [2, 2]
    assert found.as_said.tolist() == [2, 0]
    assert found.connected_hot[0] == 0.1
    assert found.connected_cold[0] == 0.4
    # By the digitised threshold, 0.976, no cell of these is similar.
    assert found.moved[0] == pytest.approx(1 / 3)


def test_a_grid_without_records_is_empty():
    empty = grid([])
    assert empty.classes().empty
    assert edges(empty.classes()) == {"connected": [], "similar": []}
    assert boundary_frame(empty).empty
    assert regime_shares([empty]).cells.sum() == 0
    assert sensitivity_frame([empty]).empty


def test_what_is_no_grid_is_refused():
    frame = grid(CLASSES).frame
    with pytest.raises(PruneLimitError, match="hotter"):
        Diagram("a", "b", 0, frame)
    with pytest.raises(PruneLimitError, match="average over seeds"):
        Diagram("a", "b", 1, pd.concat([frame, frame]))
    with pytest.raises(PruneLimitError, match="quantity"):
        grid(CLASSES).table("accuracy")
