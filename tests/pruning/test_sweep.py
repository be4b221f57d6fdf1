"""The adaptive sweep against the sweep over all 1,000 points."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from torch import nn
from torch.nn.functional import cross_entropy

from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.limit import default_epsilon
from prunelimit.models import build_model
from prunelimit.pruning import adaptive
from prunelimit.pruning.adaptive import BAND, GRID, LEAST, adaptive_sweep
from prunelimit.pruning.measured import SweepPoint, largest_sparsity, sweep
from prunelimit.training import TrainSpec, fit

CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


@dataclasses.dataclass
class Case:
    """A small trained network with its whole sweep."""

    model: nn.Module
    train: DeviceSplit
    test: DeviceSplit
    epsilon: float
    full: list[SweepPoint]

    def curve(self, name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in self.full])

    @property
    def knee(self) -> int:
        loss = self.curve("train_loss")
        return int(np.nonzero(loss > loss[0] + self.epsilon)[0][0]) - 1


@pytest.fixture(scope="module")
def case() -> Case:
    data = load_dataset("digits")
    train, test = data.on_device("train", size=384), data.on_device("test", size=200)
    model = build_model("fc5-quick", input_shape=(1, 8, 8), seed=0)
    fit(model, train, TrainSpec(dataset="digits", model="fc5-quick", epochs=60, batch_size=64, lr=0.02, l1=1e-3))
    epsilon = default_epsilon(model, cross_entropy, list(train.batches(128)))
    return Case(model, train, test, epsilon, sweep(model, train, test, [k / GRID for k in range(GRID)]))


@pytest.fixture(scope="module")
def points(case: Case) -> list[SweepPoint]:
    return adaptive_sweep(case.model, case.train, case.test, case.epsilon, 80)


def test_points_are_those_of_the_whole_sweep(case: Case, points: list[SweepPoint]) -> None:
    assert len(points) == 80
    assert [p.sparsity for p in points] == sorted({p.sparsity for p in points})
    for point in points:
        assert point == case.full[round(point.sparsity * GRID)]
    assert points[0].sparsity == 0
    assert points[-1].sparsity == (GRID - 1) / GRID


def test_knee_is_found_to_one_point(case: Case, points: list[SweepPoint]) -> None:
    places = [round(p.sparsity * GRID) for p in points]
    above = [k for k, p in zip(places, points, strict=True) if p.train_loss > points[0].train_loss + case.epsilon]
    assert above[0] == case.knee + 1
    assert set(range(case.knee - BAND, case.knee + BAND + 2)) <= set(places)


def test_interpolated_curves_are_those_of_the_whole_sweep(case: Case, points: list[SweepPoint]) -> None:
    # One of 5,920 weights changes the curves of so small a network by steps, so single points may be off by more.
    grid = np.arange(GRID) / GRID
    sparsity = [p.sparsity for p in points]
    for name in CURVES:
        whole = case.curve(name)
        error = np.abs(np.interp(grid, sparsity, [getattr(p, name) for p in points]) - whole) / np.ptp(whole)
        assert error.mean() < 0.01
        assert np.quantile(error, 0.99) < 0.06


def test_same_number_of_equal_steps_is_worse(case: Case, points: list[SweepPoint]) -> None:
    grid, whole = np.arange(GRID), case.curve("train_loss")
    even = np.linspace(0, GRID - 1, len(points)).round().astype(int)
    by_steps = np.abs(np.interp(grid, even, whole[even]) - whole).max()
    chosen = np.array([round(p.sparsity * GRID) for p in points])
    assert np.abs(np.interp(grid, chosen, whole[chosen]) - whole).max() < by_steps


def test_interrupted_sweep_goes_on(case: Case, points: list[SweepPoint]) -> None:
    memory: dict[str, str] = {}
    for _ in range(5):
        left = [20]

        def memo(key: str, compute: object, left: list[int] = left) -> object:
            if key not in memory:
                if not left[0]:
                    raise InterruptedError
                left[0] -= 1
                memory[key] = json.dumps(compute())  # type: ignore[operator]
            return json.loads(memory[key])

        try:
            found = adaptive_sweep(case.model, case.train, case.test, case.epsilon, 80, memo=memo)
        except InterruptedError:
            continue
    assert found == points
    assert len(memory) == 80


def test_interrupted_search_for_the_accuracy_goes_on(case: Case) -> None:
    wanted, memory = {"most": 0.9 * case.full[0].test_accuracy}, {}
    expected = largest_sparsity(case.model, case.test, wanted, step=0.01)
    limit = 3

    def memo(key: str, compute: object) -> object:
        if key not in memory:
            if len(memory) == limit:
                raise InterruptedError
            memory[key] = compute()  # type: ignore[operator]
        return memory[key]

    with pytest.raises(InterruptedError):
        largest_sparsity(case.model, case.test, wanted, step=0.01, memo=memo)
    limit = 1000
    assert largest_sparsity(case.model, case.test, wanted, step=0.01, memo=memo) == expected


@pytest.mark.parametrize("evaluations", [LEAST, 60, 100])
def test_never_more_evaluations_than_allowed(case: Case, monkeypatch: pytest.MonkeyPatch, evaluations: int) -> None:
    by_sparsity = {p.sparsity: p for p in case.full}
    asked = []

    def looked_up(
        model: nn.Module, train: object, test: object, sparsities: list[float], *_: object
    ) -> list[SweepPoint]:
        asked.extend(sparsities)
        return [by_sparsity[s] for s in sparsities]

    monkeypatch.setattr(adaptive, "sweep", looked_up)
    found = adaptive_sweep(case.model, case.train, case.test, case.epsilon, evaluations)
    assert len(asked) == len(found) == evaluations


def test_loss_that_never_rises_has_no_knee(case: Case) -> None:
    found = adaptive_sweep(case.model, case.train, case.test, 1e9, 60)
    assert len(found) == 60


def test_knee_at_the_very_start(case: Case) -> None:
    found = adaptive_sweep(case.model, case.train, case.test, 1e-12, 60)
    places = [round(p.sparsity * GRID) for p in found]
    rises = [k for k, p in zip(places, found, strict=True) if p.train_loss > found[0].train_loss + 1e-12]
    assert rises[0] - 1 in places


def test_too_few_evaluations_are_refused(case: Case) -> None:
    with pytest.raises(PruneLimitError, match=f"evaluations={LEAST - 1} must be at least {LEAST}"):
        adaptive_sweep(case.model, case.train, case.test, case.epsilon, LEAST - 1)
