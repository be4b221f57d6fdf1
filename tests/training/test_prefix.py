"""Trainings that are the beginning of a longer one are not repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from prunelimit.training import TrainSpec, train
from prunelimit.training_prefix import begin_from_shorter, is_prefix

LONG = TrainSpec(
    dataset="digits", model="fc3", epochs=6, batch_size=64, lr=0.05, schedule="step", milestones=(3, 5), train_size=256
)


def cut(epochs: int, **settings: object) -> TrainSpec:
    return dataclasses.replace(LONG, epochs=epochs, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shorter", "expected"),
    [
        (cut(2), True),
        (cut(4), True),
        (LONG, False),
        (cut(8), False),
        (cut(2, seed=1), False),
        (cut(2, lr=0.01), False),
        (cut(2, milestones=(3, 4)), False),
    ],
)
def test_a_beginning_has_the_same_settings_and_fewer_epochs(shorter: TrainSpec, expected: bool) -> None:
    assert is_prefix(shorter, LONG) is expected


def test_a_shorter_cosine_is_no_beginning_of_a_longer_one() -> None:
    assert not is_prefix(cut(3, schedule="cosine"), cut(6, schedule="cosine"))


def test_going_on_from_the_longest_beginning_gives_the_same_network(tmp_path: Path) -> None:
    alone = train(LONG, folder=tmp_path / "alone", progress=False)
    for spec in (cut(2), cut(4)):
        train(spec, folder=tmp_path / spec.hash, progress=False)
    begun = begin_from_shorter(LONG, [cut(2), LONG, cut(4), cut(5)], tmp_path)
    assert begun == cut(4)
    found = train(LONG, folder=tmp_path / LONG.hash, progress=False)
    assert [epoch["lr"] for epoch in found.history] == [epoch["lr"] for epoch in alone.history]
    for name, value in alone.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)


def test_what_has_begun_is_left_alone(tmp_path: Path) -> None:
    for spec in (cut(2), LONG):
        train(spec, folder=tmp_path / spec.hash, progress=False)
    assert begin_from_shorter(LONG, [cut(2)], tmp_path) is None


def test_unfinished_beginnings_do_not_count(tmp_path: Path) -> None:
    train(cut(2), folder=tmp_path / cut(4).hash / "elsewhere", progress=False)
    assert begin_from_shorter(LONG, [cut(4)], tmp_path) is None
    assert not (tmp_path / LONG.hash).exists()
