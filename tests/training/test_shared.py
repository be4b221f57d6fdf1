"""Trainings that two processes share, against the same trainings by one process."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelimit import training
from prunelimit.errors import PruneLimitError
from prunelimit.training import TrainSpec, evaluate, fit

SCRIPT = Path(__file__).parent / "shared_processes.py"
HERE = runpy.run_path(str(SCRIPT))

#: The sums over rows are float32 in the history.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def found(place: Path, run_processes: Callable[..., None]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAVE_INTERVAL", 0.0)
        HERE["stopped"]("norm", place / "one", 6)
    run_processes(SCRIPT, place)
    return torch.load(place / "found.pt", weights_only=False)


def check(result: tuple[dict[str, Tensor], list[dict[str, Any]]], expected: Any, tolerance: float = 1e-9) -> None:
    """Compare states and histories."""
    state, history = result
    assert set(state) == set(expected[0])
    for name, value in expected[0].items():
        difference = (state[name] - value).double().norm()
        assert difference <= tolerance * value.double().norm() + 1e-15, name
    assert len(history) == len(expected[1])
    for one, other in zip(history, expected[1], strict=True):
        for key in ("epoch", "lr", "accuracy", "test_accuracy"):
            assert one.get(key) == other.get(key), key
        for key in ("loss", "test_loss"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=ROUNDING), key


@pytest.mark.parametrize("name", [name for name in HERE["CASES"] if name != "half"])
def test_two_processes_give_what_one_gives(found: dict[str, Any], name: str) -> None:
    start = HERE["make"](HERE["CASES"][name][0]).state_dict()
    moved = [(found[name][0][key] - value).abs().max() for key, value in start.items()]
    assert min(moved) > 1e-3, "a training that changes nothing shows nothing"
    check(found[name], HERE["case"](name))
    assert found[f"same {name}"]


def test_bfloat16_agrees_to_its_own_rounding(found: dict[str, Any]) -> None:
    state, history = HERE["case"]("half")
    assert found["half"][1][0]["loss"] == pytest.approx(history[0]["loss"], rel=2e-2)
    for name, value in state.items():
        assert (found["half"][0][name] - value).float().norm() <= 0.1 * value.float().norm() + 0.1, name
    assert found["same half"]


def test_process_that_does_not_share_trains_alone(found: dict[str, Any]) -> None:
    check(found["alone"], HERE["case"]("mlp"), 0.0)


@pytest.mark.parametrize("kind", HERE["SHARDED"])
def test_sharded_parameters_give_what_whole_ones_give(found: dict[str, Any], kind: str) -> None:
    model, history = HERE["sharded"](kind)
    check(found[f"sharded {kind}"], (model.state_dict(), history))
    if kind == "uneven":
        assert not found["sharded uneven"][0]["enter.bias"].any()  # frozen, and masked
    assert found[f"few images {kind}"] == pytest.approx(evaluate(model, HERE["digits"](1)))


def test_a_process_holds_its_share_of_the_bytes(found: dict[str, Any]) -> None:
    everything, shards, momentum, gradients = found["bytes"]
    assert shards == momentum == everything / 2
    assert gradients == [None] * len(gradients)


@pytest.mark.parametrize("name", ["plain", "norm", "dropout", "cut"])
def test_resumed_training_gives_the_same_bits(found: dict[str, Any], place: Path, name: str) -> None:
    check(found[f"resumed {name}"], found[f"whole {name}"], 0.0)
    assert len(list((place / name).iterdir())) == 1  # the first process cleans up what it wrote, and no other writes


def test_training_is_resumed_within_an_epoch(found: dict[str, Any]) -> None:
    check(found["resumed within"], found["whole norm"], 0.0)


def test_number_of_processes_may_change(found: dict[str, Any], place: Path) -> None:
    for kind, folder in (("norm", "two"), ("mlp", "two cut")):
        shutil.copytree(place / folder, place / f"{folder} again")
        index = next((place / folder).glob("*/index.json")).read_text(encoding="utf-8")
        assert '"place": 1' in index  # saved after five iterations, with four in an epoch
        check(HERE["ended"](kind, place / f"{folder} again"), HERE["ended"](kind, None))
    check(found["taken over"], HERE["ended"]("norm", None))


def test_what_cannot_be_shared_is_refused(found: dict[str, Any]) -> None:
    assert found["no sam"].startswith("sam_rho=0.1 needs whole gradients: leave out")
    assert found["compiled"].startswith("compiled=True is not for")
    assert found["alone, cut"].startswith("shard=False leaves a process alone")
    assert "does not hold the same state for all processes" in found["folders"]


def test_failure_to_write_ends_all_processes(found: dict[str, Any]) -> None:
    assert found["full"] == ["disk full", "shard: the work failed in another process; read the message there."]


def test_states_at_different_points_are_dropped(found: dict[str, Any]) -> None:
    assert found["same states"]
    assert not found["different states"]


@pytest.mark.parametrize("option", ["shard", "shard_parameters"])
def test_sharing_without_processes_is_refused(option: str) -> None:
    with pytest.raises(PruneLimitError, match=r"^shard=True needs processes.*torchrun"):
        fit(HERE["make"]("mlp"), HERE["digits"](20), TrainSpec(**HERE["BASE"]), **{option: True})
