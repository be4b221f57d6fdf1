"""Sharpness-aware minimisation: steps by hand, what stays as it was, masks, precision, resumption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import magnitude_masks
from prunelimit.checkpoints import load_checkpoint
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.sam import SharpnessAware, perturbation
from prunelimit.throughput import STAGES, Forward, Runtime, throughput
from prunelimit.training import TrainSpec, fit, train
from prunelimit.training_loop import Loop
from prunelimit.training_many import train_groups, train_many

BOTH = [{"sam_rho": 0.5}, {"sam_rho": 0.5, "sam_adaptive": True}]


def spec(**values: Any) -> TrainSpec:
    base = {"dataset": "digits", "model": "fc5-quick", "epochs": 1, "batch_size": 50, "lr": 0.1, "momentum": 0.0}
    return TrainSpec(**base | values)


@pytest.fixture
def small(digits: Dataset) -> DeviceSplit:
    return digits.on_device("train", size=100)


def make(kind: str = "mlp") -> nn.Module:
    torch.manual_seed(7)
    if kind == "dropout":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))
    if kind == "mlp":
        return mlp([64, 16, 10])
    return build_model(kind, input_shape=(1, 8, 8), seed=0)


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def plain_forward(model: nn.Module) -> Forward:
    return Forward(model, functional.cross_entropy, "float32", Runtime(channels_last=False, compiled=False))


def watch(model: nn.Module) -> list[dict[str, Tensor]]:
    """Collect the parameters that each forward pass sees."""
    seen: list[dict[str, Tensor]] = []
    model.register_forward_pre_hook(
        lambda module, _: seen.append({n: p.detach().clone() for n, p in module.named_parameters()})
    )
    return seen


# The step


def test_perturbation_by_hand() -> None:
    (found,) = perturbation([torch.tensor([2.0, -1.0])], [torch.tensor([3.0, 4.0])], 0.5, adaptive=False)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.4]))


def test_adaptive_perturbation_by_hand() -> None:
    # |w| g = (6, 4), w^2 g = (12, 4): one parameter of each kind, the norm is over both, and a zero stays where it is.
    weights, gradients = (
        [torch.tensor([2.0]), torch.tensor([[-1.0, 0.0]])],
        [torch.tensor([3.0]), torch.tensor([[4.0, 9.0]])],
    )
    found = perturbation(weights, gradients, 0.5, adaptive=True)
    torch.testing.assert_close(found[0], torch.tensor([6 / 52**0.5]))
    torch.testing.assert_close(found[1], torch.tensor([[2 / 52**0.5, 0.0]]))


@pytest.mark.parametrize("adaptive", [False, True])
def test_no_gradient_is_no_perturbation(adaptive: bool) -> None:
    (found,) = perturbation([torch.ones(3)], [torch.zeros(3)], 1e6, adaptive=adaptive)
    assert torch.equal(found, torch.zeros(3))


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=6),
    st.floats(0.01, 10),
    st.floats(0.1, 10),
)
def test_radius_and_scale(pairs: list[tuple[float, float]], rho: float, scale: float) -> None:
    w, g = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    (plain,) = perturbation([w], [g], rho, adaptive=False)
    assert float(plain.norm()) == pytest.approx(rho)
    (adaptive,) = perturbation([w], [g], rho, adaptive=True)
    assert float((adaptive / w).norm()) == pytest.approx(rho)
    # A network that is the same function of c w has the gradient g / c there.
    (scaled,) = perturbation([scale * w], [g / scale], rho, adaptive=True)
    torch.testing.assert_close(scaled, scale * adaptive)


def softmax_regression(w: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the mean cross-entropy of ``x w^T + b``, in closed form."""
    logits = x @ w.T + b
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    error = (chances - np.eye(10)[y]) / len(y)
    return error.T @ x, error.sum(0)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.02, 0.3)])
