"""A run makes a whole record, can be stopped anywhere, and gives the same record in the end."""

import dataclasses
import shutil
import time

import numpy as np
import pytest

from prunelimit.curvature import HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.frames import Cell
from prunelimit.experiments.runner import EXPERIMENT, run_folder, run_limit
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, record_path
from prunelimit.training import OutOfTime, TrainSpec
from prunelimit.training_loop import Loop

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


def test_a_spectrum_goes_on_from_the_product_where_time_ran_out(monkeypatch, tmp_path):
    spec = dataclasses.replace(SPEC, steps=24, tune_epochs=0, train=dataclasses.replace(SPEC.train, seed=8))
    products, limit, multiply = [], 5, HessianOperator.__matmul__
    whole = run_limit(spec, keep=False)

    def counted(self, vectors):
        products.append(1)
        return multiply(self, vectors)

    def check_time(self, reserve=0.0):
        if "spectrum" in self._open and len(products) % limit == 0:
            raise OutOfTime

    monkeypatch.setattr(HessianOperator, "__matmul__", counted)
    monkeypatch.setattr(Steps, "check_time", check_time)
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
    shutil.rmtree(run_folder(spec))
    calls = 1
    while (found := run_limit(spec)) is None:
        calls += 1
        assert len(products) <= 24
    assert calls == 5
    assert len(products) == 24 + len(found["directional"]["points"]["sparsity"])
    for probe, expected in zip(found["spectrum"]["probes"], whole["spectrum"]["probes"], strict=True):
        for side in ("alpha", "beta"):
            np.testing.assert_allclose(probe[side], expected[side], rtol=1e-4, atol=1e-6)
    assert found["spectrum"]["products"] == whole["spectrum"]["products"] == 24
    assert not list(run_folder(spec).glob("unfinished"))


def test_fine_tuning_goes_on_from_the_iteration_where_time_ran_out(record, monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
    shutil.rmtree(run_folder(SPEC))
    step, steps_made = Loop._iterate, []

    def slow(self, *batch):
        step(self, *batch)
        steps_made.append(1)
        if "tuned" in str(folder_of[-1]):
            time.sleep(0.02)

    folder_of = [None]
    load = Loop.load

    def remember(self, folder):
        folder_of.append(folder)
        load(self, folder)

    monkeypatch.setattr(Loop, "_iterate", slow)
    monkeypatch.setattr(Loop, "load", remember)
    calls = 0
    while (found := run_limit(SPEC, deadline=time.monotonic() + 0.3 * 1.1**calls)) is None:
        calls += 1
    assert calls > 1
    # Two epochs of seven batches for each network that was tuned: no iteration was made twice.
    assert len(steps_made) == 14 * (1 + len(record["fine_tuned"]["points"]))
    assert stable(found)["fine_tuned"] == stable(record)["fine_tuned"]


def test_the_record_says_how_fast_the_training_was(record):
    found = record["provenance"]["throughput"]
    assert found["images_per_second"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    assert (found["precision"], found["channels_last"], found["compiled"]) == ("float32", False, False)


def test_an_adaptive_sweep_is_recorded_like_another(record):
    spec = dataclasses.replace(SPEC, sweep=(), sweep_evaluations=45, tune_epochs=0)
    assert spec.hash != SPEC.hash
    found = run_limit(spec, keep=False)["sweep"]
    assert set(found) == set(record["sweep"])
    assert len(found["sparsity"]) == 45
    assert found["train_loss"][0] == record["sweep"]["train_loss"][0]


def test_two_kinds_of_sweep_at_once_are_refused():
    with pytest.raises(PruneLimitError, match="sweep_evaluations"):
        dataclasses.replace(SPEC, sweep_evaluations=45)
