"""Limits found by pruning agree with brute force, and the fine-tuned one with its control."""

import copy

import pytest
import torch
from torch import nn

from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks, magnitude_masks
from prunelimit.pruning.measured import fine_tuned_limit, largest_sparsity, pruned_copy, sweep
from prunelimit.training import TrainSpec, evaluate, fit

SPEC = TrainSpec(dataset="digits", model="fc5-quick", epochs=25, batch_size=64, lr=0.02, l1=1e-3)
TUNE = TrainSpec(dataset="digits", model="fc5-quick", epochs=3, batch_size=64, lr=0.02, l1=1e-3, seed=9)


@pytest.fixture(scope="module")
def splits() -> tuple[DeviceSplit, DeviceSplit]:
    data = load_dataset("digits")
    return data.on_device("train"), data.on_device("test")


@pytest.fixture(scope="module")
def model(splits: tuple[DeviceSplit, DeviceSplit]) -> nn.Module:
    model = build_model("fc5-quick", input_shape=(1, 8, 8), seed=0)
    fit(model, splits[0], SPEC)
    return model


def test_a_pruned_copy_leaves_the_network_alone(model):
    before = copy.deepcopy(model.state_dict())
    pruned = pruned_copy(model, MagnitudePath(model), 0.7)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    zeros = sum(int((m.weight == 0).sum()) for m in pruned.modules() if isinstance(m, nn.Linear))
    assert zeros == round(0.7 * 5920)


def test_a_sweep_evaluates_what_one_would_prune_by_hand(model, splits):
    points = sweep(model, *splits, [0.0, 0.6, 0.95])
    for point in points:
        by_hand = apply_masks(copy.deepcopy(model), magnitude_masks(model, point.sparsity))
        assert (point.train_loss, point.train_accuracy) == evaluate(by_hand, splits[0])
        assert (point.test_loss, point.test_accuracy) == evaluate(by_hand, splits[1])


def test_the_largest_sparsity_is_that_of_the_whole_grid(model, splits):
    dense = evaluate(model, splits[1])[1]
    grid = [k / 50 for k in range(1, 50)]
    accuracy = {s: evaluate(pruned_copy(model, MagnitudePath(model), s), splits[1])[1] for s in grid}
    wanted = {"dense": dense, "half": dense / 2, "never": 1.1}
    found = largest_sparsity(model, splits[1], wanted, step=0.02)
    for name, value in wanted.items():
        expected = max((s for s in grid if accuracy[s] >= value), default=0.0)
        assert found[name] == pytest.approx(expected)
    assert found["half"] >= found["dense"] > 0
    assert found["never"] == 0


@pytest.fixture(scope="module")
def tuned(model, splits):
    return fine_tuned_limit(model, splits[0], TUNE, epsilon=0.02, guess=0.8, tolerance=0.02)


def test_the_reference_is_the_dense_network_after_the_same_training(model, splits, tuned):
    control = copy.deepcopy(model)
    fit(control, splits[0], TUNE)
    assert tuned.reference_loss == evaluate(control, splits[0])[0]


def test_the_bracket_separates_good_from_bad(tuned):
    assert tuned.interval[1] - tuned.interval[0] <= 0.02
    allowed = tuned.reference_loss + 0.02
    for sparsity, loss in tuned.points:
        if sparsity <= tuned.interval[0]:
            assert loss <= allowed
        if sparsity >= tuned.interval[1]:
            assert loss > allowed


def test_fine_tuning_goes_further_than_one_cut(model, splits, tuned):
    one_shot = evaluate(pruned_copy(model, MagnitudePath(model), tuned.sparsity), splits[0])[0]
    assert one_shot > tuned.reference_loss + 0.02


def test_an_interrupted_search_goes_on_from_its_memory(model, splits, tuned):
    memory = {}

    def memo(key, compute):
        if key not in memory:
            if len(memory) == 2:
                raise InterruptedError
            memory[key] = compute()
        return memory[key]

    options = {"epsilon": 0.02, "guess": 0.8, "tolerance": 0.02}
    with pytest.raises(InterruptedError):
        fine_tuned_limit(model, splits[0], TUNE, memo=memo, **options)
    remembered = dict(memory)

    def go_on(key, compute):
        return remembered.pop(key) if key in remembered else compute()

    assert fine_tuned_limit(model, splits[0], TUNE, memo=go_on, **options) == tuned
    assert not remembered


@pytest.mark.parametrize("options", [{"guess": 0.0}, {"guess": 1.0}, {"tolerance": 0.0}])
def test_a_search_that_cannot_end_is_refused(model, splits, options):
    with pytest.raises(PruneLimitError, match="guess"):
        fine_tuned_limit(model, splits[0], TUNE, epsilon=0.02, **options)
