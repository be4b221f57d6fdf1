"""Records of refitted limits."""

from __future__ import annotations

import time
from typing import Any

import pytest

from prunelimit.experiments import frames
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.refit import EXPERIMENT, run_refit
from prunelimit.experiments.specs import RefitSpec
from prunelimit.experiments.store import load_record, save_record
from prunelimit.training import TrainSpec

TRAIN = TrainSpec(dataset="digits", model="fc5-quick", epochs=6, batch_size=64, lr=0.02, l1=1e-3, train_size=400)
SPEC = RefitSpec(train=TRAIN, examples=100, tolerance=0.2)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_refit(SPEC, label={"task": "test", "profile": "quick"})
    assert found is not None
    return found


def test_the_record_holds_the_limit_and_its_price(record: dict[str, Any]) -> None:
    limit = record["refit"]
    assert (limit["method"], limit["total"], limit["examples"]) == ("refit", 5920, 100)
    assert limit["interval"][1] - limit["interval"][0] <= 0.2
    assert limit["cost"]["products"] > 0
    assert set(limit["points"]) == {"sparsity", "radius", "rise", "reached"}


def test_the_record_is_found_again(record: dict[str, Any]) -> None:
    assert run_refit(SPEC)["refit"] == record["refit"]
    assert load_record(EXPERIMENT, SPEC)["refit"] == record["refit"]


def test_a_deadline_in_training_leaves_no_record() -> None:
    spec = RefitSpec(train=TrainSpec(dataset="digits", model="fc12-quick", epochs=500, batch_size=32, seed=7))
    assert run_refit(spec, deadline=time.monotonic() + 0.2) is None
    assert load_record(EXPERIMENT, spec) is None


def test_pages_find_it_by_task_profile_and_seed(record: dict[str, Any]) -> None:
    task = TASKS["fc5-cifar10"]
    cell = frames.Cell(task, "quick", 2, task.spec("quick", 2), {})
    assert cell.refit is None
    save_record(EXPERIMENT, task.refit_specs("quick", 2)[0], record)
    cell = frames.Cell(task, "quick", 2, task.spec("quick", 2), {})
    assert cell.refit["sparsity"] == record["refit"]["sparsity"]
