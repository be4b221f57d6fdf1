"""Tables of row norms say what the records say."""

import numpy as np
import pytest

from prunelimit.experiments import frames, row_frames
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.row_frames import RowsCell
from prunelimit.experiments.specs import RowsSpec
from prunelimit.experiments.store import repository


@pytest.fixture
def found(monkeypatch):
    """The quick records of the checkout."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    return row_frames.load_rows(frames.load_cells(profile="quick", seeds=[0]))


def test_every_recorded_quick_cell_has_both_orders(found):
    names = [cell.task.name for cell in frames.load_cells(profile="quick", seeds=[0])]
    assert names
    assert [(part.cell.task.name, part.spec.order) for part in found] == [(name, o) for name in names for o in (1, 2)]


def test_row_norms_are_of_the_network_whose_limit_is_recorded(found):
    for part in found:
        assert part.record["dense"]["train_loss"] == pytest.approx(part.cell.record["dense"]["train_loss"], rel=1e-4)
        assert part.record["total"] == part.cell.record["total"]
        assert part.record["examples"] == part.cell.record["spectrum"]["examples"]


def test_curves_and_checks_are_stacked(found):
    curves, checks = row_frames.curve_frame(found), row_frames.checks_frame(found, 2)
    networks = len({part.cell.task.name for part in found})
    assert curves.title.nunique() == networks
    assert set(curves.order) == {1}
    assert set(checks.order) == {2}
    assert len(checks) == networks * 64
    assert row_frames.curve_frame([]).empty
    assert row_frames.checks_frame([]).empty


def test_the_check_counts_rows_by_hand(found):
    table = row_frames.check_summary(found)
    first, checks = table.iloc[0], found[0].record["checks"]
    assert first.checked == 64
    assert first["zero exactly"] == sum(value == 0 for value in checks["exact"])
    inside = [lo <= x <= hi for lo, x, hi in zip(checks["low"], checks["exact"], checks["high"], strict=True) if x > 0]
    assert first.inside == pytest.approx(np.mean(inside))
    # A row is zero in every product if and only if it is zero.
    assert (table["zero exactly"] == table["zero estimated"]).all()
    assert table.error.between(0, {1: 0.6, 2: 0.3}[1]).all()


def test_layers_share_out_the_rows_and_the_norm(found):
    layers = row_frames.layers_frame(found)
    sums = layers.groupby("title")[["rows", "share"]].sum()
    np.testing.assert_allclose(sums, 1)
    assert (layers.low <= layers["median"]).all()
    assert (layers["median"] <= layers.high).all()


def test_costs_are_extrapolated_from_the_exact_rows(found):
    cost = row_frames.cost_frame(found)
    np.testing.assert_allclose(cost.all_rows, cost.seconds_per_row * cost.total)
    np.testing.assert_allclose(cost.released, 100 * cost.seconds_per_row)
    np.testing.assert_allclose(cost.zero_error, np.sqrt(cost.zero * (1 - cost.zero) / 100))


def test_the_bound_is_above_the_dimension_and_errs_on_the_safe_side(found):
    table = row_frames.bound_frame(found)
    assert (table.order == 2).all()
    assert (table.bound > table.dimension_low).all()
    assert (table.from_bound < table.limit_high).all()
    dense = table[table.exact.notna()]
    assert set(dense.title) >= {f"{name} stand-in on digits (quick)" for name in ("FC5", "FC12", "MLPNet")}
    assert (dense.from_bound < dense.exact).all()
    assert (table.zero <= table.negligible).all()
    assert (table.negligible <= table.below).all()


def test_the_share_below_a_norm_is_read_off_the_curve():
    record = {"curve": {"norm": [100.0, 1.0, 0.01, 0.0, 0.0], "share": [0.0, 0.25, 0.5, 0.75, 1.0]}, "zero": 0.4}
    part = RowsCell(None, RowsSpec(train=TASKS["fc5-cifar10"].spec("quick", 0).train), record)
    assert part.share_below(1.0) == pytest.approx(0.75)
    assert part.share_below(10.0) == pytest.approx(0.875)
    assert part.share_below(1e-9) == 0.5
    assert part.share_below(1e3) == 1.0
    assert RowsCell(None, part.spec, {"curve": {"norm": [0.0], "share": [0.0]}, "zero": 1.0}).share_below(1e-9) == 1.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0123, "0.012 s"), (59, "59 s"), (95, "1.6 min"), (5e3, "83 min"), (1e5, "28 h"), (3e7, "347 d")],
)
def test_durations_have_a_unit_of_their_size(seconds, words):
    assert row_frames.duration(seconds) == words


def test_origin_and_missing_cells_name_the_command(found, monkeypatch, tmp_path):
    assert row_frames.rows_origin(found).command[0] == "prunelimit rows fc5-cifar10 --profile quick --seeds 1"
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    missing = row_frames.missing_rows("fc5-cifar10", [0, 1])
    assert missing.profile.tolist() == ["quick", "laptop"]
    assert missing.command[1] == "prunelimit rows fc5-cifar10 --profile laptop --seeds 2"
    assert missing["seeds without a record"].tolist() == ["0, 1", "0, 1"]
    assert row_frames.load_rows([part.cell for part in found]) == []
