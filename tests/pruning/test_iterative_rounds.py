"""iterative_rounds: against a loop written out by hand, nested masks, exact counts, rewinding."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunelimit import apply_masks, magnitude_masks
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model
from prunelimit.pruning.iterative import (
    IterativeSpec,
    Round,
    iterative_rounds,
    prune_iteratively,
    removal_order,
    round_counts,
)
from prunelimit.pruning.magnitude import removed_count
from prunelimit.training import TrainSpec, evaluate, fit

TRAIN = TrainSpec(dataset="digits", model="fc5-quick", epochs=3, batch_size=32, lr=0.05)
SPEC = IterativeSpec(train=TRAIN, rounds=4, share=0.4, rewind=7)


@pytest.fixture(scope="module")
def data(digits: Dataset) -> DeviceSplit:
    return digits.on_device("train", size=150)


def initial() -> nn.Module:
    return build_model("fc5-quick", input_shape=(1, 8, 8), seed=0)


@pytest.fixture(scope="module")
def rounds(data: DeviceSplit) -> list[Round]:
    return list(iterative_rounds(initial(), data, SPEC))


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])


@given(total=st.integers(2, 10**7), share=st.floats(0.01, 0.9), sparsity=st.floats(0, 1, exclude_max=True))
def test_rounds_remove_their_share_and_end_on_the_target(total: int, share: float, sparsity: float) -> None:
    spec = dataclasses.replace(SPEC, share=share, rounds=10**6)
    counts = round_counts(total, spec, sparsity)
    wanted = removed_count(sparsity, total)
    assert counts[0] == 0
    assert counts[-1] == wanted
    for before, after in itertools.pairwise(counts):
        exact = share * (total - before)
        assert before < after
        assert after == wanted or exact * (1 - 1e-9) <= after - before < exact + 1
    # No round too many: the last but one is short of the target.
    free = round_counts(total, dataclasses.replace(spec, rounds=len(counts) - 1))
    assert counts[:-1] == free[: len(counts) - 1]


def test_twenty_rounds_of_a_fifth() -> None:
    counts = round_counts(10**9, IterativeSpec(train=TRAIN))
    assert len(counts) == 21
    for number, removed in enumerate(counts):
        assert removed / 10**9 == pytest.approx(1 - 0.8**number, abs=1e-7)


def test_a_target_beyond_the_rounds_is_refused_with_the_number_it_takes() -> None:
    needed = math.ceil(math.log(0.005) / math.log(0.8))
    with pytest.raises(PruneLimitError, match=rf"set rounds={needed}\."):
        round_counts(10**6, IterativeSpec(train=TRAIN), 0.995)
    assert round_counts(10**6, IterativeSpec(train=TRAIN, rounds=needed), 0.995)[-1] == 995_000


@pytest.mark.parametrize("rewind", [0, 5, 7, 14])
def test_each_round_is_what_one_does_by_hand(data: DeviceSplit, rewind: int) -> None:
    spec = dataclasses.replace(SPEC, rewind=rewind, rounds=2)
    rounds = list(iterative_rounds(initial(), data, spec))
    dense = initial()
    early = copy.deepcopy(dense.state_dict())

    def keep(iteration: int) -> None:
        if iteration == rewind:
            early.update(copy.deepcopy(dense.state_dict()))

    fit(dense, data, spec.train, after_step=keep)
    assert len(rounds) == spec.rounds + 1
    trained = dense
    for number, one in enumerate(rounds):
        if number:
            masks = magnitude_masks(trained, one.removed / 5920)
            trained = initial()
            trained.load_state_dict(early)
            apply_masks(trained, masks)
            fit(trained, data, spec.train, masks=masks, first_iteration=rewind)
            assert all(torch.equal(masks[name], one.masks[name]) for name in masks)
        state = one.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
        assert (one.summary["train_loss"], one.summary["train_accuracy"]) == evaluate(trained, data)


def test_masks_are_nested_and_counted(rounds: list[Round]) -> None:
    for one, other in itertools.pairwise(rounds):
        assert not (flat(other.masks) > flat(one.masks)).any()
    for one in rounds:
        assert int((flat(one.masks) == 0).sum()) == one.removed == one.summary["removed"]
        weights = {name: p for name, p in one.model.named_parameters() if name in one.masks}
        assert not flat(weights)[flat(one.masks) == 0].any()
        assert one.summary["sparsity"] == pytest.approx(one.removed / 5920)


def test_a_kept_weight_of_zero_goes_after_the_pruned_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    masks = {"0.weight": torch.tensor([[1.0, 1.0, 0.0]]), "1.weight": torch.tensor([[0.0], [1.0]])}
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-2.0, 0.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    assert removal_order(model, masks).tolist() == [2, 3, 1, 4, 0]


def test_a_consumer_may_spoil_the_network(data: DeviceSplit, rounds: list[Round]) -> None:
    for number, one in enumerate(iterative_rounds(initial(), data, SPEC)):
        assert torch.equal(flat(one.masks), flat(rounds[number].masks))
        with torch.no_grad():
            for p in one.model.parameters():
                p.zero_()


def test_finished_rounds_are_not_trained_again(
    data: DeviceSplit, rounds: list[Round], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(iterative_rounds(initial(), data, SPEC, folder=tmp_path))
    assert not list(tmp_path.rglob("training"))

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("prunelimit.pruning.retraining.fit", never)
    again = list(iterative_rounds(initial(), data, SPEC, folder=tmp_path, deadline=time.monotonic() - 1))
    for one, other in zip(again, rounds, strict=True):
        assert {k: v for k, v in one.summary.items() if k != "seconds"} == {
            k: v for k, v in other.summary.items() if k != "seconds"
        }
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
        assert not one.model.training


def test_the_pruner_gives_the_last_round_and_the_history_of_all(data: DeviceSplit, rounds: list[Round]) -> None:
    found = prune_iteratively(initial(), data, rounds[2].removed / 5920, SPEC)
    assert found is not None
    assert [entry["removed"] for entry in found.history] == [one.removed for one in rounds[:3]]
    assert torch.equal(flat(found.masks), flat(rounds[2].masks))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rewind": 15}, "rewind=15"), ({"share": 1.0}, "share"), ({"rounds": -1}, "rounds"), ({"rewind": -1}, "rewind")],
)
def test_settings_that_make_no_sense_are_refused(data: DeviceSplit, values: dict[str, float], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        list(iterative_rounds(initial(), data, dataclasses.replace(SPEC, **values)))
