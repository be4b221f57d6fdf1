"""A run makes a whole record, can be stopped anywhere, and gives the same record in the end."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.frames import Cell
from prunelimit.experiments.runner import EXPERIMENT, run_limit
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.store import load_record, record_path
from prunelimit.training import TrainSpec

SPEC = LimitSpec(
    train=TrainSpec(dataset="digits", model="fc5-quick", epochs=12, batch_size=64, lr=0.02, l1=1e-3, train_size=400),
    curvature_examples=200,
    steps=8,
    sweep=(0.0, 0.5, 0.9),
    accuracy_step=0.05,
    tune_epochs=2,
    tune_tolerance=0.2,
)

#: What may differ between two machines or two moments.
VOLATILE = ("seconds", "provenance", "digest")


def stable(record):
    body = {key: value for key, value in record.items() if key not in VOLATILE}
    for name in ("directional", "measured"):
        body[name] = {key: value for key, value in body[name].items() if key != "cost"}
    return body


@pytest.fixture(scope="module")
def record():
    return run_limit(SPEC, label={"task": "test", "profile": "quick"})


def test_the_record_holds_what_the_book_needs(record):
    assert record["total"] == 5920
    assert len(record["radius"]) == 1001
    assert record["radius"][0] == 0
    assert len(record["spectrum"]["probes"][0]["alpha"]) == 8
    assert record["spectrum"]["examples"] == 200
    assert set(record["accuracy"]) == {"accuracy", "accuracy_slack"}
    assert record["sweep"]["sparsity"] == [0.0, 0.5, 0.9]
    assert record["fine_tuned"]["interval"][0] == record["fine_tuned"]["sparsity"]
    assert record["dense"]["train_loss"] == pytest.approx(record["sweep"]["train_loss"][0])


def test_the_record_is_the_file_that_its_spec_names(record):
    assert stable(load_record(EXPERIMENT, SPEC)) == stable(record) | {
        "format": 1,
        "hash": SPEC.hash,
        "spec": SPEC.to_dict(),
    }


def test_a_recorded_run_is_not_repeated(record):
    before = record_path(EXPERIMENT, SPEC).stat().st_mtime_ns
    run_limit(SPEC)
    assert record_path(EXPERIMENT, SPEC).stat().st_mtime_ns == before


def test_the_limit_is_solved_from_the_record_alone(record):
    limit = Cell(TASKS["fc5-cifar10"], "quick", 0, SPEC, record).limit
    assert 0 <= limit.interval[0] <= limit.sparsity <= limit.interval[1] <= 1
    assert limit.total == 5920
    assert limit.examples == 200


def test_a_fresh_run_gives_the_same_numbers(record):
    again = run_limit(SPEC, fresh=True, keep=False)
    assert stable(again) | {"label": 0} == {k: v for k, v in stable(record).items() if k in stable(again)} | {
        "label": 0
    }


def test_a_deadline_in_the_past_leaves_nothing_but_progress():
    spec = dataclasses.replace(SPEC, train=dataclasses.replace(SPEC.train, seed=5))
    assert run_limit(spec, deadline=time.monotonic() - 1) is None
    assert load_record(EXPERIMENT, spec) is None


def test_killed_at_random_moments_it_ends_with_the_same_record(record, tmp_path):
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import prunelimit.training as t; t.SAVE_INTERVAL = 0\n"
        "from prunelimit.experiments.runner import run_limit\n"
        "from prunelimit.experiments.specs import LimitSpec\n"
        f"run_limit(LimitSpec.from_dict({SPEC.to_dict()!r}))\n"
    )
    environment = os.environ | {
        "PRUNELIMIT_CACHE": str(tmp_path / "cache"),
        "PRUNELIMIT_RESULTS": str(tmp_path / "results"),
    }
    chance = random.Random(0)
    for _ in range(3):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        # Importing torch takes its time; what is worth killing begins with the first change on disk.
        while process.poll() is None and before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.exists()}:
            time.sleep(0.02)
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(path.read_text().rstrip().endswith("}") for path in tmp_path.rglob("results/limit/*.json"))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
        found = load_record(EXPERIMENT, SPEC)
    assert {k: v for k, v in stable(found).items() if k in stable(record) and k != "label"} == {
        k: v for k, v in stable(record).items() if k != "label"
    }
