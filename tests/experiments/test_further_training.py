"""How a network is trained on: a constant rate stays, one that fell falls again."""

from __future__ import annotations

import pytest

from prunelimit.experiments.runner import further_training
from prunelimit.training import TrainSpec, learning_rate

BASE = {"dataset": "digits", "model": "fc3", "lr": 0.1, "l1": 1e-4, "seed": 3}


def rates(spec: TrainSpec) -> list[float]:
    return [learning_rate(spec, epoch) for epoch in range(spec.epochs)]


def test_a_constant_rate_stays() -> None:
    tune = further_training(TrainSpec(**BASE, epochs=50, warmup_epochs=5), 4)
    assert rates(tune) == [0.1] * 4
    assert (tune.l1, tune.seed) == (1e-4, 1003)


def test_steps_keep_their_places() -> None:
    tune = further_training(TrainSpec(**BASE, epochs=100, schedule="step", milestones=(50, 80), gamma=0.5), 10)
    assert rates(tune) == pytest.approx([0.1] * 5 + [0.05] * 3 + [0.025] * 2)


def test_a_cosine_begins_at_the_top_and_ends_at_the_bottom() -> None:
    tune = further_training(TrainSpec(**BASE, epochs=200, schedule="cosine", warmup_epochs=5), 8)
    found = rates(tune)
    assert found[0] == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.01
