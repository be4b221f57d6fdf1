"""What the pruners that train promise alike: exact sparsity, seeds, an untouched network, resumption bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from prunelimit import training
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model
from prunelimit.pruning import retraining
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.iterative import IterativeSpec, prune_iteratively
from prunelimit.pruning.magnitude import removed_count
from prunelimit.pruning.rare_gems import RareGemsSpec, prune_rare_gems
from prunelimit.pruning.retraining import TrainingPrunerSpec
from prunelimit.pruning.smart_ratio import SmartRatioSpec, prune_smart_ratio
from prunelimit.training import TrainSpec

METHODS: dict[str, tuple[Callable[..., Pruned | None], type[TrainingPrunerSpec], dict[str, Any]]] = {
    "iterative": (prune_iteratively, IterativeSpec, {"rewind": 7, "share": 0.5}),
    "smart_ratio": (prune_smart_ratio, SmartRatioSpec, {"classifier_density": 0.1}),
    "rare_gems": (prune_rare_gems, RareGemsSpec, {"period": 2, "l2_scores": 1e-3}),
}
BATCH = 32


def spec(method: str, epochs: int = 3, seed: int = 0, **values: Any) -> TrainingPrunerSpec:
    _, kind, extra = METHODS[method]
    train = TrainSpec(dataset="digits", model="fc5-quick", epochs=epochs, batch_size=BATCH, lr=0.05)
    if kind is RareGemsSpec:
        extra = extra | {"search": dataclasses.replace(train, schedule="cosine", lr=0.2)}
    return kind(**{"train": train, "seed": seed, **extra, **values})


def initial(seed: int = 0, name: str = "fc5-quick") -> nn.Module:
    return build_model(name, input_shape=(1, 8, 8), seed=seed)


@pytest.fixture(scope="module")
def data(digits: Dataset) -> DeviceSplit:
    return digits.on_device("train", size=150)


def prune(method: str, data: DeviceSplit, sparsity: float = 0.8, model: nn.Module | None = None, **options: Any) -> Any:
    given_spec = options.pop("spec", None) or spec(method)
    return METHODS[method][0](model or initial(), data, sparsity, given_spec, **options)


def same(one: Pruned, other: Pruned) -> bool:
    pairs = [(one.masks, other.masks), (one.weights, other.weights)]
    return all(set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a) for a, b in pairs)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sparsity=st.floats(0, 0.97))
def test_exactly_the_wanted_number_of_weights_goes(method: str, digits: Dataset, sparsity: float) -> None:
    early = {"rewind": 1} if method == "iterative" else {}
    found = prune(method, digits.on_device("train", size=40), sparsity, spec=spec(method, epochs=1, **early))
    keep = torch.cat([m.reshape(-1) for m in found.masks.values()])
    assert set(keep.tolist()) <= {0.0, 1.0}
    assert int((keep == 0).sum()) == removed_count(sparsity, len(keep))
    assert all(not found.weights[name][mask == 0].any() for name, mask in found.masks.items())


@pytest.mark.parametrize("name", ["fc5-quick", "resnet8-quick"])
@pytest.mark.parametrize("method", METHODS)
def test_the_network_stays_as_it_was_and_the_result_is_whole(method: str, name: str, data: DeviceSplit) -> None:
    model = initial(name=name)
    before = copy.deepcopy(model.state_dict())
    found = prune(method, data, model=model)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert set(found.weights) == set(before)
    applied = found.applied(model).state_dict()
    assert all(torch.equal(applied[n], found.weights[n]) for n in before)
    # It was trained: what is kept has moved, biases too.
    assert not any(torch.equal(applied[n], before[n]) for n in before if n.endswith(("weight", "bias")))
    assert found.history
    json.dumps(found.history, allow_nan=False)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method: str, data: DeviceSplit) -> None:
    one, again, other = (prune(method, data, spec=spec(method, seed=seed)) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)


def test_epochs_are_counted(data: DeviceSplit) -> None:
    per_epoch = -(-len(data) // BATCH)
    assert prune("smart_ratio", data).epochs == 3
    assert prune("rare_gems", data).epochs == 3 + 3
    # 0.8 takes three rounds of a half: 50, 75, 80 %.
    assert prune("iterative", data).epochs == pytest.approx(3 + 3 * (3 - 7 / per_epoch))


@pytest.mark.parametrize("method", METHODS)
def test_a_deadline_interrupts_and_the_next_call_goes_on(method: str, data: DeviceSplit, tmp_path: Path) -> None:
    straight = prune(method, data)
    found, interruptions, budget = None, 0, 0.0
    while found is None:
        found = prune(method, data, folder=tmp_path, deadline=time.monotonic() + budget)
        interruptions, budget = interruptions + (found is None), 0.002 + budget * 1.4
    assert interruptions >= 1
    assert same(found, straight)


@pytest.mark.parametrize("method", METHODS)
def test_a_deadline_that_has_passed_gives_nothing(method: str, data: DeviceSplit) -> None:
    assert prune(method, data, deadline=time.monotonic() - 1) is None


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_a_process_killed_at_any_iteration_goes_on(
    method: str, data: DeviceSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = prune(method, data)
    drawn, left = random.Random(5), [0]
    monkeypatch.setattr(training, "SAVE_INTERVAL", 0.0)

    def mortal(*arguments: Any, after_step: Callable[[int], None] | None = None, **options: Any) -> Any:
        def step(iteration: int) -> None:
            if after_step is not None:
                after_step(iteration)
            left[0] -= 1
            if not left[0]:
                raise KilledError

        return training.fit(*arguments, after_step=step, **options)

    monkeypatch.setattr(retraining, "fit", mortal)
    found, kills = None, 0
    while found is None:
        left[0] = drawn.randrange(1, 14)
        try:
            found = prune(method, data, folder=tmp_path)
        except KilledError:
            kills += 1
    assert kills >= 2
    assert same(found, straight)


@pytest.mark.parametrize("method", METHODS)
def test_targets_may_share_a_folder(method: str, data: DeviceSplit, tmp_path: Path) -> None:
    for sparsity in (0.6, 0.8, 0.6):
        assert same(prune(method, data, sparsity, folder=tmp_path), prune(method, data, sparsity))


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_with_other_settings_is_refused(method: str, data: DeviceSplit, tmp_path: Path) -> None:
    prune(method, data, folder=tmp_path)
    with pytest.raises(PruneLimitError, match="folder"):
        prune(method, data, folder=tmp_path, spec=spec(method, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_specs_survive_a_round_trip(method: str) -> None:
    one = spec(method, seed=4)
    again = type(one).from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert again.hash == one.hash
    with pytest.raises(PruneLimitError, match="train"):
        type(one).from_dict({key: value for key, value in one.to_dict().items() if key != "train"})


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_of_the_pruner_is_that_of_its_trainings(method: str) -> None:
    one = spec(method)
    other = dataclasses.replace(one, seed=9)
    trainings = [value for value in vars(other).values() if isinstance(value, TrainSpec)]
    assert trainings
    assert all(training.seed == 9 for training in trainings)
    assert type(one).begins == "initial"
    stray = dataclasses.replace(one, train=dataclasses.replace(one.train, seed=77))
    assert stray.hash == one.hash != other.hash


@pytest.mark.parametrize("method", METHODS)
def test_published_settings_are_there(method: str) -> None:
    kind = METHODS[method][1]
    one = kind.published("cifar10", "resnet20", seed=3)
    assert one.train.dataset == "cifar10"
    assert one.train.milestones == (80, 120)
    assert one.seed == one.train.seed == 3
