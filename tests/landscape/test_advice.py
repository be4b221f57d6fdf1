"""Decisions follow the regimes, count their retrainings, and a network of one's own is measured as by hand."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.errors import PruneLimitError
from prunelimit.landscape import Thresholds, linear_mode_connectivity, output_similarity
from prunelimit.landscape.advice import RULES, choose_model, follow_advice, raise_or_lower, tune_rho
from prunelimit.landscape.children import prune_parent
from prunelimit.landscape.parents import Measurement, TrainedParent
from prunelimit.models import mlp
from prunelimit.pruning.magnitude import apply_masks
from prunelimit.training import TrainSpec, evaluate, fit

PARTED = Thresholds(-0.05, 0.9)

#: One measurement of each regime; the error is set where it matters.
REGIMES = {
    "I": Measurement(0.3, -0.2, 0.95, 2),
    "II-A": Measurement(0.2, -0.01, 0.8, 2),
    "II-B": Measurement(0.1, 0.0, 0.95, 2),
    "": Measurement(0.9, 0.0, math.nan, 2),
}


class Told:
    """A parent that was told what to measure, and counts the questions."""

    def __init__(self, measured, dense_error=0.1):
        self.measured, self.dense_error, self.asked = measured, dense_error, 0

    def measure(self, density):
        self.asked += 1
        return self.measured


@pytest.mark.parametrize(("regime", "direction"), [("I", "raise"), ("II-A", "lower"), ("II-B", "keep")])
def test_direction_of_each_regime(regime, direction):
    found = raise_or_lower(Told(REGIMES[regime]), 0.1, thresholds=PARTED)
    assert (found.direction, found.regime, found.evidence) == (direction, regime, REGIMES[regime])
    assert str(found).startswith(direction.capitalize())
    assert f"regime {regime};" in str(found)
    assert "2 retrainings" in str(found)
    assert (found.retrainings, found.saved(16), found.saved(1)) == (2, 30, 0)
    with pytest.raises(PruneLimitError, match="values"):
        found.saved(0)


def test_what_is_done_at_the_goal_is_a_choice():
    assert raise_or_lower(Told(REGIMES["II-B"]), 0.1, thresholds=PARTED, at_goal="lower").direction == "lower"
    assert raise_or_lower(Told(REGIMES["I"]), 0.1, thresholds=PARTED, at_goal="lower").direction == "raise"
    with pytest.raises(PruneLimitError, match="at_goal"):
        raise_or_lower(Told(REGIMES["I"]), 0.1, at_goal="raise")


def test_thresholds_decide_and_no_regime_is_refused():
    assert raise_or_lower(Told(REGIMES["I"]), 0.1, thresholds=Thresholds(-0.5, 0.99)).direction == "lower"
    with pytest.raises(PruneLimitError, match="no regime"):
        raise_or_lower(Told(REGIMES[""]), 0.1)


def axis(regimes, errors=None):
    """Measurements along an axis whose values are 0, 1, 2 and so on, coldest first."""
    errors = errors if errors is not None else [0.0] * len(regimes)
    found = [dataclasses.replace(REGIMES[r], error=e) for r, e in zip(regimes, errors, strict=True)]
    return lambda value: found[int(value)]


@given(st.integers(1, 24), st.data())
def test_walks_end_at_the_boundary_and_count_what_they_visit(count, data):
    # Cold is poorly connected, hot is connected and dissimilar: all advice points at one boundary.
    boundary, start = data.draw(st.integers(0, count)), data.draw(st.integers(0, count - 1))
    errors = data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    measure = axis(["I"] * boundary + ["II-A"] * (count - boundary), errors)
    for strategy in ("step", "bisect"):
        walk = follow_advice(measure, range(count), start, thresholds=PARTED, strategy=strategy)
        visited = [int(step.value) for step in walk.trace]
        assert len(set(visited)) == len(visited)
        assert {boundary - 1, boundary} & set(range(count)) <= set(visited)
        assert walk.reason == ("edge" if boundary in {0, count} else "turned")
        assert walk.measured.error == min(errors[place] for place in visited)
        assert walk.retrainings == 2 * len(visited)
        assert walk.retrainings + walk.saved == 2 * count
        if strategy == "step":
            assert set(visited) == set(range(min(visited), max(visited) + 1))
            assert min(visited) == min(start, max(boundary - 1, 0))
            assert max(visited) == max(start, min(boundary, count - 1))
        else:
            assert len(visited) <= 2 + math.log2(count)


def test_walks_end_at_the_goal_and_where_nothing_is_known():
    measure = axis(["I", "II-B", "II-A", "II-A", ""], [0.5, 0.3, 0.2, 0.4, 0.0])
    walk = follow_advice(measure, range(5), 3, thresholds=PARTED)
    assert ([step.value for step in walk.trace], walk.reason, walk.value) == ([3, 2, 1], "goal", 2)
    assert str(walk) == "2, after 3 (II-A) -> 2 (II-A) -> 1 (II-B): goal; 6 retrainings, 4 saved."
    assert follow_advice(measure, range(5), 3, thresholds=PARTED, at_goal="lower").reason == "turned"
    stuck = follow_advice(measure, range(5), 4, thresholds=PARTED)
    assert (stuck.reason, stuck.value, len(stuck.trace)) == ("unknown", 4, 1)


def test_a_walk_refuses_what_it_cannot_do():
    measure = axis(["I", "I"])
    for changed, message in [
        ({"start": 2}, "start"),
        ({"values": [0, 0]}, "twice"),
        ({"strategy": "jump"}, "strategy"),
        ({"at_goal": "up"}, "at_goal"),
    ]:
        settings = {"values": [0, 1], "start": 0} | changed
        with pytest.raises(PruneLimitError, match=message):
            follow_advice(measure, settings.pop("values"), settings.pop("start"), thresholds=PARTED, **settings)


def test_a_radius_is_raised_in_one_and_lowered_in_two_a():
    asked = []

    def measure(rho, density):
        asked.append((rho, density))
        return dataclasses.replace(REGIMES["I" if rho < 0.15 else "II-A"], error=abs(rho - 0.2))

    # Radii in any order: the smallest is the coldest.
    found = tune_rho(measure, 0.05, values=[0.4, 0.0, 0.2, 0.05, 0.1], default=0.05, thresholds=PARTED)
    assert asked == [(0.05, 0.05), (0.1, 0.05), (0.2, 0.05)]
    assert (found.value, found.reason, found.retrainings, found.saved) == (0.2, "turned", 6, 4)


FAMILY = {
    "barrier, low error": (0.10, Measurement(0.12, -0.30, 0.99, 2)),
    "connected, dense": (0.11, Measurement(0.20, -0.01, 0.80, 2)),
    "connected, similar": (0.14, Measurement(0.18, 0.00, 0.95, 2)),
    "connected, low error": (0.13, Measurement(0.15, -0.02, 0.90, 2)),
    "constant": (0.12, Measurement(0.90, 0.00, math.nan, 2)),
    "barrier, higher": (0.09, Measurement(0.13, -0.60, 0.97, 2)),
}


@pytest.mark.parametrize(
    ("rule", "ranking"),
    [
        ("lmc+error", [3, 2, 1, 4, 0, 5]),
        ("lmc+cka", [2, 3, 1, 4, 0, 5]),
        ("lmc+dense", [1, 4, 3, 2, 0, 5]),
        ("error", [0, 5, 3, 2, 1, 4]),
        ("dense", [5, 0, 1, 4, 3, 2]),
    ],
)
def test_rankings(rule, ranking):
    family = {name: Told(measured, dense) for name, (dense, measured) in FAMILY.items()}
    choice = choose_model(family, 0.1, rule=rule)
    names = list(FAMILY)
    assert [c.name for c in choice.ranking] == [names[k] for k in ranking]
    assert choice.name == names[ranking[0]]
    assert choice.retrainings == (0 if rule == "dense" else 12)
    assert [parent.asked for parent in family.values()] == [0 if rule == "dense" else 1] * 6
    assert ("4 of 6 connected" in str(choice)) == rule.startswith("lmc")


def test_without_a_connected_one_the_best_connectivity_wins():
    family = {name: Told(FAMILY[name][1]) for name in ("barrier, higher", "barrier, low error")}
    for rule in ("lmc+error", "lmc+cka", "lmc+dense"):
        assert choose_model(family, 0.1, rule=rule).name == "barrier, low error"
    strict = {name: Told(measured, dense) for name, (dense, measured) in FAMILY.items()}
    assert choose_model(strict, 0.1, thresholds=Thresholds(lmc=-1.0)).name == "barrier, low error"
    with pytest.raises(PruneLimitError, match="rule"):
        choose_model(family, 0.1, rule="cka")
    with pytest.raises(PruneLimitError, match="family"):
        choose_model({}, 0.1)
    assert RULES[0] == "lmc+error"


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = mlp([64, 16, 16, 10])
    spec = TrainSpec(dataset="digits", model="mlp", epochs=4, batch_size=64, lr=0.05, seed=9)
    train, test = digits.on_device("train", size=500), digits.on_device("test")
    fit(model, train, spec)
    return model, train, test, dataclasses.replace(spec, epochs=7, seed=20)


def test_a_network_of_ones_own_is_measured_as_by_hand(trained):
    model, train, test, retrain = trained
    before = copy.deepcopy(model.state_dict())
    parent = TrainedParent(model, train, test, retrain)
    found = parent.measure(0.2)
    children, errors = [], []
    for seed in (20, 21):
        child = apply_masks(copy.deepcopy(model), prune_parent(model, 0.2))
        kept = {name: p != 0 for name, p in child.named_parameters()}
        history = fit(
            child,
            train,
            dataclasses.replace(retrain, seed=seed),
            masks=prune_parent(model, 0.2),
            test=test,
            test_every=1,
        )
        errors.append(np.mean([1 - h["test_accuracy"] for h in history][-5:]))
        assert not any((p[~kept[name]] != 0).any() for name, p in child.named_parameters() if name.endswith("weight"))
        children.append(child)
    assert found.error == pytest.approx(np.mean(errors), abs=1e-12)
    assert found.lmc == pytest.approx(linear_mode_connectivity(*children, train).lmc, abs=1e-12)
    assert found.cka == pytest.approx(output_similarity(*children, train), abs=1e-12)
    assert found.retrainings == 2
    assert parent.dense_error == 1 - evaluate(model, test)[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert parent.measure(0.2) is found  # asking twice costs nothing
    assert raise_or_lower(parent, 0.2).evidence is found


def test_retrainings_are_resumed_from_their_folder(trained, tmp_path, monkeypatch):
    model, train, test, retrain = trained
    found = TrainedParent(model, train, test, retrain, folder=tmp_path).measure(0.3)
    seen = []
    from prunelimit.training_loop import Loop

    original = Loop.epoch
    monkeypatch.setattr(Loop, "epoch", lambda self, *a, **k: seen.append(1) or original(self, *a, **k))
    again = TrainedParent(model, train, test, retrain, folder=tmp_path).measure(0.3)
    assert not seen
    assert again == found


def test_three_children_have_three_pairs(trained):
    model, train, test, retrain = trained
    parent = TrainedParent(
        model, train, test, dataclasses.replace(retrain, epochs=1), children=3, distribution="global"
    )
    assert parent.measure(0.5).retrainings == 3


@pytest.mark.parametrize(
    ("changed", "message"), [({"children": 1}, "children"), ({"distribution": "even"}, "distribution"), ({}, "epochs")]
)
def test_a_parent_refuses_what_cannot_be_measured(trained, changed, message):
    model, train, test, retrain = trained
    spec = retrain if changed else dataclasses.replace(retrain, epochs=0)
    with pytest.raises(PruneLimitError, match=message):
        TrainedParent(model, train, test, spec, **changed)
