"""TrainSpec and learning_rate."""

from __future__ import annotations

import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.training import TrainSpec, learning_rate


def spec(**values: object) -> TrainSpec:
    return TrainSpec(dataset="digits", model="fc5-quick", **values)


def rates(**values: object) -> list[float]:
    one = spec(lr=0.1, **values)
    return [learning_rate(one, epoch) for epoch in range(one.epochs)]


def test_constant_schedule() -> None:
    assert rates(epochs=3) == [0.1, 0.1, 0.1]


def test_step_schedule_falls_at_its_milestones() -> None:
    found = rates(epochs=6, schedule="step", milestones=(2, 4), gamma=0.5)
    assert found == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_cosine_schedule_starts_at_the_rate_and_falls_towards_zero() -> None:
    found = rates(epochs=4, schedule="cosine")
    assert found == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2])


def test_warm_up_rises_linearly_to_the_rate() -> None:
    assert rates(epochs=6, warmup_epochs=4) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_cosine_after_warm_up_has_the_rest_of_the_epochs() -> None:
    found = rates(epochs=6, schedule="cosine", warmup_epochs=2)
    assert found[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert found[4] == pytest.approx(0.05)


def test_warm_up_of_every_epoch_is_allowed() -> None:
    assert rates(epochs=2, schedule="cosine", warmup_epochs=2) == pytest.approx([0.05, 0.1])


def test_spec_survives_its_dictionary() -> None:
    one = spec(milestones=(3, 5), schedule="step", train_size=100)
    assert TrainSpec.from_dict(one.to_dict()) == one
    assert TrainSpec.from_dict(one.to_dict()).hash == one.hash


def test_seed_is_part_of_the_hash() -> None:
    assert spec(seed=0).hash != spec(seed=1).hash


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("warmup_epochs", -2),
        ("l1", -0.1),
        ("l1", float("nan")),
        ("l2", -1e-9),
        ("momentum", -0.5),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("schedule", "cosin"),
    ],
)
def test_value_that_cannot_train_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(PruneLimitError, match=f"^{field}={value!r}"):
        spec(**{field: value})
