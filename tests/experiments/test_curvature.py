"""Records of spectra: what they hold, how they go on, and how a page sees them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch

from prunelimit.curvature import Spectrum
from prunelimit.datasets import Dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.curvature import EXPERIMENT, run_curvature
from prunelimit.experiments.specs import CurvatureSpec
from prunelimit.experiments.store import load_record, record_path
from prunelimit.training import TrainSpec

TRAIN = TrainSpec(dataset="digits", model="fc5-quick", epochs=6, batch_size=64, lr=0.02, l1=1e-3, train_size=400)
SPEC = CurvatureSpec(train=TRAIN, examples=40, steps=12, probes=2)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_curvature(SPEC, label={"task": "test", "profile": "quick"})
    assert found is not None
    return found


def test_the_record_holds_the_spectrum_and_what_the_limit_needs(record: dict[str, Any]) -> None:
    found = Spectrum.from_dict(record["spectrum"])
    assert (found.dimension, record["total"]) == (5920, 5920)
    assert [len(p.alpha) for p in found.probes] == [12, 12]
    assert (record["examples"], record["products"]) == (40, 24)
    assert len(record["radius"]) == 1001
    assert record["epsilon"] > 0


def test_what_is_known_of_the_null_space_is_counted(record: dict[str, Any]) -> None:
    before, after = record["reduced"]["inputs"]
    assert (before, after) == (64, 40)
    # Each of the first layer's units loses 24 directions, dead ones all of theirs.
    assert record["spectrum"]["nullity"] >= 24 * (64 - sum(record["reduced"]["dead"]))


def test_the_record_is_found_again(record: dict[str, Any]) -> None:
    assert run_curvature(SPEC)["spectrum"] == record["spectrum"]
    assert load_record(EXPERIMENT, SPEC)["label"] == {"task": "test", "profile": "quick"}


def test_more_steps_continue_the_process(record: dict[str, Any]) -> None:
    longer = run_curvature(dataclasses.replace(SPEC, steps=20))
    assert longer["products"] == 2 * 20
    assert longer["seconds"]["spectrum"] > record["seconds"]["spectrum"]
    for old, new in zip(record["spectrum"]["probes"], longer["spectrum"]["probes"], strict=True):
        assert new["alpha"][:12] == old["alpha"]
        assert len(new["alpha"]) == 20


def test_a_deadline_stops_between_products_and_the_next_call_goes_on() -> None:
    spec = dataclasses.replace(SPEC, examples=60, steps=10, probes=1)
    assert run_curvature(spec, deadline=time.monotonic() + 0.2) is None or record_path(EXPERIMENT, spec).is_file()
    calls = 0
    while run_curvature(spec, deadline=time.monotonic() + 0.05) is None:
        calls += 1
        assert calls < 100
    whole = run_curvature(dataclasses.replace(spec, probes=2))
    found = load_record(EXPERIMENT, spec)
    np.testing.assert_allclose(
        found["spectrum"]["probes"][0]["alpha"], whole["spectrum"]["probes"][0]["alpha"], rtol=1e-3
    )


def test_smaller_samples_are_part_of_larger_ones(digits: Dataset) -> None:
    # The trend over N must not be a change of images.
    data = digits.on_device("train")
    small, large = (data.tensors(n, torch.Generator().manual_seed(0))[0] for n in (20, 50))
    assert torch.equal(small, large[:20])


def test_the_spec_survives_the_way_through_json() -> None:
    assert CurvatureSpec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(PruneLimitError, match="CurvatureSpec needs train="):
        CurvatureSpec.from_dict({"examples": 3})


def test_catalogue_names_spectra_from_small_to_large() -> None:
    specs = TASKS["fc5-cifar10"].curvature_specs("laptop", 1)
    assert all(spec.train.seed == 1 for spec in specs)
    sizes = [spec.examples or 10**9 for spec in specs]
    assert sizes == sorted(sizes)
    assert TASKS["fc12-cifar10"].curvature_specs("laptop", 0) == []
