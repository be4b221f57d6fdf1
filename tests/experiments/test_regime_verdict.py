"""The verdict on the three-regime paper, on made-up grids whose answers are known."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from prunelimit.experiments import regime_verdict
from prunelimit.experiments.advice_cells import prepared_grids, stack
from prunelimit.experiments.diagram_frames import grid_diagram
from prunelimit.experiments.regime_frames import COLUMNS, MEASURES
from prunelimit.landscape.diagrams import reference_diagram

VALUES, DENSITIES = (1, 2, 5, 10, 20, 40), (0.02, 0.04, 0.08, 0.16, 0.32, 0.8)


def made_up(load: float = 1.0, heat: float = 1.0, turns: bool = True) -> pd.DataFrame:
    """An epochs grid whose connectivity follows load and heat with these signs, and whose best temperature may turn."""
    rows = []
    for (v, value), (k, density), seed in itertools.product(enumerate(VALUES), enumerate(DENSITIES), (0, 1)):
        cold = v / 5  # more epochs are colder
        row = dict.fromkeys([*MEASURES], 0.1)
        row |= {"grid": "epochs", "profile": "quick", "network": "fc4-quick", "dataset": "digits-noisy"}
        row |= {"distribution": "uniform", "value": value, "density": density, "seed": seed, "key": f"{v}{k}{seed}"}
        row["lmc"] = -0.2 + 0.02 * load * k - 0.01 * heat * v
        sign = 1 if turns and k < 3 else -1
        row["error"] = 0.3 - 0.03 * k + 0.05 * sign * cold
        row["cka"] = 0.9 + 0.01 * k - 0.001 * v
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    return {f.claim: f.verdict for f in regime_verdict.transition_findings([grid_diagram("epochs", frame)])}


@pytest.mark.parametrize("load", [1.0, -1.0])
@pytest.mark.parametrize("heat", [1.0, -1.0])
@pytest.mark.parametrize("turns", [True, False])
def test_transitions_are_judged_by_their_signs(load: float, heat: float, turns: bool) -> None:
    found = list(verdicts(made_up(load, heat, turns)).values())
    expected = [{True: "holds", False: "does not hold"}[good] for good in (load > 0, heat > 0, turns)]
    assert found == expected


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (-1.0, 0.0)])
def test_a_turn_has_to_be_clear_and_the_one_of_the_model(low: float, high: float) -> None:
    frame = made_up()
    cold = frame["value"].map(VALUES.index) / 5
    wave = np.array([0.0, 1.0, -1.0, 1.0, -1.0, 0.2])[frame["value"].map(VALUES.index)]  # hardly a trend
    slope = frame["density"].map({DENSITIES[0]: -low, DENSITIES[-1]: -high}).fillna(0.0)
    frame["error"] = 0.3 + 0.05 * slope * cold + 0.001 * wave
    assert list(verdicts(frame).values())[2] == "does not hold"


def test_one_grid_of_two_is_a_part() -> None:
    diagrams = [grid_diagram("epochs", made_up(load)) for load in (1.0, -1.0)]
    assert regime_verdict.transition_findings(diagrams)[0].verdict == "holds in part"


def test_without_records_nothing_is_decided() -> None:
    empty = grid_diagram("epochs", made_up().iloc[:0])
    assert {f.verdict for f in regime_verdict.transition_findings([empty])} == {"not decided"}


def test_the_digitised_map_is_told_beside() -> None:
    (first, *_) = regime_verdict.transition_findings([grid_diagram("epochs", made_up(-1.0))])
    assert first.verdict == "does not hold"
    assert "digitised map +0.9" in first.measured
    assert reference_diagram().title not in first.measured


@pytest.mark.parametrize(("sign", "share"), [(1, 5 / 6), (-1, 0)])
def test_advice_has_to_beat_the_constant_that_it_amounts_to(sign: int, share: float) -> None:
    # All cells are in regime I: the advice is "raise" everywhere, right but in the best cell, or nowhere.
    frame = made_up()
    frame["error"] = 0.3 + sign * 0.01 * frame["value"].map(VALUES.index)
    finding = regime_verdict.direction_finding(stack(prepared_grids([frame])))
    assert f"{share:.0%} (best constant" in finding.measured
    assert finding.verdict == "does not hold"


def test_a_grid_that_judges_itself_does_not_count_for_a_choice() -> None:
    # Cold networks are the best before pruning and the worst after it, where few weights are left.
    frame = made_up(turns=True).assign(lmc=0.0)
    frame["error"] += 0.2 * frame["value"].map(VALUES.index) / 5
    frame["dense_error"] = 0.2 - 0.01 * frame["value"].map(VALUES.index)
    alone = frame[frame.seed == 0].assign(profile="laptop", network="preresnet8-quick")
    first, second = regime_verdict.choice_findings(stack(prepared_grids([frame, alone])))
    assert first.verdict == "holds"
    assert "laptop" not in first.measured
    assert "error alone" in first.measured
    assert {f.verdict for f in regime_verdict.choice_findings(stack(prepared_grids([alone])))} == {"not decided"}
    assert regime_verdict.direction_finding(stack(prepared_grids([alone]))).verdict == "not decided"
    assert second.page == "choose_model"


def test_the_radius_is_judged_on_every_grid_and_not_by_a_gain_within_noise() -> None:
    values = {1: 0.0, 2: 0.05, 5: 0.1, 10: 0.2, 20: 0.35, 40: 0.5}
    frame = made_up().assign(grid="rho", lmc=-0.3)  # regime I: up
    frame["value"] = frame["value"].map(values)
    frame["error"] = 0.3 - 0.1 * frame["value"]
    other = frame.assign(profile="paper", network="preresnet20", dataset="cifar10")
    both = regime_verdict.radius_finding(stack(prepared_grids([frame, other])))
    assert both.verdict == "holds"
    assert both.measured.count("radius of SAM") == 2
    # One column of twelve gains, the others gain nothing.
    flat = frame.assign(error=0.3)
    flat.loc[(flat.density == 0.02) & (flat["value"] == 0.5), "error"] = 0.2
    assert regime_verdict.radius_finding(stack(prepared_grids([flat]))).verdict == "does not hold"
    assert regime_verdict.radius_finding(stack([])).verdict == "not decided"
