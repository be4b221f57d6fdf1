"""The paper profile on a CPU: shrunk, run by the command line, killed at random moments, and in slices of time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Importing torch takes seconds, so one process does it, and forks a child for each call of the command line.
SCRIPT = """
import os
import sys
import torch
import torch._dynamo  # the optimiser would import it
from prunelimit import cli, training
from prunelimit.datasets import load_dataset
from prunelimit.experiments import catalogue, steps
from prunelimit.experiments.specs import LimitSpec

torch.set_num_threads(1)
load_dataset("digits")
training.SAVE_INTERVAL, training.LONG_INTERVAL, steps.PART_INTERVAL = 0.0, 0.05, 0.0


def shrunk(name, model, **settings):
    train = training.TrainSpec(dataset="digits", model=model, batch_size=64, lr=0.02, train_size=400, **settings)
    spec = LimitSpec(
        train=train, curvature_examples=200, steps=40, sweep_evaluations=42, accuracy_step=0.02, tune_epochs=3,
        tune_tolerance=0.2,
    )
    return catalogue.Task(name, name, {"paper": spec})


tasks = (
    shrunk("fc5-cifar10", "fc5-quick", epochs=15, l1=1e-3),
    shrunk("vgg16-cifar10", "fc5-quick", epochs=12, l1=1e-4, precision="bfloat16"),
)
catalogue.TASKS.clear()
catalogue.TASKS.update({task.name: task for task in tasks})
print("ready", flush=True)
for line in sys.stdin:
    home, *words = line.split()
    child = os.fork()
    if not child:
        for name in ("CACHE", "DATA", "RESULTS"):
            os.environ["PRUNELIMIT_" + name] = os.path.join(home, name.lower())
        with open(os.path.join(home, "log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = ["prunelimit", "run", "all", "--missing", "--profile", "paper", "--seeds", "1", *words]
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

CELLS = 2

#: What may differ between two machines or two moments.
VOLATILE = ("seconds", "provenance", "digest")

Call = Callable[..., int]


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, **pipes) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def run(home: Path, *words: str, kill_after: float | None = None) -> int:
            home.mkdir(exist_ok=True)
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(" ".join([str(home), *words]) + "\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            if kill_after is not None:
                time.sleep(kill_after)
                # Not yet waited for, the child cannot have given its number to another process.
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return int(server.stdout.readline())

        yield run
        assert server.stdin is not None
        server.stdin.close()


def records(home: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in (home / "results" / "limit").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        found[file.stem] = {key: value for key, value in record.items() if key not in VOLATILE}
    return found


def assert_same(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    assert set(one) == set(other)
    for name, record in one.items():
        mine, theirs = dict(record), dict(other[name])
        probes = [found.pop("spectrum")["probes"] for found in (mine, theirs)]
        assert mine == theirs
        # A continued Lanczos process orthogonalises in other portions, which changes the last digits.
        for probe, its_twin in zip(*probes, strict=True):
            for side in ("alpha", "beta"):
                np.testing.assert_allclose(probe[side], its_twin[side], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def undisturbed(call: Call, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], float]:
    home = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    assert call(home) == 0, (home / "log").read_text()
    assert len(records(home)) == CELLS
    assert not list((home / "cache").rglob("unfinished"))
    return records(home), time.monotonic() - start


def kill_at_random(call: Call, home: Path, seconds: float, kills: int, seed: int) -> None:
    chance, killed, lives = random.Random(seed), 0, 0
    while killed < kills and lives < 5 * kills:
        lives += 1
        status = call(home, kill_after=chance.uniform(0.2, 2) * seconds / kills)
        assert status in (0, -signal.SIGKILL), (home / "log").read_text()
        killed += status == -signal.SIGKILL
        for file in (home / "results").rglob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))
        if status == 0 and killed >= 2:
            break
        if status == 0:  # the machine has got faster since it was timed: again, with shorter lives
            shutil.rmtree(home)
            killed, seconds = 0, seconds / 2
    assert killed >= 2, "it was over before it could be killed"
    assert call(home) == 0, (home / "log").read_text()


def test_killed_at_random_it_ends_with_the_same_records(
    call: Call, undisturbed: tuple[dict[str, dict[str, Any]], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    kill_at_random(call, tmp_path / "home", seconds, kills=6, seed=0)
    assert_same(records(tmp_path / "home"), expected)
    assert not list(tmp_path.rglob("unfinished"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_often_it_ends_with_the_same_records(
    call: Call, undisturbed: tuple[dict[str, dict[str, Any]], float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    kill_at_random(call, tmp_path / "home", seconds, kills=25, seed=seed)
    assert_same(records(tmp_path / "home"), expected)


def test_in_slices_of_time_it_ends_with_the_same_records(
    call: Call, undisturbed: tuple[dict[str, dict[str, Any]], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    home, budget, slices = tmp_path / "home", seconds / 5, 0
    while len(records(home)) < CELLS:
        slices += 1
        assert call(home, "--time-budget", f"{budget * 1.05**slices:.3f}") == 0, (home / "log").read_text()
        if len(records(home)) == CELLS and slices < 3:  # the machine has got faster since it was timed
            shutil.rmtree(home)
            budget, slices = budget / 2, 0
    assert (home / "log").read_text().count("out of time; call again to go on") >= slices - 1
    assert_same(records(home), expected)
