"""What a training says about its speed, and how it chooses the way it is carried out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunelimit import throughput as module
from prunelimit.datasets import Dataset
from prunelimit.models import build_model
from prunelimit.throughput import COMPILE_PAYS, STAGES, Runtime, StageClock, throughput
from prunelimit.training import TrainSpec, fit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def spec(**values: Any) -> TrainSpec:
    return TrainSpec(**{"dataset": "digits", "model": "resnet8-quick", "epochs": 3, "batch_size": 64} | values)


def build() -> nn.Module:
    return build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)


# Runtime


@pytest.mark.parametrize(
    ("model", "device", "iterations", "expected"),
    [
        ("resnet8-quick", CPU, 10**6, (False, False)),
        ("resnet8-quick", CUDA, 10**6, (True, True)),
        ("resnet8-quick", CUDA, COMPILE_PAYS - 1, (True, False)),
        ("fc5-quick", CUDA, COMPILE_PAYS, (False, True)),
    ],
)
def test_machine_chooses_what_is_left_open(
    model: str, device: torch.device, iterations: int, expected: tuple[bool, bool]
) -> None:
    network = build_model(model, input_shape=(1, 8, 8))
    assert Runtime().settled(network, device, iterations) == Runtime(*expected)
    for wanted in (Runtime(True, True), Runtime(False, False)):
        assert wanted.settled(network, device, iterations) == wanted


# Compilation


def test_whole_batches_are_compiled_and_the_short_one_is_not(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def compile_(function: Any, **_: object) -> Any:
        def compiled(images: Any, labels: Any) -> Any:
            sizes.append(len(labels))
            return function(images, labels)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    plain, compiled, data = build(), build(), digits.on_device("train", size=150)
    fit(plain, data, spec())
    history = fit(compiled, data, spec(), runtime=Runtime(compiled=True))
    assert sizes == [64] * (1 + 3 * 2)  # once to compile
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True)
    )
    assert throughput(history)["compiled"] is True


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_training_does_without_a_compiler_that_fails(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Any) -> Any:
            return value.clone()

        @staticmethod
        def backward(context: Any, value: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a long report")

    def compile_(function: Any, **_: object) -> Any:
        def compiled(images: Any, labels: Any) -> Any:
            loss, logits = function(images, labels)
            if when == "forward":
                raise RuntimeError("no C++ compiler\nand a long report")
            return Fails.apply(loss), logits

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    plain, other, data = build(), build(), digits.on_device("train", size=150)
    fit(plain, data, spec())
    history = fit(other, data, spec(), runtime=Runtime(compiled=True))
    # Running statistics included: the attempt has left no trace.
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True))
    found = throughput(history)
    assert found["compiled"] is False
    assert found["note"] == "not compiled: RuntimeError: no C++ compiler"
    assert capsys.readouterr().err == "not compiled: RuntimeError: no C++ compiler\n"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_training_is_the_same_up_to_rounding(digits: Dataset, precision: str) -> None:
    plain, compiled, data = build(), build(), digits.on_device("train", size=200)
    settings = spec(precision=precision, epochs=1)
    fit(plain, data, settings)
    history = fit(compiled, data, settings, runtime=Runtime(compiled=True))
    assert history[0]["runtime"].get("note", "") == ""
    tolerance = 1e-4 if precision == "float32" else 0.02
    for a, b in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# StageClock


def test_sampled_iterations_are_divided_into_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    clock = StageClock(CPU, skipped=2, sampled=3)
    for number in range(10):
        clock.begin()
        for stage, seconds in zip(STAGES, (1, 2, 3, 4), strict=True):
            now[0] += seconds if number >= 2 else 100
            clock.mark(stage)
        assert clock.done is (number >= 4)
    assert clock.iterations == 3
    assert clock.seconds == {"data": 1, "forward": 2, "backward": 3, "optimiser": 4}


def test_iteration_that_found_no_batch_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    clock = StageClock(CPU, skipped=0, sampled=2)
    clock.begin()
    now[0] += 50  # the end of an epoch
    clock.begin()
    for stage in STAGES:
        now[0] += 1
        clock.mark(stage)
    assert clock.seconds == dict.fromkeys(STAGES, 1.0)


def test_clock_that_saw_nothing_says_nothing() -> None:
    assert StageClock(CPU).seconds == {}


# History and summary


def test_history_holds_the_speed(digits: Dataset) -> None:
    history = fit(build(), digits.on_device("train", size=640), spec())
    assert [entry["images_per_second"] for entry in history] == pytest.approx(
        [640 / entry["seconds"] for entry in history], rel=1e-3
    )
    # Five iterations to settle and twenty measured: the third epoch of ten batches holds them.
    assert ["stages" in entry for entry in history] == [False, False, True]
    assert set(history[2]["stages"]) == set(STAGES)
    assert 0 < sum(history[2]["stages"].values()) < history[2]["seconds"]


def test_short_training_says_what_it_saw(digits: Dataset) -> None:
    history = fit(build(), digits.on_device("train", size=640), spec(epochs=1))
    assert set(history[0]["stages"]) == set(STAGES)
    history = fit(build(), digits.on_device("train", size=64), spec(epochs=1))
    assert "shares" not in throughput(history)
    assert throughput(history)["precision"] == "float32"


def test_summary_is_the_median_and_the_shares() -> None:
    stages = {"data": 0.1, "forward": 0.2, "backward": 0.3, "optimiser": 0.4}
    runtime = {"precision": "bfloat16", "channels_last": True, "compiled": False}
    history: list[dict[str, Any]] = [{"images_per_second": rate} for rate in (10.0, 500.0, 520.0)]
    history[1] |= {"stages": stages, "runtime": runtime}
    assert throughput(history) == runtime | {"images_per_second": 500.0, "shares": stages}


def test_history_of_an_older_version_has_no_speed() -> None:
    assert throughput([{"epoch": 1, "loss": 0.1, "seconds": 2.0}]) == {}


def test_progress_line_shows_the_speed(digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    history = fit(build(), digits.on_device("train", size=64), spec(epochs=1), progress=True)
    assert f"images/s {round(history[0]['images_per_second'])}" in capsys.readouterr().err
