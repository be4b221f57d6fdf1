"""Decisions are judged by rules that can be redone by hand, and noise in the evidence is no merit."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import advice_cells, advice_frames, advice_tables
from prunelimit.landscape.reference import RESOLUTION
from prunelimit.landscape.regimes import CKA_THRESHOLD, median_cka

#: One density, six values, coldest last because the axis is one of epochs: I, I, II-A, II-A, II-B, no regime.
ERRORS = [0.30, 0.25, 0.10, 0.20, 0.22, 0.40]
LMC = [-0.30, -0.20, -0.01, 0.00, 0.00, 0.00]
CKA = [0.99, 0.99, 0.90, 0.91, 0.99, np.nan]
EPOCHS = [60, 50, 40, 30, 20, 10]


def column(density=0.1, seed=0, errors=ERRORS, **other):
    rows = {"value": EPOCHS, "density": density, "seed": seed, "error": errors, "lmc": LMC, "cka": CKA}
    return pd.DataFrame(rows | {"dense_error": [0.5, 0.4, 0.3, 0.2, 0.1, 0.6]} | other)


def made(*columns, **settings):
    return advice_cells.prepare(pd.concat(columns, ignore_index=True), -1, "epochs", "made up", **settings)


@pytest.fixture(scope="module")
def reference():
    return advice_cells.reference_cells()


def test_preparing_orders_by_temperature_and_judges_by_the_other_seeds():
    cells = made(column(seed=0), column(seed=1, errors=[e + 0.1 for e in ERRORS]), column(seed=2, density=0.2))
    mine = cells[(cells.density == 0.1) & (cells.seed == 0)]
    assert mine.value.tolist() == EPOCHS
    assert mine["rank"].tolist() == list(range(6))
    np.testing.assert_allclose(mine.judged, np.array(ERRORS) + 0.1)
    np.testing.assert_allclose(cells[(cells.density == 0.1) & (cells.seed == 1)].judged, ERRORS)
    assert mine.held_out.all()
    alone = cells[cells.density == 0.2]
    assert not alone.held_out.any()
    np.testing.assert_allclose(alone.judged, ERRORS)
    assert cells.name.iloc[0] == "epochs 60"
    covered = advice_tables.coverage_frame(cells).iloc[0]
    assert (covered.networks, covered.densities, covered["dense seeds"], covered.cells) == (6, 2, 3, 18)
    assert covered["judged by"] == "the other seeds, where there are any"


def test_preparing_drops_columns_with_gaps_and_values_that_few_have():
    gap = column(seed=1)
    gap.loc[2, "lmc"] = np.nan
    rare = column(seed=0).head(1).assign(value=70)
    cells = made(column(seed=0), rare, column(seed=2), gap)
    assert set(cells.seed) == {0, 2}
    assert set(cells.value) == set(EPOCHS)
    assert advice_cells.prepare(pd.DataFrame(), 1, "a", "b").empty
    assert made(column().head(2)).empty  # two values are no axis
    assert len(made(column().head(3))) == 3


def test_the_digitised_map_is_judged_by_itself(reference):
    assert len(reference) == 16 * 9
    assert not reference.held_out.any()
    np.testing.assert_array_equal(reference.judged, reference.error)
    densest = reference[reference.density == 0.8].set_index("value").error
    np.testing.assert_array_equal(reference.dense_error, densest[reference.value])
    assert reference.tolerance.iloc[0] == pytest.approx(2 * RESOLUTION["error"])
    assert reference[reference["rank"] == 0].value.unique() == [160]


def test_recorded_parents_answer_and_refuse():
    parent = advice_cells.recorded_parent(pd.concat([column(0.1), column(0.2)]).query("value == 40"))
    assert parent.dense_error == 0.3
    found = parent.measure(0.2)
    assert (found.error, found.lmc, found.cka, found.retrainings) == (0.10, -0.01, 0.90, 2)
    with pytest.raises(PruneLimitError, match="density"):
        parent.measure(0.3)
    with pytest.raises(PruneLimitError, match="rows"):
        advice_cells.recorded_parent(column())


def test_thresholds_do_not_look_at_the_column_itself():
    other = column(0.2).assign(cka=[0.9, 0.9, 0.5, 0.6, 0.7, 0.8])
    cells = made(column(0.1), other)
    assert advice_frames.thresholds_for(cells, 0.1).cka == median_cka(other.lmc, other.cka) == pytest.approx(0.65)
    assert advice_frames.thresholds_for(cells, 0.1, quantile=1.0).cka == 0.8
    assert advice_frames.thresholds_for(cells, 0.1, lmc=0.0, quantile=0.0).cka == 0.6
    assert advice_frames.thresholds_for(made(column()), 0.1).cka == CKA_THRESHOLD


def directions(cells, rule):
    found = advice_frames.directions_frame(cells)
    return found[found.rule == rule].set_index("value")


def test_directions_are_judged_by_the_best_value():
    # The default thresholds hold, because there is no other density: 0.90 and 0.91 are dissimilar, 0.99 is similar.
    found = directions(made(column()), "advice")
    assert found.regime.to_dict() == {60: "I", 50: "I", 40: "II-A", 30: "II-A", 20: "II-B"}  # 10 has none
    assert found.direction.tolist() == ["raise", "raise", "lower", "lower", "keep"]
    assert found.right.tolist() == [True, True, False, True, False]
    np.testing.assert_allclose(found.gain, [0.05, 0.15, -0.15, 0.10, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.above, [0.20, 0.15, 0.0, 0.10, 0.12], atol=1e-12)
    lower = directions(made(column()), "advice, lower in II-B")
    assert lower.right.tolist() == [True, True, False, True, True]
    assert lower.gain[20] == pytest.approx(0.02)
    assert directions(made(column()), "always raise").right.sum() == 2
    always = directions(made(column()), "always lower")
    assert always.right.sum() == 2
    assert always.gain[60] == 0  # the end of the axis


def test_the_best_within_the_tolerance_is_to_be_kept():
    found = directions(made(column(), tolerance=0.12), "advice")
    assert found.right.to_dict() == {60: True, 50: True, 40: False, 30: False, 20: True}


def test_searches_by_hand():
    cells = made(column())
    found = advice_frames.searches_frame(cells, start=60).set_index("rule")
    assert found.chosen.to_dict() == {
        "stay": 60, "step": 40, "step, lower in II-B": 40, "bisect": 40, "bisect, lower in II-B": 40, "downhill": 40,
        "sweep": 40,
    }  # fmt: skip
    assert found.loc[["stay", "step", "downhill", "sweep"], "retrainings"].tolist() == [0, 6, 8, 12]
    assert (found.retrainings + found.saved == 12).all()
    np.testing.assert_allclose(found.gain[found.index != "stay"], 0.20)
    goal = advice_frames.searches_frame(cells, start=20).set_index("rule")
    assert (goal.chosen["step"], goal.retrainings["step"]) == (20, 2)
    assert goal.chosen["step, lower in II-B"] == 40


def test_downhill_finds_the_nearest_minimum_and_the_sweep_the_lowest(reference):
    found = advice_frames.searches_frame(reference)
    by_rule = dict(iter(found.groupby("rule")))
    assert (by_rule["sweep"].above == 0).all()
    assert (by_rule["stay"].gain == 0).all()
    assert (by_rule["stay"].retrainings == 0).all()
    for row in by_rule["downhill"].itertuples():
        errors = reference[reference.density == row.density].set_index("rank").error
        place = reference[(reference.density == row.density) & (reference.value == row.chosen)]["rank"].iloc[0]
        assert errors[place] == min(errors.get(k, 1.0) for k in (place - 1, place, place + 1))
    for rule in ("step", "bisect", "downhill"):
        assert (by_rule[rule].gain >= 0).all()  # the start is among the values visited, and evidence is judgement here
    assert by_rule["bisect"].retrainings.max() <= 2 * (2 + 4)


def test_evidence_does_not_judge_itself():
    rng = np.random.default_rng(0)
    columns = [
        column(density, seed, rng.random(6)) for density in np.arange(1, 60) / 100 for seed in (0, 1)
    ]  # nothing but noise
    found = advice_frames.searches_frame(made(*columns), start=40, searches=["sweep"])
    # A sweep over pure noise gains nothing; judged by its own numbers it would gain about 0.35.
    assert abs(found.gain.mean()) < 0.1
    assert found.right.mean() < 0.35


def test_radii_are_searched_from_the_default():
    radii = column().assign(value=[0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
    cells = advice_cells.prepare(radii, 1, "radius", "made up")
    found = advice_frames.rho_frame(cells, 0.06).set_index("rule")
    assert set(found.start) == {0.05}
    assert (found.chosen["stay"], found.chosen["step"], found.chosen["sgd"]) == (0.05, 0.1, 0.0)
    assert found.gain["step"] == pytest.approx(0.15)
    assert found.gain["sgd"] == pytest.approx(-0.05)
    assert found.retrainings["sgd"] == 0
    assert "sgd" not in set(advice_frames.rho_frame(cells, 0.0).rule)
    assert advice_frames.rho_frame(cells.head(0), 0.05).empty
    tuned = advice_frames.tuning_frame(cells, 0.06).iloc[0]
    assert (tuned.way, tuned.ended, tuned.radius) == ("0.05 (I) → 0.1 (II-A)", "turned", 0.1)
    assert (tuned.retrainings, tuned.saved) == (4, 8)
    assert advice_frames.tuning_frame(cells.head(0), 0.06).empty


def test_choices_by_hand():
    cells = made(column())
    found = advice_frames.choices_frame(cells).set_index("rule")
    assert found.chosen.to_dict() == {
        "lmc+error": "epochs 40", "lmc+cka": "epochs 20", "lmc+dense": "epochs 20", "error": "epochs 40",
        "dense": "epochs 20",
    }  # fmt: skip
    np.testing.assert_allclose(found.gain, [0.12, 0, 0, 0.12, 0], atol=1e-12)
    np.testing.assert_allclose(found.beyond, [0, -0.12, -0.12, 0, -0.12], atol=1e-12)
    assert found.retrainings.tolist() == [12, 12, 12, 12, 0]
    assert found.right.tolist() == [True, False, False, True, False]
    assert found.connected.tolist() == [4 / 6] * 5


def test_choices_may_be_judged_by_their_own_children():
    cells = made(column(seed=0), column(seed=1, errors=ERRORS[::-1]))
    found = advice_frames.choices_frame(cells, rules=["error", "dense"], own=True)
    assert (found[found.rule == "error"].above == 0).all()
    others = advice_frames.choices_frame(cells, rules=["error", "dense"])
    assert (others[others.rule == "error"].above > 0).any()
    assert others.error.tolist() != found.error.tolist()


def test_pooling_keeps_shared_columns_and_counts_a_shared_run_once():
    one = made(column(0.1), column(0.2))
    other = advice_cells.prepare(column(0.1).assign(key=one.key[:6].to_numpy()), -1, "epochs", "again")
    third = advice_cells.prepare(column(0.1), 1, "rate", "made up")
    whole = advice_cells.pool([one, other, third, made(column())[:0]], "together")
    assert set(whole.density) == {0.1}
    assert len(whole) == 12
    assert set(whole.title) == {"together"}
    assert advice_frames.choices_frame(whole).chosen.str.contains("epochs|rate").all()


def test_recorded_grids_are_named_and_pooled():
    meta = {"grid": "epochs", "profile": "quick", "network": "net", "dataset": "data"}
    meta["distribution"] = "uniform"
    frames = [column(**meta), column(**(meta | {"grid": "rho"})), column(**(meta | {"distribution": "global"}))]
    first, second, third = advice_cells.prepared_grids(frames)
    assert third.title.iloc[0] == "training epochs, net on data (quick), global pruning"
    assert first.title.iloc[0] == "training epochs, net on data (quick)"
    assert first.value.iloc[0] == 60  # more epochs are colder
    assert second.value.iloc[0] == 10  # a smaller radius is colder
    pooled = advice_cells.pooled_grids(frames)
    assert [part.title.iloc[0] for part in pooled] == ["all 2 grids, net on data (quick)"]
    assert advice_cells.load_grids(["epochs"], ["quick"]) == []  # nothing is recorded here


def test_intervals_are_those_of_whole_groups():
    values = pd.Series(np.random.default_rng(1).normal(size=12))
    groups = pd.Series(np.repeat(range(6), 2))
    means = values.groupby(groups).mean()
    expected = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    assert advice_tables.grouped_mean(values, groups) == pytest.approx((means.mean(), *expected))
    mean, low, high = advice_tables.grouped_mean(values > 0, pd.Series(0, index=values.index))
    assert mean == (values > 0).mean()
    assert np.isnan([low, high]).all()  # one group says nothing about others
    with pytest.raises(PruneLimitError, match="values"):
        advice_tables.grouped_mean(pd.Series(dtype=float), pd.Series(dtype=float))


@pytest.mark.parametrize("count", [4, 6, 9])
def test_few_groups_are_covered_as_often_as_is_said(count):
    rng, held = np.random.default_rng(count), 0
    for _ in range(400):
        _, low, high = advice_tables.grouped_mean(pd.Series(rng.normal(size=count)), pd.Series(range(count)))
        held += low <= 0 <= high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_intervals_end_where_shares_do_and_one_density_has_none(reference):
    found = advice_frames.directions_frame(reference)
    summary = advice_tables.summary_frame(found.assign(right=found.density == found.density.min()))
    assert (summary.right_low == 0).all()
    single = advice_tables.summary_table(found[found.density == found.density.min()])
    assert not single["right"].str.contains("[", regex=False).any()


def test_summaries_average_and_write(reference):
    found = advice_frames.directions_frame(reference)
    summary = advice_tables.summary_frame(found).set_index("rule")
    advice = found[found.rule == "advice"]
    assert summary.right["advice"] == pytest.approx(advice.right.mean())
    assert summary.gain["advice"] == pytest.approx(advice.gain.mean())
    assert (summary.right_low <= summary.right).all()
    assert (summary.right <= summary.right_high).all()
    table = advice_tables.summary_table(found, ("rule", "regime"))
    assert table.cases.sum() == len(found)
    assert f"{advice[advice.regime == 'I'].right.mean():.0%} [" in table["right"].iloc[0]
    regimes = advice_tables.regime_table(found)
    assert regimes.regime.tolist() == ["I", "II-A", "II-B"]
    assert regimes.cells.sum() == 144
    assert regimes.grid.tolist()[1:] == ["", ""]
    assert regimes["right"].iloc[0].split(" [")[0] == regimes["right: raise"].iloc[0]  # in I the advice is to raise
    assert regimes["gain (points)"].iloc[1].split(" [")[0] == regimes["gain: lower"].iloc[1]
    moved = advice_tables.threshold_frame(reference, [-0.05], [0.5, 0.9])
    assert moved.right.iloc[0] == pytest.approx(advice.right.mean())
    assert moved.right.nunique() == 2
    table = advice_tables.threshold_table(reference, [-0.05, -0.02], [0.5, 0.9])
    assert table.shape == (2, 4)
    assert table["CKA: quantile 0.9"].iloc[0] == f"{moved.right.iloc[1]:.0%} ({100 * moved.gain.iloc[1]:+.2f})"


def test_nothing_recorded_is_no_error():
    empty = advice_cells.prepare(pd.DataFrame(), 1, "a", "b")
    for outcomes in (
        advice_frames.directions_frame(empty),
        advice_frames.searches_frame(empty),
        advice_frames.choices_frame(empty),
    ):
        assert advice_tables.summary_table(outcomes).empty
    assert advice_tables.regime_table(advice_frames.directions_frame(empty)).empty
    assert advice_tables.coverage_frame(empty).empty
    assert advice_tables.threshold_table(empty, [-0.05], [0.5]).empty
    assert advice_cells.pooled_grids([]) == []