def test_one_step_equals_the_formula(small: DeviceSplit, adaptive: bool, l1: float, l2: float) -> None:
    torch.manual_seed(0)
    model = mlp([64, 10])
    nn.init.normal_(model[1].bias)
    inputs, targets = small.tensors()
    x, y = inputs.flatten(1).double().numpy(), targets.numpy()
    w, b = (p.detach().double().numpy() for p in model.parameters())
    gw, gb = softmax_regression(w, b, x, y)
    tw, tb = (abs(w), abs(b)) if adaptive else (1.0, 1.0)
    norm = np.sqrt(((tw * gw) ** 2).sum() + ((tb * gb) ** 2).sum())
    hw, hb = softmax_regression(w + 0.7 * tw**2 * gw / norm, b + 0.7 * tb**2 * gb / norm, x, y)
    assert np.abs(hw - gw).max() > 1e-2  # the second gradient is another one
    fit(model, small, spec(batch_size=100, sam_rho=0.7, sam_adaptive=adaptive, l1=l1, l2=l2))
    expected = [w - 0.1 * (hw + l1 * np.sign(w) + l2 * w), b - 0.1 * (hb + l1 * np.sign(b) + l2 * b)]
    for p, values in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize("kind", ["resnet8-quick", "preresnet8-quick"])
def test_two_steps_equal_the_definition(small: DeviceSplit, kind: str, options: dict[str, Any], precision: str) -> None:
    model, reference = make(kind), make(kind).train()
    settings = spec(batch_size=100, epochs=2, momentum=0.9, precision=precision, **options)
    fit(model, small, settings)
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    for number in range(2):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(number))  # as the loop's seed 0 orders them
        inputs, targets = (tensor[order] for tensor in small.tensors())

        def gradients(network: nn.Module, x: Tensor = inputs, y: Tensor = targets) -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = functional.cross_entropy(network(x), y)
            return list(torch.autograd.grad(loss, list(network.parameters())))

        weights = [p.detach() for p in reference.parameters()]
        first = gradients(reference)
        sizes = [w.abs() if "sam_adaptive" in options else torch.ones_like(w) for w in weights]
        norm = torch.cat([(s * g).reshape(-1) for s, g in zip(sizes, first, strict=True)]).norm()
        other = copy.deepcopy(reference)
        with torch.no_grad():
            for p, s, g in zip(other.parameters(), sizes, first, strict=True):
                p += 0.5 * s**2 * g / norm
        for v, g, w in zip(velocity, gradients(other), weights, strict=True):
            v.mul_(0.9).add_(g)
            w.sub_(0.1 * v)
    tolerance = 1e-4 if precision == "float32" else 2e-2
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=tolerance, atol=tolerance)


# What stays as it was


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["preresnet8-quick", "mlp"])
def test_weights_and_buffers_come_back_to_the_bit(small: DeviceSplit, kind: str, adaptive: bool) -> None:
    model = make(kind).train()
    forward, (inputs, targets) = plain_forward(model), small.tensors()
    forward(inputs, targets)[0].backward()
    before, seen = copy.deepcopy(model), watch(model)
    first = [p.grad.clone() for p in model.parameters()]
    # So far away that a subtraction would not find back.
    SharpnessAware(forward, list(model.parameters()), [], 1e4, adaptive=adaptive)(inputs, targets)
    assert equal(model, before)
    moved = torch.cat([(seen[0][n] - p.detach()).reshape(-1) for n, p in before.named_parameters()])
    assert float(moved.norm()) > 1e3
    assert not all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), first, strict=True))


def test_weights_come_back_when_the_second_pass_fails(small: DeviceSplit) -> None:
    model = make("preresnet8-quick").train()
    forward, (inputs, targets) = plain_forward(model), small.tensors()
    forward(inputs, targets)[0].backward()
    before = copy.deepcopy(model)
    hook = model[-1].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        SharpnessAware(forward, list(model.parameters()), [], 0.5, adaptive=False)(inputs, targets)
    hook.remove()
    assert equal(model, before)


