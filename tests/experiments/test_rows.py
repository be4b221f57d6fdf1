"""Row norms are recorded with a check on exact rows, can be stopped, and do nothing twice."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.curvature.rows import exact_rows, row_norm_bound, row_norms
from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import rows
from prunelimit.experiments.rows import EXPERIMENT, run_rows
from prunelimit.experiments.specs import RowsSpec
from prunelimit.experiments.store import load_record, record_path
from prunelimit.training import TrainSpec, train

SPEC = RowsSpec(
    train=TrainSpec(dataset="digits", model="fc5-quick", epochs=12, batch_size=64, lr=0.02, l1=1e-3, train_size=400),
    examples=200,
    probes=8,
    checked=20,
)


@pytest.fixture(scope="module")
def record():
    return run_rows(SPEC, label={"task": "test", "profile": "quick"}, progress=False)


@pytest.fixture(scope="module")
def operator():
    """The same Hessian, made by hand: the images that a spectrum of this size would see."""
    dataset = load_dataset("digits")
    model = train(SPEC.train, dataset=dataset, progress=False).model
    sample = dataset.on_device("train", "cpu", 400).tensors(200, torch.Generator().manual_seed(SPEC.train.seed))
    return HessianOperator(model, cross_entropy, sample)


def test_estimates_and_exact_rows_are_those_of_the_operator(record, operator):
    picked = record["checks"]["row"]
    assert picked == sorted(set(picked))
    assert len(picked) == 20
    exact = exact_rows(operator, picked).double().abs().sum(1).numpy()
    np.testing.assert_allclose(record["checks"]["exact"], exact, rtol=1e-4, atol=1e-7)
    norms = row_norms(operator, probes=8, order=1)
    np.testing.assert_allclose(record["checks"]["estimate"], norms.values[picked], rtol=1e-3, atol=1e-7)
    assert record["zero"] == norms.zero.mean()
    assert (record["examples"], record["total"]) == (200, 5920)


def test_the_curve_falls_from_the_largest_row_to_the_smallest(record):
    curve = {name: np.array(values) for name, values in record["curve"].items()}
    assert 150 < len(curve["norm"]) < 220
    assert (curve["share"][0], curve["share"][-1]) == (0, 1)
    assert np.all(np.diff(curve["norm"]) <= 0)
    assert np.all((curve["low"] <= curve["norm"]) & (curve["norm"] <= curve["high"]))
    assert curve["norm"][0] == pytest.approx(max(p["quantiles"]["1.0"] for p in record["parameters"]), rel=1e-4)


def test_parameters_add_up(record):
    parts = record["parameters"]
    assert [part["shape"] for part in parts] == [[48, 64], [32, 48], [24, 32], [16, 24], [10, 16]]
    assert sum(part["rows"] for part in parts) == record["total"]
    assert sum(part["sum"] for part in parts) == pytest.approx(record["sum"])
    assert sum(part["zero"] * part["rows"] for part in parts) == pytest.approx(record["zero"] * record["total"])
    assert all(part["median"] == pytest.approx(part["quantiles"]["0.5"], rel=1e-4) for part in parts)


def test_what_was_not_run_is_called_extrapolated(record):
    cost = record["cost"]
    assert (cost["products"], cost["exact_rows"]) == (8, 20)
    assert cost["seconds_all_rows_extrapolated"] == pytest.approx(cost["seconds_per_exact_row"] * record["total"])
    assert cost["seconds_per_exact_row"] == pytest.approx(record["seconds"]["exact"] / 20)


def test_a_recorded_run_is_not_repeated(record):
    before = record_path(EXPERIMENT, SPEC).stat().st_mtime_ns
    assert run_rows(SPEC)["digest"] == load_record(EXPERIMENT, SPEC)["digest"]
    assert record_path(EXPERIMENT, SPEC).stat().st_mtime_ns == before


def test_the_other_order_uses_the_same_exact_rows_and_has_a_bound(record, operator, monkeypatch):
    def refuse(*_):
        raise AssertionError("these rows were computed already")

    monkeypatch.setattr(rows, "exact_rows", refuse)
    other = run_rows(dataclasses.replace(SPEC, order=2), progress=False)
    assert other["checks"]["row"] == record["checks"]["row"]
    euclidean, absolute = np.array(other["checks"]["exact"]), np.array(record["checks"]["exact"])
    assert np.all(euclidean <= absolute * (1 + 1e-12))
    assert "bound" not in record
    values = row_norms(operator, probes=8, order=2).values
    np.testing.assert_allclose(other["bound"]["dimension"], row_norm_bound(values, other["bound"]["mu"]), rtol=1e-4)


def test_a_deadline_in_the_past_leaves_nothing(record):
    spec = dataclasses.replace(SPEC, probes=4)
    assert run_rows(spec, deadline=time.monotonic() - 1, progress=False) is None
    assert load_record(EXPERIMENT, spec) is None


def test_a_run_that_was_stopped_goes_on(record, monkeypatch):
    spec = dataclasses.replace(SPEC, probes=3, checked=40)
    made = []

    def stop_at_the_second_block(*arguments):
        made.append(arguments)
        if len(made) == 2:
            raise KeyboardInterrupt
        return exact_rows(*arguments)

    monkeypatch.setattr(rows, "exact_rows", stop_at_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        run_rows(spec, progress=False)
    assert load_record(EXPERIMENT, spec) is None
    monkeypatch.setattr(rows, "row_norms", None)  # the estimates are there already
    assert len(run_rows(spec, progress=False)["checks"]["exact"]) == 40
    assert [len(picked) for _, picked in made] == [16, 16, 16, 8]


def test_a_spec_survives_the_way_through_json():
    assert RowsSpec.from_dict(SPEC.to_dict()) == SPEC
    assert RowsSpec.from_dict(SPEC.to_dict()).hash == SPEC.hash
    with pytest.raises(PruneLimitError, match="RowsSpec needs train"):
        RowsSpec.from_dict({"order": 1})
