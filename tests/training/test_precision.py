"""bfloat16 trains as well as float32, with weights in float32; measurements are float32 whatever the training was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model
from prunelimit.precision import autocast, full_float32, training_rounding
from prunelimit.throughput import Runtime
from prunelimit.training import TrainSpec, evaluate, fit


def spec(**values: Any) -> TrainSpec:
    base = {"dataset": "digits", "model": "fc5-quick", "epochs": 30, "batch_size": 64, "lr": 0.02, "l1": 1e-3}
    return TrainSpec(**base | values)


def build(name: str, seed: int = 0) -> nn.Module:
    return build_model(name, input_shape=(1, 8, 8), seed=seed)


def test_unknown_precision_is_refused_with_the_nearest() -> None:
    with pytest.raises(PruneLimitError, match=r"precision='bfloat' is unknown\. Did you mean 'bfloat16'"):
        spec(precision="bfloat")


def test_float32_names_the_run_as_it_always_did() -> None:
    assert "precision" not in spec().to_dict()
    assert spec(precision="float32").hash == spec().hash
    assert spec(precision="bfloat16").hash != spec().hash


@pytest.mark.parametrize(
    ("model", "settings"),
    [("fc5-quick", {"epochs": 12, "schedule": "cosine"}), ("resnet8-quick", {"epochs": 3, "l1": 1e-4})],
)
def test_bfloat16_reaches_the_accuracy_of_float32(digits: Dataset, model: str, settings: dict[str, Any]) -> None:
    train, test = digits.on_device("train"), digits.on_device("test")
    found = {}
    for precision in ("float32", "bfloat16"):
        network = build(model)
        fit(network, train, spec(model=model, precision=precision, **settings))
        found[precision] = evaluate(network, train)[0], evaluate(network, test)[1]
        assert all(p.dtype == torch.float32 for p in network.parameters())
    # 360 test images: two standard deviations of an accuracy of 0.95 are 0.023.
    assert found["bfloat16"][1] == pytest.approx(found["float32"][1], abs=0.03)
    assert found["bfloat16"][1] > 0.9
    assert found["bfloat16"][0] == pytest.approx(found["float32"][0], rel=0.2)


def test_training_multiplies_in_bfloat16_and_evaluates_in_float32(digits: Dataset) -> None:
    network, data, seen = build("fc5-quick"), digits.on_device("train", size=100), []
    network[1].register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))
    fit(network, data, spec(epochs=1, precision="bfloat16"), test=data)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}


def test_one_step_in_bfloat16_is_the_step_in_float32_up_to_rounding(digits: Dataset) -> None:
    data, steps = digits.on_device("train", size=64), []
    for precision in ("float32", "bfloat16"):
        network = build("fc5-quick")
        before = copy.deepcopy(network.state_dict())
        fit(network, data, spec(epochs=1, lr=1.0, l1=0.0, momentum=0.0, precision=precision))
        steps.append(torch.cat([(v - before[k]).reshape(-1) for k, v in network.state_dict().items()]))
    error = (steps[0] - steps[1]).norm() / steps[0].norm()
    assert 1e-4 < error < 0.03  # 2^-8 per factor


def trained_layouts(small: DeviceSplit, settings: TrainSpec) -> list[dict[str, Tensor]]:
    found = []
    for channels_last in (False, True):
        network = build("resnet8-quick")
        fit(network, small, settings, runtime=Runtime(channels_last=channels_last))
        assert all(p.is_contiguous() for p in network.parameters())
        found.append(network.state_dict())
    return found


def test_channels_last_changes_rounding_only(digits: Dataset) -> None:
    # Once wrong: the fused optimiser walks through weight and momentum in the order of memory, which was not the same.
    settings = spec(model="resnet8-quick", epochs=1, augment=True, l1=1e-4)
    plain, last = trained_layouts(digits.on_device("train", size=320), settings)
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-4)


def test_layout_is_part_of_the_training_only(digits: Dataset) -> None:
    network, seen = build("resnet8-quick"), []
    network[0].register_forward_hook(
        lambda module, inputs, _: seen.append(module.weight.is_contiguous(memory_format=torch.channels_last))
    )
    runtime = Runtime(channels_last=True)
    fit(network, digits.on_device("train", size=64), spec(epochs=1, model="resnet8-quick"), runtime=runtime)
    assert seen == [True]


@pytest.mark.parametrize(
    ("context", "matmul", "convolutions"), [("training", "high", True), ("full", "highest", False)]
)
def test_switches_of_cuda_are_set_and_put_back(context: str, matmul: str, convolutions: bool) -> None:
    device, cudnn = torch.device("cuda"), torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    with training_rounding("bfloat16", device) if context == "training" else full_float32(device):
        assert torch.get_float32_matmul_precision() == matmul
        assert cudnn.allow_tf32 is convolutions
        assert cudnn.benchmark is convolutions
        with full_float32(device):
            assert not cudnn.allow_tf32
        assert cudnn.allow_tf32 is convolutions
    assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark) == before


def test_float32_training_rounds_as_float32() -> None:
    with training_rounding("float32", torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32


def test_switches_of_cuda_are_put_back_after_an_error() -> None:
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(ValueError, match="inside"), full_float32(torch.device("cuda")):
        raise ValueError("inside")
    assert torch.backends.cudnn.allow_tf32 is before


def test_autocast_of_float32_does_nothing() -> None:
    with autocast("float32", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast("bfloat16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