@pytest.mark.parametrize("options", BOTH)
def test_batch_norm_counts_each_batch_once(small: DeviceSplit, options: dict[str, Any]) -> None:
    model, reference = make("preresnet8-quick"), make("preresnet8-quick").train()
    fit(model, small, spec(batch_size=100, **options))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference(small.tensors()[0][order])
    expected = dict(reference.named_buffers())
    assert expected
    assert all(torch.equal(buffer, expected[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["preresnet8-quick", "mlp"])
def test_no_radius_is_plain_training_to_the_bit(small: DeviceSplit, kind: str, adaptive: bool) -> None:
    settings = spec(momentum=0.9, l1=1e-3, l2=1e-3, epochs=3)
    plain, other = (Loop(make(kind), small, settings) for _ in range(2))
    assert plain.sharpness is None
    other.sharpness = SharpnessAware(other.forward, other.parameters, [], 0.0, adaptive=adaptive)
    for _ in range(3):
        plain.epoch()
        other.epoch()
    assert equal(plain.model, other.model)
    assert [entry["loss"] for entry in plain.history] == [entry["loss"] for entry in other.history]


def test_history_is_that_of_the_weights(small: DeviceSplit) -> None:
    plain, sharp = (fit(make(), small, spec(batch_size=100, **options)) for options in ({}, {"sam_rho": 0.5}))
    for key in ("epoch", "lr", "loss", "accuracy"):
        assert plain[0][key] == sharp[0][key]


def test_throughput_counts_images_once_and_has_the_same_stages(small: DeviceSplit) -> None:
    history = fit(make(), small, spec(epochs=8, sam_rho=0.5))
    found = throughput(history)
    assert set(found["shares"]) == set(STAGES)
    assert history[-1]["images_per_second"] == pytest.approx(100 / history[-1]["seconds"], rel=1e-3)


def test_after_step_sees_the_weights_between_steps(small: DeviceSplit) -> None:
    model, seen, after = make(), [], []
    seen = watch(model)
    fit(
        model,
        small,
        spec(sam_rho=0.5, epochs=2),
        after_step=lambda done: after.append((done, {n: p.detach().clone() for n, p in model.named_parameters()})),
    )
    assert [done for done, _ in after] == [1, 2, 3, 4]
    assert len(seen) == 8
    for (_, weights), begin in zip(after, seen[2::2], strict=False):
        assert all(torch.equal(weights[name], begin[name]) for name in weights)


# Masks and frozen parameters


@pytest.mark.parametrize("options", BOTH)
def test_masked_weights_are_zero_in_both_passes(small: DeviceSplit, options: dict[str, Any]) -> None:
    model = make()
    masks = magnitude_masks(model, 0.7)
    seen = watch(model)
    fit(model, small, spec(epochs=3, momentum=0.9, l1=1e-3, l2=1e-3, **options), masks=masks)
    assert len(seen) == 3 * 2 * 2
    assert all(not weights[name][mask == 0].any() for weights in seen for name, mask in masks.items())
    for begin, moved in zip(seen[::2], seen[1::2], strict=True):
        steps = {n: moved[n] - begin[n] for n in begin}
        if "sam_adaptive" in options:  # a bias that is zero is not moved, a masked weight neither
            steps = {n: torch.where(begin[n] != 0, step / begin[n].abs(), 0) for n, step in steps.items()}
        # The gradient of masked weights has no part in the norm.
        assert float(torch.cat([s.reshape(-1) for s in steps.values()]).norm()) == pytest.approx(0.5, rel=1e-4)
    assert all((dict(model.named_parameters())[name][mask == 1] != 0).all() for name, mask in masks.items())


def test_frozen_parameters_do_not_move(small: DeviceSplit) -> None:
    model = make()
    model[1].weight.requires_grad_(False)
    seen = watch(model)
    fit(model, small, spec(sam_rho=0.5), masks={"1.weight": torch.ones(16, 64)})
    assert len(seen) == 4
    assert all(torch.equal(weights["1.weight"], model[1].weight) for weights in seen)


# Resumption and runtime


@pytest.mark.parametrize("kind", ["mlp", "dropout", "preresnet8-quick"])
@pytest.mark.parametrize("options", [*BOTH, {"sam_rho": 0.1, "precision": "bfloat16", "augment": True}])
def test_interrupted_training_gives_the_same_bits(
    tmp_path: Path, digits: Dataset, kind: str, options: dict[str, Any]
) -> None:
    data, settings = digits.on_device("train", size=150), spec(epochs=3, batch_size=32, momentum=0.9, **options)
    masks = {"1.weight": (torch.arange(16 * 64) % 3 > 0).float().view(16, 64)} if kind == "mlp" else None
    whole = make(kind)
    expected = fit(whole, data, settings, masks=masks)

    for place in (2, 1, 4):  # a new process knows nothing but the folder
        loop = Loop(make(kind), data, settings, masks)
        loop.load(tmp_path)

        def stop(loop: Loop = loop, place: int = place) -> bool:
            if loop.place == place:
                loop.save(tmp_path)
            return loop.place == place

        while loop.epoch(stop) is not None:
            pass
    assert load_checkpoint(tmp_path)[1]["within"]["place"] == 4
    model = make(kind)
    history = fit(model, data, settings, masks=masks, folder=tmp_path)
    assert equal(model, whole)
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]


def test_channels_last_changes_rounding_only(small: DeviceSplit) -> None:
    plain, last = make("preresnet8-quick"), make("preresnet8-quick")
    settings = spec(sam_rho=0.1, momentum=0.9)
    fit(plain, small, settings, runtime=Runtime(channels_last=False))
    fit(last, small, settings, runtime=Runtime(channels_last=True))
    for a, b in zip(plain.state_dict().values(), last.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_training_is_the_same_up_to_rounding(digits: Dataset, precision: str) -> None:
    # 60 images in batches of 25: two are compiled, the short one is not.
    plain, compiled, data = make("preresnet8-quick"), make("preresnet8-quick"), digits.on_device("train", size=60)
    settings = spec(batch_size=25, sam_rho=0.1, precision=precision)
    fit(plain, data, settings)
    history = fit(compiled, data, settings, runtime=Runtime(compiled=True))
    assert history[0]["runtime"]["compiled"]
    tolerance = 1e-3 if precision == "float32" else 0.05
    for a, b in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Specs


def test_plain_sgd_names_the_run_as_it_always_did() -> None:
    assert not {"sam_rho", "sam_adaptive"} & spec().to_dict().keys()
    assert spec(sam_rho=0).hash == spec().hash
    assert len({one.hash for one in (spec(), spec(sam_rho=0.1), spec(sam_rho=0.2), spec(**BOTH[1]))}) == 4
    assert TrainSpec.from_dict(spec(**BOTH[1]).to_dict()) == spec(**BOTH[1])


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_radius_that_is_none_is_refused(rho: float) -> None:
    with pytest.raises(PruneLimitError, match=r"^sam_rho=.* must be zero or a positive number"):
        spec(sam_rho=rho)


def test_adaptive_without_a_radius_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^sam_adaptive=True .* set sam_rho"):
        spec(sam_adaptive=True)


def test_networks_at_once_refuse_it_and_groups_train_one_at_a_time(digits: Dataset) -> None:
    specs = [spec(seed=seed, train_size=100, sam_rho=0.5) for seed in (0, 1)]
    with pytest.raises(PruneLimitError, match=r"^sam_rho=0.5 is not possible .* train_groups"):
        train_many(specs)
    for one, found in zip(specs, train_groups([*specs, spec(train_size=100)]), strict=False):
        alone = make("fc5-quick") if one.seed == 0 else build_model("fc5-quick", input_shape=(1, 8, 8), seed=one.seed)
        fit(alone, digits.on_device("train", size=100), one)
        assert equal(found.model, alone)


def test_train_takes_it_from_the_spec(digits: Dataset, tmp_path: Path) -> None:
    settings = spec(model="preresnet8-quick", train_size=100, sam_rho=0.5)
    found, alone = train(settings, dataset=digits, folder=tmp_path), make("preresnet8-quick")
    fit(alone, digits.on_device("train", size=100), settings)
    assert equal(found.model, alone)
