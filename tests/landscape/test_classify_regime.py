"""Regimes follow their thresholds, over grids and with gaps, and the share of cells that depends on them is counted."""

import math

import numpy as np
import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.landscape import Thresholds, classify_regime, median_cka, sensitivity

LMC = np.array([[-0.40, -0.06], [-0.04, -0.02], [-0.01, 0.03]])
CKA = np.array([[0.99, 0.90], [0.92, 0.95], [0.97, 0.99]])


def test_one_network():
    assert classify_regime(-0.5, 0.99) == "I"
    assert classify_regime(0.0, 0.5) == "II-A"
    assert classify_regime(0.0, 1.0) == "II-B"
    assert classify_regime(0.2, 1.0) == "II-B"


def test_the_thresholds_themselves_are_inside():
    assert classify_regime(-0.1, 0.8, lmc_threshold=-0.1, cka_threshold=0.8) == "II-B"
    below = math.nextafter(-0.1, -1)
    assert classify_regime(below, 0.8, lmc_threshold=-0.1, cka_threshold=0.8) == "I"
    assert classify_regime(-0.1, math.nextafter(0.8, 0), lmc_threshold=-0.1, cka_threshold=0.8) == "II-A"


def test_a_grid():
    found = classify_regime(LMC, CKA, cka_threshold=0.96)
    assert found.tolist() == [["I", "I"], ["II-A", "II-A"], ["II-B", "II-B"]]
    assert classify_regime(LMC, CKA, lmc_threshold=-0.1, cka_threshold=0.96).tolist()[0] == ["I", "II-A"]


def test_gaps():
    nan = math.nan
    assert classify_regime([nan, -0.5, 0.0], [0.9, nan, nan]).tolist() == ["", "I", ""]
    assert not classify_regime(nan, 0.9)


def test_the_rule_halves_the_connected_cells():
    threshold = median_cka(LMC, CKA)
    assert threshold == pytest.approx((0.95 + 0.97) / 2)
    found = classify_regime(LMC, CKA, cka_threshold=threshold)
    assert (found == "II-A").sum() == (found == "II-B").sum() == 2
    assert median_cka([-1.0, 0.0, 0.0], [0.1, math.nan, 0.7]) == 0.7


def test_sensitivity_counts_cells_that_change():
    reference = Thresholds(-0.05, 0.96)
    others = [reference, Thresholds(-0.1, 0.96), Thresholds(-0.03, 0.96), Thresholds(-0.05, 0.94), Thresholds(0.0, 0.0)]
    # Nothing; -0.06 becomes II-A; -0.04 becomes I; 0.95 becomes II-B; all but the corners change.
    found = sensitivity(LMC, CKA, others, reference)
    assert found == pytest.approx([0, 1 / 6, 1 / 6, 1 / 6, 3 / 6])
    assert sensitivity(LMC, CKA, [Thresholds()]).tolist() == [0]


def test_sensitivity_leaves_out_what_is_missing():
    lmc, cka = [math.nan, 0.0, -0.04, 0.0], [0.5, math.nan, math.nan, 0.5]
    # The third cell is I or needs a similarity that it does not have.
    assert sensitivity(lmc, cka, [Thresholds(-0.01, 0.9)], Thresholds(-0.05, 0.9)) == pytest.approx([1 / 2])


def test_what_parts_nothing_is_refused():
    with pytest.raises(PruneLimitError, match="lmc_threshold"):
        classify_regime(0.0, 0.5, lmc_threshold=0.1)
    with pytest.raises(PruneLimitError, match="cka_threshold"):
        classify_regime(0.0, 0.5, cka_threshold=math.nan)
    with pytest.raises(PruneLimitError, match="shape"):
        classify_regime([0.0, 0.1, 0.2], [0.5, 0.6])
    with pytest.raises(PruneLimitError, match="shape"):
        median_cka([0.0], [0.5, 0.6])
    with pytest.raises(PruneLimitError, match="no cell is connected"):
        median_cka([-1.0], [0.5])
    with pytest.raises(PruneLimitError, match="nothing to classify"):
        sensitivity([math.nan], [0.5], [Thresholds()])
