"""Limits beside regimes: joined by parent, judged by rules, and found again in a tiny grid that was really run."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from prunelimit import cli
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import synthesis, synthesis_frames, synthesis_relations
from prunelimit.experiments.regime_frames import regime_frame
from prunelimit.experiments.regime_grids import GRIDS, Grid, GridSettings
from prunelimit.experiments.store import load_record
from prunelimit.experiments.synthesis_relations import RELATIONS
from prunelimit.training import TrainSpec

DENSITIES = (0.1, 0.3, 0.9)


def made(slope: float = 0.1, offset: float = 0.8) -> pd.DataFrame:
    """Make a grid in which the formula is right: regime I begins exactly at the limit, which falls with every value."""
    rows = []
    for value in range(1, 7):
        for seed in (0, 1):
            limit = offset - slope * (value - 1) + 0.01 * seed
            for density in DENSITIES:
                margin = limit - (1 - density)
                row = {"grid": "made", "profile": "quick", "network": "n", "dataset": "d", "value": float(value)}
                row |= {"seed": seed, "density": density, "formula": limit, "directional": -limit, "refit": limit}
                row |= {
                    "refit_free": math.nan,
                    "formula_common": limit,
                    "measured": 0.5,
                    "emp": (value * 5 + seed) % 7 / 10,
                }
                row |= {"lmc": min(0.0, margin), "error": 0.5 - margin, "cka": 0.9, "parent": f"{value} {seed}"}
                row |= {"dense_error": (value * 3 + seed) % 5 / 10, "dense_train_loss": (value * 4 + 3 * seed) % 7 / 10}
                row["epsilon"] = (value * 2 + 5 * seed) % 7 / 10
                row |= {"temperature": -float(value), "cluster": f"made {value}", "mean_error": 1 - limit}
                row |= {"connected": float(margin >= 0), "similar": float(margin >= 0.5) if margin >= 0 else math.nan}
                rows.append(row | {"connected_limit": limit, "formula_low": limit - 0.1, "formula_high": limit + 0.1})
    return pd.DataFrame(rows)


def statistic(table: pd.DataFrame, relation: str, predictor: str) -> pd.Series:
    return table[(table.relation == relation) & (table.predictor == predictor)].iloc[0]


def test_a_limit_that_is_right_has_all_ranks_right() -> None:
    table = synthesis_relations.relation_frame(made(), draws=200)
    for name, relation in RELATIONS.items():
        row = statistic(table, name, "formula")
        best = 1.0 if relation.expected > 0 else -1.0
        # Connected cells tie in their connectivity.
        assert row.value == pytest.approx(best, abs=0.02 if name == "lmc" else 1e-9), name
        assert row.low <= row.value <= row.high
        assert statistic(table, name, "directional").value <= row.value or relation.expected < 0
    assert statistic(table, "boundary", "formula").kendall == pytest.approx(1)
    assert statistic(table, "boundary", "formula").rows == 12
    assert statistic(table, "lmc", "formula").rows == 36
    assert np.isnan(statistic(table, "boundary", "refit_free").value)  # not recorded
    assert np.isnan(statistic(table, "boundary", "measured").value)  # does not vary


def test_a_rival_may_have_either_sign_and_a_limit_may_not() -> None:
    table = synthesis_relations.relation_frame(made(), draws=100)
    right, wrong = statistic(table, "boundary", "formula"), statistic(table, "boundary", "directional")
    assert right.rival == "temperature"  # all but the seeds
    strength = abs(statistic(table, "boundary", "temperature").value)
    assert right.gain == pytest.approx(1 - strength)
    assert wrong.value == pytest.approx(-1)
    assert wrong.gain == pytest.approx(-1 - strength)
    assert wrong.gain_high < 0
    errors = statistic(table, "mean_error", "formula")
    assert errors.value == pytest.approx(-1)
    assert errors.gain == pytest.approx(1 - strength)


def test_cells_with_one_density_do_not_profit_from_the_density() -> None:
    table = synthesis_relations.relation_frame(made(), draws=50)
    assert statistic(table, "column", "density").value == 0.5
    assert statistic(table, "cells", "density").value > 0.7


def test_networks_that_learnt_too_little_are_left_out_and_counted() -> None:
    cells = made()
    tables = synthesis_relations.able_relations({"one": cells, "all grids (quick)": cells}, [0.25, 2], draws=20)
    able = int((synthesis_frames.parents_frame(cells).dense_error <= 0.25).sum())
    assert 0 < able < 12
    assert list(tables) == [
        f"all grids (quick), dense error up to 25%: {able} of 12 networks",
        "all grids (quick), dense error up to 200%: 12 of 12 networks",
    ]
    assert [statistic(table, "lmc", "formula").rows for table in tables.values()] == [3 * able, 36]
    with pytest.raises(PruneLimitError, match="worst"):
        synthesis_relations.able_relations({}, "much")  # type: ignore[arg-type]


def test_margins_and_rule() -> None:
    rules = synthesis_frames.rule_frame(made()).set_index("predictor")
    assert rules.loc["formula", "right"] == 1
    assert rules.loc["formula", "points"] == pytest.approx(0)
    assert rules.loc["measured", "points"] == pytest.approx(100 * (0.5 - made().connected_limit.mean()))
    assert "refit_free" not in rules.index
    assert set(rules.borders) == {12}
    # Of these six networks no border is seen: the children are connected everywhere, or nowhere from the densest cell on.
    ends = made().assign(connected_limit=lambda cells: np.where(cells.value > 3, 0.0, 1 - min(DENSITIES)))
    assert set(synthesis_frames.rule_frame(ends).borders) == {0}
    assert synthesis_frames.rule_frame(ends).points.isna().all()
    one = made().connected_limit.where(made().value == 1, 0.0)
    found = synthesis_frames.rule_frame(made().assign(connected_limit=one)).set_index("predictor")
    assert found.borders["measured"] == 2
    assert found.points["measured"] == pytest.approx(100 * (0.5 - 0.805))


def test_what_the_limits_follow() -> None:
    table = synthesis_relations.proxies_frame(made().assign(epsilon=made().value ** 2)).set_index("predictor")
    assert table.loc["formula", "temperature"] > 0.9
    assert table.loc["directional", "epsilon"] == pytest.approx(-table.loc["directional", "temperature"])
    assert table.loc["refit_free"].isna().all()
    assert synthesis_relations.proxies_frame(made()[:0].assign(epsilon=0.0)).empty


def test_each_density_by_itself() -> None:
    table = synthesis_relations.density_frame(made(), draws=50)
    own = table[table.predictor == "formula"].set_index(["outcome", "density"])
    assert own.loc[("error", 0.3), "value"] == pytest.approx(-1)
    assert own.loc[("lmc", 0.3), "value"] > 0.8  # ties where it is connected
    assert np.isnan(own.loc[("lmc", 0.9), "value"])  # connected everywhere
    assert set(table.predictor) == {"formula", "formula_common", "directional", "refit", "emp", "measured"} | {
        "dense_error",
        "dense_train_loss",
        "epsilon",
        "temperature",
    }


def findings(**tables: pd.DataFrame) -> dict[tuple[str, str], str]:
    found = synthesis_relations.findings({name.replace("_", " "): table for name, table in tables.items()})
    keys = [
        (relation, predictor) for relation in synthesis_relations.CLAIMS for predictor in synthesis_relations.JUDGED
    ]
    return {key: finding.verdict for key, finding in zip(keys, found, strict=True)}


def test_findings_follow_their_rule() -> None:
    table = synthesis_relations.relation_frame(made(), draws=200)
    own = findings(grid=table)
    assert own["error", "directional"] == "does not hold"
    assert own["column", "refit_free"] == "not decided"
    assert own["error", "formula"] in {"holds", "holds in part"}
    clear = table.assign(low=table.value - 0.01, high=table.value + 0.01, gain_low=0.1)
    assert findings(grid=clear)["error", "formula"] == "holds"
    assert findings(grid=clear.assign(gain_low=-0.1))["error", "formula"] == "holds in part"
    assert findings(grid=clear.assign(rarer=4))["column", "formula"] == "not decided"
    wrong = clear.assign(low=-1.0, high=1.0)
    assert findings(one=clear, two=wrong)["error", "formula"] == "holds in part"
    assert findings(one=clear, two=wrong, three=wrong)["error", "formula"] == "does not hold"
    assert findings(one=clear, all_grids=wrong)["error", "formula"] == "holds"
    assert findings(one=clear)["lmc", "formula"] == "not decided"
    assert findings(one=wrong, all_grids=clear)["lmc", "formula"] == "holds"
    assert set(findings().values()) == {"not decided"}


def test_tables_have_a_dash_where_nothing_varies_and_a_mark_for_winners() -> None:
    table = synthesis_relations.relation_frame(made(), draws=50)
    relations = {"a": table, "b": table.assign(gain_low=0.1), "c": table[:0]}
    lines = synthesis_relations.question_table(relations, "boundary").set_index("known before retraining")
    assert lines.loc["formula", "a"] == "1.00 [1.00, 1.00]"
    assert lines.loc["formula", "b"] == "1.00 [1.00, 1.00] ▲"
    assert lines.loc["refit, no control", "a"] == "—"
    assert set(lines.c) == {"—"}
    assert lines.index[0] == "formula"
    assert lines.loc["rows", "a"] == "12"
    connected = int(made().connected.sum())
    rarer = (
        synthesis_relations.question_table(relations, "column").set_index("known before retraining").loc["rows", "a"]
    )
    assert rarer == f"36, {min(connected, 36 - connected)} of the rarer"
    assert synthesis_relations.question_table({}, "column").empty
    one = {"a": table.assign(gain_low=0.1, rarer=synthesis_relations.RARER - 1)}
    lines = synthesis_relations.question_table(one, "column").set_index("known before retraining")
    assert "▲" not in "".join(lines.a)  # a single cell is no victory


def test_regime_one_begins_below_the_first_gap() -> None:
    densities = [0.1, 0.2, 0.4, 0.8]
    assert synthesis_frames.connected_limit(densities, [-0.01, -0.3, -0.01, 0.0], -0.05) == pytest.approx(0.6)
    assert synthesis_frames.connected_limit(densities, [0.0, 0.0, 0.0, 0.0], -0.05) == pytest.approx(0.9)
    assert synthesis_frames.connected_limit(densities, [0.0, 0.0, 0.0, -0.1], -0.05) == 0
    assert synthesis_frames.connected_limit([], [], -0.05) == 0


BASE = TrainSpec(dataset="digits", model="fc3", epochs=3, batch_size=128, lr=0.1, train_size=300)
TINY = GridSettings("epochs", (1, 2, 3), (0.1, 0.6), (0, 1), BASE, BASE, 300)


@pytest.fixture(scope="module")
def tiny():
    """A grid that is run for real: six dense networks of 300 digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, "tiny", Grid("tiny", "epochs", -1, {"quick": TINY}))
        patch.setitem(synthesis.SETTINGS, "quick", {"steps": 8, "refits": ()})
        assert synthesis_frames.synthesis_frame("tiny", "quick").empty
        regime_frame("tiny", "quick", run_missing=True)
        assert synthesis_frames.synthesis_frame("tiny", "quick").empty
        done = CliRunner().invoke(cli.app, ["synthesis", "tiny", "--profile", "quick"])
        assert done.exit_code == 0, done.output
        yield done.stdout


