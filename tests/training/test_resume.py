"""Resuming: bit-identical after a deadline, also within an epoch, and after kill -9 at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunelimit import magnitude_masks, training, training_loop
from prunelimit.checkpoints import load_checkpoint, save_checkpoint
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.throughput import Runtime, throughput
from prunelimit.training import TrainSpec, fit, train

# Importing torch takes seconds, so one process does it and forks a child for each training that is to be killed.
SCRIPT = """
import json
import os
import sys
from pathlib import Path
import torch
import torch._dynamo  # the optimiser would import it
from prunelimit import training
from prunelimit.datasets import load_dataset
torch.set_num_threads(1)
training.SAVE_INTERVAL = 0.0
spec, folder = training.TrainSpec.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
dataset = load_dataset("digits")
for _ in sys.stdin:
    child = os.fork()
    if not child:
        training.train(spec, folder=folder, dataset=dataset)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

KILLS = 5


def spec(**values: Any) -> TrainSpec:
    base = {"dataset": "digits", "model": "fc5-quick", "epochs": 6, "batch_size": 32, "lr": 0.05, "l1": 1e-4}
    return TrainSpec(**base | values)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def small(digits: Dataset) -> DeviceSplit:
    return digits.on_device("train", size=150)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless :func:`tick` moves it: an iteration is a second, and all else takes no time."""
    now = [0.0]
    fake = SimpleNamespace(monotonic=lambda: now[0])
    for module in (training, training_loop):
        monkeypatch.setattr(module, "time", fake)
    return now


def tick(clock: list[float]) -> Callable[[int], None]:
    def after_step(_: int) -> None:
        clock[0] += 1

    return after_step


def make(kind: str) -> nn.Module:
    torch.manual_seed(7)
    if kind == "dropout":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))
    if kind == "batch norm":
        return build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    return mlp([64, 16, 10])


@pytest.mark.parametrize("kind", ["plain", "dropout", "batch norm"])
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"augment": True, "schedule": "cosine", "l2": 1e-3},
        {"augment": True, "precision": "bfloat16"},
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_interrupted_training_gives_the_same_bits(
    tmp_path: Path, small: DeviceSplit, clock: list[float], kind: str, options: dict[str, Any], channels_last: bool
) -> None:
    settings, runtime = spec(epochs=4, **options), Runtime(channels_last=channels_last)
    whole = make(kind)
    expected = fit(whole, small, settings, runtime=runtime)
    stops = []
    while True:
        model = make(kind)  # a new process knows nothing but the folder
        deadline = clock[0] + 9
        history = fit(
            model, small, settings, folder=tmp_path, deadline=deadline, after_step=tick(clock), runtime=runtime
        )
        assert clock[0] <= deadline
        if len(history) == settings.epochs:
            break
        stops.append(load_checkpoint(tmp_path)[1].get("within", {}).get("place", 0))
    # Four epochs of five batches, and two seconds kept for an iteration: eight batches, then seven.
    assert stops == [3, 5]
    assert equal(model.state_dict(), whole.state_dict())
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]
    assert [entry["accuracy"] for entry in history] == [entry["accuracy"] for entry in expected]
    assert [entry["seconds"] for entry in history] == [5.0] * 4


def test_interrupted_training_keeps_its_masks(tmp_path: Path, small: DeviceSplit, clock: list[float]) -> None:
    whole, settings = make("plain"), spec(epochs=4)
    masks = magnitude_masks(whole, 0.6)
    fit(whole, small, settings, masks=masks)
    options = {"masks": masks, "folder": tmp_path}
    fit(make("plain"), small, settings, deadline=clock[0] + 5, after_step=tick(clock), **options)
    model = make("plain")
    fit(model, small, settings, **options)
    assert equal(model.state_dict(), whole.state_dict())


def test_interrupted_training_that_began_within_an_epoch(
    tmp_path: Path, small: DeviceSplit, clock: list[float]
) -> None:
    whole, settings, seen = make("plain"), spec(epochs=4), []
    fit(whole, small, settings, first_iteration=7)
    while True:
        model = make("plain")

        def after_step(done: int) -> None:
            seen.append(done)
            clock[0] += 1

        options = {"folder": tmp_path, "deadline": clock[0] + 4, "first_iteration": 7}
        if len(fit(model, small, settings, after_step=after_step, **options)) == 3:
            break
    assert seen == list(range(8, 21))
    assert equal(model.state_dict(), whole.state_dict())


def test_deadline_in_the_past_begins_no_epoch(tmp_path: Path, small: DeviceSplit) -> None:
    assert fit(make("plain"), small, spec(), folder=tmp_path, deadline=time.monotonic() - 1) == []
    assert load_checkpoint(tmp_path) is None


def test_deadline_saves_what_is_done(tmp_path: Path, small: DeviceSplit, clock: list[float]) -> None:
    model = make("plain")
    history = fit(model, small, spec(), folder=tmp_path, deadline=clock[0] + 15, after_step=tick(clock))
    assert len(history) == 2
    tensors, metadata = load_checkpoint(tmp_path)
    assert metadata["history"] == history
    assert metadata["within"]["place"] == 4
    assert equal(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}, model.state_dict()
    )


def test_without_a_folder_a_begun_epoch_is_finished(small: DeviceSplit, clock: list[float]) -> None:
    assert len(fit(make("plain"), small, spec(), deadline=clock[0] + 7, after_step=tick(clock))) == 2


def test_however_slow_the_disk_half_of_the_time_is_for_training(
    tmp_path: Path, small: DeviceSplit, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once wrong: the time kept for saving exceeds the budget, so every call ends before its first iteration.
    monkeypatch.setattr(training, "WRITE_SPEED", 1e-3)
    fit(make("plain"), small, spec(), folder=tmp_path, deadline=clock[0] + 8, after_step=tick(clock))
    assert load_checkpoint(tmp_path)[1]["within"]["place"] == 5


def test_test_split_is_measured_before_the_deadline(
    tmp_path: Path, small: DeviceSplit, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> tuple[float, float]:
        clock[0] += 4
        return 0.0, 0.0

    monkeypatch.setattr(training, "evaluate", slow)
    options = {"folder": tmp_path, "test": small, "test_every": 1}
    # The second measurement would end after the deadline: the epoch is closed by the next call.
    assert len(fit(make("plain"), small, spec(), deadline=clock[0] + 16, after_step=tick(clock), **options)) == 1
    assert load_checkpoint(tmp_path)[1]["within"]["place"] == 5
    model, whole = make("plain"), make("plain")
    history = fit(model, small, spec(), **options)
    fit(whole, small, spec())
    assert [("test_loss" in entry) for entry in history] == [True] * 6
    assert equal(model.state_dict(), whole.state_dict())


def test_short_epochs_are_not_saved_each(tmp_path: Path, small: DeviceSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(
        training_loop, "save_checkpoint", lambda folder, step, tensors, metadata: saved.append(len(metadata["history"]))
    )
    monkeypatch.setattr(training, "SAVE_INTERVAL", 1e6)
    fit(make("plain"), small, spec(), folder=tmp_path)
    assert saved == [6]
    monkeypatch.setattr(training, "SAVE_INTERVAL", 0.0)
    fit(make("plain"), small, spec(epochs=3), folder=tmp_path)
    assert saved == [6, 1, 2, 3]


def test_saving_takes_a_small_share_of_the_time(
    tmp_path: Path, small: DeviceSplit, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def slow(*_: object) -> None:
        saved.append(clock[0])
        clock[0] += 10

    monkeypatch.setattr(training_loop, "save_checkpoint", slow)
    fit(make("plain"), small, spec(epochs=120), folder=tmp_path, after_step=tick(clock))
    # The first after SAVE_INTERVAL; then 600 iterations leave room for two more at one part in twenty, and the last one.
    assert len(saved) == 4
    assert saved[2] - saved[1] >= training.SAVE_SHARE * 10


def test_long_epochs_are_saved_within(
    tmp_path: Path, small: DeviceSplit, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    monkeypatch.setattr(
        training_loop, "save_checkpoint", lambda *arguments: places.append(arguments[3].get("within", {}).get("place"))
    )

    def after_step(_: int) -> None:
        clock[0] += 31

    fit(make("plain"), small, spec(epochs=1), folder=tmp_path, after_step=after_step)
    assert places == [2, 4, None]


def test_state_of_an_older_version_is_continued(tmp_path: Path, small: DeviceSplit) -> None:
    whole, part = make("plain"), make("plain")
    fit(whole, small, spec())
    fit(part, small, spec(epochs=2), folder=tmp_path / "two")
    tensors, metadata = load_checkpoint(tmp_path / "two")
    # As it was written then: steps counted by epochs, and entries without speeds.
    keys = ("epoch", "lr", "loss", "accuracy", "seconds")
    history = [{key: entry[key] for key in keys} for entry in metadata["history"]]
    save_checkpoint(tmp_path / "old", 2, tensors, {"spec": spec().to_dict(), "history": history})
    model = make("plain")
    found = fit(model, small, spec(), folder=tmp_path / "old")
    assert equal(model.state_dict(), whole.state_dict())
    assert [path.name for path in (tmp_path / "old").glob("step-*")] == ["step-000003"]
    assert throughput(found)["images_per_second"] > 0


def test_finished_training_is_loaded_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(spec(epochs=2, train_size=100), folder=tmp_path)
    monkeypatch.setattr(training.Loop, "epoch", lambda *_: pytest.fail("trained again"))
    again = train(spec(epochs=2, train_size=100), folder=tmp_path)
    assert equal(first.model.state_dict(), again.model.state_dict())
    assert again.history == first.history
    assert not again.model.training


def test_training_is_kept_in_the_cache_under_the_hash(isolated_folders: Path) -> None:
    one = spec(epochs=1, train_size=50, seed=12345)
    train(one)
    assert load_checkpoint(isolated_folders / "cache" / "checkpoints" / one.hash) is not None


def test_history_records_the_test_accuracy_at_the_end(tmp_path: Path) -> None:
    found = train(spec(epochs=2, train_size=100), folder=tmp_path)
    assert 0 <= found.history[-1]["test_accuracy"] <= 1


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    # Once wrong: the saved spec is not compared, and the other run's network comes back as this one's.
    train(spec(epochs=1, train_size=50), folder=tmp_path)
    with pytest.raises(PruneLimitError, match="folder"):
        train(spec(epochs=1, train_size=50, lr=0.01), folder=tmp_path)


def test_resuming_past_the_deadline_does_not_touch_the_checkpoint(
    tmp_path: Path, small: DeviceSplit, clock: list[float]
) -> None:
    # Once wrong: the same step is written again, and a kill between its two renames loses the only checkpoint.
    fit(make("plain"), small, spec(), folder=tmp_path, deadline=clock[0] + 5, after_step=tick(clock))
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert before
    fit(make("plain"), small, spec(), folder=tmp_path, deadline=clock[0] - 1)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_kill_at_random_moments_leaves_whole_checkpoints_and_the_same_bits(tmp_path: Path) -> None:
    settings = spec(epochs=60, batch_size=64, augment=True, train_size=200)
    expected = train(settings, folder=tmp_path / "whole")
    folder, moments, epochs = tmp_path / "killed", random.Random(0), []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(settings.to_dict()), str(folder)]
    with subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for _ in range(KILLS):
            server.stdin.write("go\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            # Wait until it has got somewhere, so that each kill meets other work; then for a random part of an epoch.
            give_up = time.monotonic() + 60
            while not any(int(path.name[5:]) > max(epochs, default=0) for path in folder.glob("step-*")):
                assert time.monotonic() < give_up
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            if int(server.stdout.readline()) != -signal.SIGKILL:
                break  # on a busy machine the last kill may come too late
            tensors, metadata = load_checkpoint(folder)
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
            epochs.append(len(metadata["history"]))
        server.stdin.close()
    assert len(epochs) >= 2, "the kills came too late to interrupt anything"
    assert epochs == sorted(set(epochs)), "every training went on from where the one before was killed"
    resumed = train(settings, folder=folder)
    assert equal(resumed.model.state_dict(), expected.model.state_dict())
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in expected.history]
