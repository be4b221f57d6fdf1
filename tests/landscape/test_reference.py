"""The digitised phase diagrams are whole, agree with each other, and carry the thresholds that are taken from them."""

import importlib.resources

import numpy as np
import pytest

from prunelimit.landscape import median_cka
from prunelimit.landscape.reference import RESOLUTION, SOURCE, reference_frame
from prunelimit.landscape.regimes import CKA_THRESHOLD, LMC_THRESHOLD


@pytest.fixture(scope="module")
def frame():
    return reference_frame()


def test_there_is_a_row_per_cell(frame):
    assert list(frame.columns) == ["value", "density", "error", "normalised_error", "lmc", "cka"]
    assert len(frame) == 16 * 9
    assert not frame.duplicated(["value", "density"]).any()
    assert frame.notna().all(axis=None)
    assert sorted(frame.value.unique()) == list(range(10, 170, 10))
    np.testing.assert_allclose(sorted(frame.density.unique()), [0.05, 0.06, 0.07, 0.08, 0.1, 0.14, 0.2, 0.4, 0.8])


def test_values_are_fractions_in_the_range_of_the_figure(frame):
    assert frame.error.between(0.07, 0.18).all()
    assert frame.normalised_error.between(0, 0.04).all()
    assert frame.lmc.between(-0.7, 0).all()
    assert frame.cka.between(0.88, 1).all()


def test_a_value_is_in_its_place(frame):
    """Rows of the files are epochs, columns are densities in per cent."""
    cell = frame[(frame.value == 160) & (frame.density == 0.06)].iloc[0]
    assert cell.error == 0.1630
    assert cell.normalised_error == 0.0308
    assert cell.lmc == -0.6704
    assert cell.cka == 0.8909


def test_the_normalised_error_is_the_error_minus_the_lowest_of_its_density(frame):
    lowest = frame.groupby("density").error.transform("min")
    # Three readings: the error, the lowest error, and the difference, which has a heat map of its own.
    allowed = 2 * RESOLUTION["error"] + RESOLUTION["normalised_error"]
    difference = frame.normalised_error - (frame.error - lowest)
    assert difference.abs().max() <= allowed
    shuffled = frame.normalised_error.to_numpy()[::-1] - (frame.error - lowest)
    assert shuffled.abs().max() > allowed


def test_the_threshold_of_similarity_is_the_median_of_its_connected_cells(frame):
    digits = len(str(CKA_THRESHOLD).split(".")[1])
    assert round(median_cka(frame.lmc, frame.cka), digits) == CKA_THRESHOLD


def test_the_threshold_of_connectivity_follows_its_rule(frame):
    halfway = -np.sqrt(RESOLUTION["lmc"] * -frame.lmc.quantile(0.02))
    assert halfway == pytest.approx(LMC_THRESHOLD, abs=0.01)


def test_the_tables_are_data_of_the_package():
    folder = importlib.resources.files("prunelimit.landscape") / "reference"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".csv"))
    assert len(names) == 4
    assert all(name.endswith("_digitized.csv") for name in names)


def test_the_source_says_digitised():
    assert SOURCE == "digitised from the published figure"
    assert SOURCE in " ".join(reference_frame.__doc__.split())