def test_limits_join_the_cells_of_their_parents(tiny) -> None:
    assert tiny.count(": recorded (") == 6
    assert "tiny quick: 2 epochs, batch 128, rate 0.1, seed 1" in tiny
    cells = synthesis_frames.synthesis_frame("tiny", "quick")
    assert len(cells) == 12
    assert cells.same.all()
    assert cells.groupby("parent").formula.nunique().eq(1).all()
    assert sorted(cells.temperature.unique()) == [-3, -2, -1]
    for row in cells.itertuples():
        spec = synthesis.parent_spec(TINY.spec(row.value, row.density, row.seed), "quick")
        record = load_record(synthesis.EXPERIMENT, spec)
        assert row.formula == record["formula"]["sparsity"]
        assert row.parent == spec.hash
    shared = np.median(cells.drop_duplicates("parent").epsilon)
    nearest = cells.iloc[(cells.epsilon - shared).abs().argmin()]
    assert nearest.formula_common == pytest.approx(nearest.formula, abs=0.05)
    # A larger tolerance never makes the limit lower.
    assert ((cells.formula_common - cells.formula) * np.sign(shared - cells.epsilon) >= -1e-4).all()
    assert cells.mean_error.iloc[0] == pytest.approx(cells[cells.parent == cells.parent.iloc[0]].error.mean())


