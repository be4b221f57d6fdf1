"""fit and evaluate: one step by hand, masks, augmentation, divergence, history."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import magnitude_masks
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.training import TrainSpec, evaluate, fit


def spec(**values: Any) -> TrainSpec:
    return TrainSpec(**{"dataset": "digits", "model": "mlp", "epochs": 1, "lr": 0.1, "momentum": 0.0} | values)


@pytest.fixture
def small(digits: Dataset) -> DeviceSplit:
    return digits.on_device("train", size=100)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp([64, 12, 10])


def gradients(model: nn.Module, data: DeviceSplit) -> dict[str, Tensor]:
    inputs, targets = data.tensors()
    loss = functional.cross_entropy(model(inputs), targets)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.02, 0.0), (0.0, 0.3), (0.02, 0.3)])
def test_one_step_equals_the_formula(model: nn.Sequential, small: DeviceSplit, l1: float, l2: float) -> None:
    with torch.no_grad():
        model[1].weight[0, :5] = 0  # the subgradient of |w| at zero is taken as zero
    before, grads = copy.deepcopy(dict(model.named_parameters())), gradients(model, small)
    fit(model, small, spec(batch_size=100, l1=l1, l2=l2))
    for name, p in model.named_parameters():
        w = before[name]
        torch.testing.assert_close(p, w - 0.1 * (grads[name] + l1 * w.sign() + l2 * w), rtol=1e-5, atol=1e-7)


def test_second_step_has_momentum(model: nn.Sequential, small: DeviceSplit) -> None:
    reference = copy.deepcopy(model)
    fit(model, small, spec(batch_size=100, epochs=2, momentum=0.9, lr=0.05))
    velocity: dict[str, Tensor] = {}
    for _ in range(2):
        grads = gradients(reference, small)
        with torch.no_grad():
            for name, p in reference.named_parameters():
                velocity[name] = 0.9 * velocity.get(name, torch.zeros_like(p)) + grads[name]
                p -= 0.05 * velocity[name]
    for p, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_do_not_move(model: nn.Sequential, small: DeviceSplit) -> None:
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    fit(model, small, spec(l1=0.1, l2=0.1))
    assert torch.equal(model[1].weight, before)


def test_masks_stay_exactly_zero(model: nn.Sequential, small: DeviceSplit) -> None:
    masks, seen = magnitude_masks(model, 0.7), []
    model.register_forward_pre_hook(
        lambda module, _: seen.append(
            all(not p[masks[n] == 0].any() for n, p in module.named_parameters() if n in masks)
        )
    )
    fit(model, small, spec(epochs=5, batch_size=16, momentum=0.9, l1=1e-3, l2=1e-3), masks=masks)
    assert len(seen) == 5 * 7
    assert all(seen)
    for name, mask in masks.items():
        weight = dict(model.named_parameters())[name]
        assert not weight[mask == 0].any()
        assert weight[mask == 1].all()


def test_training_learns_the_digits(trained_digits: nn.Module, digits: Dataset) -> None:
    assert evaluate(trained_digits, digits.on_device("train"))[1] > 0.98
    assert evaluate(trained_digits, digits.on_device("test"))[1] > 0.9


def test_l1_makes_weights_small(small: DeviceSplit, model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    fit(model, small, spec(epochs=10, l1=0.0))
    fit(other, small, spec(epochs=10, l1=0.01))
    assert other[1].weight.abs().sum() < 0.9 * model[1].weight.abs().sum()


def test_same_seed_gives_the_same_bits(small: DeviceSplit, model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    for one in (model, other):
        torch.manual_seed(id(one) % 1000)  # the global generator must not matter
        fit(one, small, spec(epochs=2, batch_size=16, augment=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("augment", [False, True])
def test_seed_changes_the_order(small: DeviceSplit, model: nn.Sequential, augment: bool) -> None:
    other = copy.deepcopy(model)
    fit(model, small, spec(batch_size=16, seed=0, augment=augment))
    fit(other, small, spec(batch_size=16, seed=1, augment=augment))
    assert not torch.equal(model[1].weight, other[1].weight)


def test_order_changes_from_epoch_to_epoch(small: DeviceSplit, model: nn.Sequential) -> None:
    batches: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
    fit(model, small, spec(batch_size=100, epochs=2))
    assert not torch.equal(batches[0], batches[1])
    torch.testing.assert_close(batches[0].sum(0), batches[1].sum(0), rtol=1e-4, atol=1e-3)


def test_every_image_is_seen_once_an_epoch(small: DeviceSplit, model: nn.Sequential) -> None:
    batches: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
    fit(model, small, spec(batch_size=16))
    assert [len(b) for b in batches] == [16] * 6 + [4]
    seen = sorted(map(tuple, torch.cat(batches).flatten(1).tolist()))
    assert seen == sorted(map(tuple, small.tensors()[0].flatten(1).tolist()))


def test_augmentation_changes_training_only(small: DeviceSplit, model: nn.Sequential) -> None:
    plain, augmented = copy.deepcopy(model), copy.deepcopy(model)
    fit(plain, small, spec(batch_size=100))
    fit(augmented, small, spec(batch_size=100, augment=True))
    assert not torch.equal(plain[1].weight, augmented[1].weight)
    assert evaluate(plain, small) == evaluate(plain, small)


def test_global_random_state_is_not_touched(small: DeviceSplit, model: nn.Sequential) -> None:
    state = torch.get_rng_state()
    fit(model, small, spec(augment=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_history_reports_the_mean_loss_of_the_epoch(small: DeviceSplit, model: nn.Sequential) -> None:
    expected, accuracy = evaluate(model, small)
    entry = fit(model, small, spec(batch_size=100))[0]
    assert entry["epoch"] == 1
    assert entry["lr"] == 0.1
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    assert entry["accuracy"] == accuracy


def test_history_holds_the_scheduled_rates(small: DeviceSplit, model: nn.Sequential) -> None:
    history = fit(model, small, spec(epochs=3, schedule="step", milestones=(1, 2), gamma=0.5))
    assert [entry["lr"] for entry in history] == pytest.approx([0.1, 0.05, 0.025])


def test_test_split_is_measured_every_so_many_epochs_and_at_the_end(small: DeviceSplit, model: nn.Sequential) -> None:
    history = fit(model, small, spec(epochs=5), test=small, test_every=2)
    assert [entry["epoch"] for entry in history if "test_loss" in entry] == [2, 4, 5]
    assert (history[-1]["test_loss"], history[-1]["test_accuracy"]) == evaluate(model, small)


def test_no_epochs_leave_the_model_alone(small: DeviceSplit, model: nn.Sequential) -> None:
    before = copy.deepcopy(model.state_dict())
    assert fit(model, small, spec(epochs=0)) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


def test_divergence_is_explained(small: DeviceSplit, model: nn.Sequential) -> None:
    with pytest.raises(PruneLimitError, match=r"^lr=1e\+20: the loss became .* in epoch \d"):
        fit(model, small, spec(lr=1e20, epochs=5, batch_size=16))


@pytest.mark.parametrize("masks", [{"1.weigth": torch.ones(12, 64)}, {"1.weight": torch.ones(64)}])
def test_masks_that_do_not_fit_are_refused(small: DeviceSplit, model: nn.Sequential, masks: dict[str, Tensor]) -> None:
    # Once wrong: an unknown name is a KeyError, and a mask of another shape is broadcast.
    with pytest.raises(PruneLimitError, match="masks"):
        fit(model, small, spec(), masks=masks)


# evaluate


def test_evaluation_does_not_depend_on_the_batch_size(digits: Dataset, model: nn.Sequential) -> None:
    data = digits.on_device("test")
    whole, parts = evaluate(model, data), evaluate(model, data, batch_size=7)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == whole[1]


def test_evaluation_is_cross_entropy_and_share_of_right_answers(small: DeviceSplit, model: nn.Sequential) -> None:
    inputs, targets = small.tensors()
    with torch.no_grad():
        logits = model(inputs).double()
    loss, accuracy = evaluate(model, small)
    assert loss == pytest.approx(float(functional.cross_entropy(logits, targets)), rel=1e-6)
    assert accuracy == int((logits.argmax(1) == targets).sum()) / 100


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode_and_moves_no_statistics(small: DeviceSplit, training: bool) -> None:
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0).train(training)
    before = copy.deepcopy(model.state_dict())
    evaluate(model, small)
    assert model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_evaluation_restores_the_mode_when_it_fails(small: DeviceSplit) -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        evaluate(model, small)
    assert model.training
