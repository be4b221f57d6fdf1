"""Verdicts follow from the numbers by the printed rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prunelimit.experiments import verdict


def limits(formula: list[float], emp: list[float], actual: list[float]) -> pd.DataFrame:
    frame = pd.DataFrame({"formula": formula, "emp": emp, "fine_tuned": actual})
    for name in ("cut", "directional", "refit"):
        frame[name] = np.nan
    return frame


def test_errors_are_in_points_and_signed() -> None:
    errors = verdict.prediction_errors(limits([0.9, 0.8, 0.7], [0.5, 0.5, 0.5], [0.88, 0.82, 0.6]), "fine_tuned")
    assert errors.loc["formula", "error"] == pytest.approx((2 + 2 + 10) / 3)
    assert errors.loc["formula", "bias"] == pytest.approx((2 - 2 + 10) / 3)
    assert errors.loc["formula", "rank"] == pytest.approx(1)
    assert np.isnan(errors.loc["emp", "rank"])
    assert set(errors.index) == {"formula", "emp"}


@pytest.mark.parametrize(
    ("formula", "emp", "expected"),
    [
        ([0.905, 0.795], [0.7, 0.7], "holds"),
        ([0.95, 0.75], [0.7, 0.7], "holds in part"),
        ([0.95, 0.75], [0.9, 0.8], "does not hold"),
    ],
)
def test_a_prediction_is_judged_by_its_error_and_its_rival(
    formula: list[float], emp: list[float], expected: str
) -> None:
    found = verdict.limit_predicts_practice(limits(formula, emp, [0.9, 0.8]), "fine_tuned", "test")
    assert found.verdict == expected


def pruned(lomp: float, rival: float) -> pd.DataFrame:
    rows = [("LOMP", lomp), ("IMP", rival), ("random", 1.0)]
    return pd.DataFrame(
        [
            {"title": "a", "row": row, "sparsity": s, "seed": seed, "test_accuracy": accuracy}
            for row, accuracy in rows
            for s in (0.5, 0.9)
            for seed in (0, 1)
        ]
    )


@pytest.mark.parametrize(("lomp", "expected"), [(0.9, "holds"), (0.892, "holds"), (0.8, "does not hold")])
def test_lomp_is_judged_against_the_best_rival_but_not_the_controls(lomp: float, expected: str) -> None:
    assert verdict.lomp_beats(pruned(lomp, 0.9), "test", "tab03").verdict == expected


@pytest.mark.parametrize(
    ("gains", "expected"),
    [((0.02, 0.021, 0.019), "holds"), ((0.1, -0.05, 0.0), "holds in part"), ((-0.1, 0, 0), "does not hold")],
)
def test_the_penalty_is_judged_by_an_interval(gains: tuple[float, ...], expected: str) -> None:
    rows = [
        {
            "title": "a",
            "row": row,
            "sparsity": 0.5,
            "seed": seed,
            "test_accuracy": 0.5 + (gain if row == "Rare Gems" else 0),
            "record": f"{row} {seed}",
        }
        for seed, gain in enumerate(gains)
        for row in ("Rare Gems", "Rare Gems, no L2")
    ]
    frame = pd.DataFrame(rows)
    found = verdict.penalty_helps_gems(frame)
    assert found.verdict == expected
    # Neither another fraction removed nor another task with the same search is more evidence.
    again = pd.concat(
        [frame, frame.assign(sparsity=0.9, test_accuracy=frame.test_accuracy - 0.1), frame.assign(title="b")]
    )
    assert verdict.penalty_helps_gems(again) == found


def rounds(limits_of_runs: list[list[float]], accuracies: list[float] | None = None) -> pd.DataFrame:
    rows = [
        {"title": "a", "seed": seed, "round": r, "sparsity": 0.1 * r, "formula": value, "measured": value}
        for seed, values in enumerate(limits_of_runs)
        for r, value in enumerate(values)
    ]
    alive = [accuracies is None or accuracies[row["round"]] >= 0.45 for row in rows]
    return pd.DataFrame(rows).assign(alive=alive)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([[0.5, 0.6, 0.7], [0.5, 0.7, 0.8]], "holds"),
        ([[0.5, 0.6, 0.7]] * 5 + [[0.5, 0.7, 0.6]], "holds in part"),
        ([[0.5, 0.51, 0.52]], "holds in part"),  # of what is left, less and less can go
        ([[0.5, 0.4, 0.6]], "does not hold"),
    ],
)
def test_iterative_pruning_is_judged_run_by_run(runs: list[list[float]], expected: str) -> None:
    assert verdict.iterative_raises(rounds(runs)).verdict == expected


def test_a_limit_that_is_only_pushed_along_by_pruning_does_not_count_as_raised() -> None:
    # From no network can anything more be removed: the rank correlation is one all the same.
    found = verdict.iterative_raises(rounds([[0.1 * r for r in range(8)]]))
    assert found.verdict == "holds in part"


def test_dead_networks_do_not_raise_a_limit() -> None:
    runs = [[0.5, 0.51, 0.52, 0.99]]
    assert verdict.iterative_raises(rounds([[0.5, 0.6, 0.7, 0.99]])).verdict == "holds"
    found = verdict.iterative_raises(rounds(runs, [0.9, 0.9, 0.9, 0.1]))
    assert found.verdict == "holds in part"
    assert "1 of 4 networks dead and left out" in found.measured
    assert "from 50.0% to 40.0%" in found.measured


def test_errors_over_fewer_networks_say_so_and_are_compared_on_the_same_ones() -> None:
    frame = limits([0.9, 0.8, 0.7, 0.6], [0.85, 0.85, 0.5, 0.5], [0.8, 0.8, 0.7, 0.6]).assign(
        control=[0.0, 2.0, -0.5, 0.1]
    )
    frame["refit"] = [0.82, 0.82, np.nan, np.nan]
    measured = verdict.limit_predicts_practice(frame, "fine_tuned", "test").measured
    assert "over 4 networks: formula 2.5, refit 2.0 (on 2), emp 10.0" in measured
    assert "On the 2 networks where refit is recorded: formula 5.0, refit 2.0, emp 5.0" in measured
    assert "In 1 of 4" in measured
    assert "without these: formula 3.3, refit 2.0 (on 1), emp 11.7" in measured


def test_networks_seen_beyond_the_formula_are_counted() -> None:
    frame = limits([0.9, 0.8, 0.7, 0.6], [0.85, 0.85, 0.5, 0.5], [0.8, 0.8, 0.7, 0.6])
    frame = frame.assign(
        seen=[0.91, 0.95, 0.95, 0.95], formula_high=[0.92, 0.9, 0.96, 0.9], upper=[0.9, 0.96, 0.9, 0.94]
    )
    measured = verdict.limit_predicts_practice(frame, "fine_tuned", "test").measured
    assert "seen beyond the formula's interval and window in 1 of 4" in measured


def test_a_missing_rival_keeps_lomp_from_holding() -> None:
    found = verdict.lomp_beats(pruned(0.9, 0.9), "test", "tab03", absent=["CHITA"])
    assert (found.verdict, found.measured.endswith("without a record: CHITA")) == ("holds in part", True)


def test_without_records_nothing_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    found = verdict.findings()
    assert {one.verdict for one in found} == {"not decided"}
    assert len(verdict.verdict_table(found)) == len(found)
    assert all(one.rule for one in found)