def test_a_grid_with_too_few_parents_is_not_shown(tiny) -> None:
    found = synthesis_frames.all_cells(("quick",), ["tiny"])
    assert list(found) == ["epochs (quick)"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis_frames, "PARENTS", 7)
        assert synthesis_frames.all_cells(("quick",), ["tiny"]) == {}


def test_several_grids_are_pooled_with_every_network_once(tiny) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, "again", Grid("again", "more epochs", -1, {"quick": TINY}))
        found = synthesis_frames.all_cells(("quick",), ["tiny", "again"])
    assert list(found) == ["epochs (quick)", "more epochs (quick)", "all grids (quick)"]
    assert len(found["all grids (quick)"]) == 12
    assert found["all grids (quick)"].temperature.isna().all()


def test_pooled_grids_have_one_tolerance(tiny) -> None:
    hottest = GridSettings("epochs", (1,), (0.1, 0.6), (0, 1), BASE, BASE, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, "part", Grid("part", "few epochs", -1, {"quick": hottest}))
        patch.setattr(synthesis_frames, "PARENTS", 2)
        found = synthesis_frames.all_cells(("quick",), ["part", "tiny"])
    whole, part, pooled = (
        found[title].drop_duplicates("parent").set_index("parent").formula_common
        for title in ("epochs (quick)", "few epochs (quick)", "all grids (quick)")
    )
    # The pooled networks are those of the whole grid, whose median tolerance is another than that of its hottest row.
    assert (part - whole[part.index]).abs().max() > 1e-6
    assert pooled.sort_index().to_list() == pytest.approx(whole.sort_index().to_list())


def test_origin_counts_the_parents_that_are_the_same(tiny) -> None:
    found = synthesis_frames.all_cells(("quick",), ["tiny"])
    found["all grids (quick)"] = found["epochs (quick)"].assign(temperature=np.nan)
    origin = synthesis_frames.synthesis_origin(found)
    assert origin[["grid", "parents", "the same network", "products"]].to_numpy().tolist() == [["tiny", 6, 6, 48]]
    assert origin.command.tolist() == ["prunelimit synthesis tiny --profile quick"]
    missing = synthesis_frames.synthesis_missing()
    assert "tiny" not in set(missing.grid)
    assert {"epochs", "rho"} <= set(missing.grid)


def test_recorded_parents_are_not_computed_again(tiny) -> None:
    done = CliRunner().invoke(cli.app, ["synthesis", "tiny"])
    assert done.stdout.count("recorded already") == 6
    assert CliRunner().invoke(cli.app, ["synthesis", "tiny", "--missing"]).stdout == ""
