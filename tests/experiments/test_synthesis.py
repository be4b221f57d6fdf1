"""Records of the limits of dense parents, along the path on which a grid prunes."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import runner, synthesis
from prunelimit.experiments.regime_grids import GRIDS
from prunelimit.experiments.store import load_record
from prunelimit.experiments.synthesis import (
    EXPERIMENT,
    SynthesisSpec,
    parent_spec,
    parent_specs,
    pruning_path,
    run_synthesis,
)
from prunelimit.landscape.children import prune_parent, regime_parameters
from prunelimit.models import build_model
from prunelimit.predict import predict_limit
from prunelimit.pruning.magnitude import apply_masks
from prunelimit.training import TrainSpec, evaluate, train

TRAIN = TrainSpec(dataset="digits", model="fc3", epochs=2, batch_size=64, lr=0.1, l2=1e-4, train_size=640)
SPEC = SynthesisSpec(train=TRAIN, steps=24, refit_examples=100, refit_tolerance=0.1)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_synthesis(SPEC, label={"grid": "test", "profile": "quick"})
    assert found is not None
    return found


def test_all_limits_speak_about_the_weights_that_the_grid_prunes(record: dict[str, Any]) -> None:
    model = train(TRAIN).model
    names = regime_parameters(model)
    assert record["prunable"] == names
    assert len(names) == 2  # not the last layer
    assert record["total"] == sum(model.get_parameter(name).numel() for name in names) == 64 * 32 + 32 * 20
    assert {record[name]["total"] for name in ("formula", "directional", "measured")} == {record["total"]}
    assert {limit["total"] for limit in record["refit"].values()} == {record["total"]}


def test_the_measured_limit_is_where_the_loss_of_the_pruned_parent_rises_by_epsilon(record: dict[str, Any]) -> None:
    model, data = train(TRAIN).model, load_dataset("digits").on_device("train", size=640)
    low, high = record["measured"]["interval"]
    allowed = evaluate(model, data)[0] + record["epsilon"]

    def pruned(sparsity: float) -> float:
        network = train(TRAIN).model
        return evaluate(apply_masks(network, prune_parent(network, 1 - sparsity)), data)[0]

    assert pruned(low) <= allowed < pruned(high)
    assert record["measured"]["sparsity"] == low


@pytest.mark.parametrize("method", ["formula", "directional"])
def test_the_limits_are_those_of_predict_limit_along_that_path(record: dict[str, Any], method: str) -> None:
    model, data = train(TRAIN).model, load_dataset("digits").on_device("train", size=640)
    options: dict[str, Any] = {"prunable": regime_parameters(model), "method": method, "epsilon": record["epsilon"]}
    options |= {"steps": SPEC.steps} if method == "formula" else {}
    found = predict_limit(
        model,
        functional.cross_entropy,
        data.tensors(),
        masks=lambda s: prune_parent(model, 1 - s),
        progress=False,
        **options,
    )
    # predict_limit looks at 200 points of the path.
    assert record[method]["sparsity"] == pytest.approx(found.sparsity, abs=0.006)


def test_the_record_is_found_again(record: dict[str, Any]) -> None:
    again = run_synthesis(SPEC)
    assert again is not None
    assert again["formula"] == record["formula"]
    assert set(record["refit"]) == {"stationary", "none"}


def test_a_stopped_run_goes_on_from_the_last_finished_limit(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    spec = dataclasses.replace(SPEC, refit_tolerance=0.2)

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "refit_limit", broken)
        with pytest.raises(KeyboardInterrupt):
            run_synthesis(spec)
    assert load_record(EXPERIMENT, spec) is None
    for name in ("spectrum", "measured_limit", "directional_limit"):
        monkeypatch.setattr(runner, name, broken)
    found = run_synthesis(spec)
    assert found is not None
    assert found["formula"]["sparsity"] == record["formula"]["sparsity"]
    assert found["measured"]["points"] == record["measured"]["points"]


def test_a_deadline_leaves_no_record() -> None:
    spec = dataclasses.replace(SPEC, train=dataclasses.replace(TRAIN, epochs=5000))
    assert run_synthesis(spec, deadline=time.monotonic() + 0.3) is None
    assert load_record(EXPERIMENT, spec) is None


@pytest.mark.parametrize("distribution", ["uniform", "global"])
@pytest.mark.parametrize("name", ["fc3", "preresnet8-quick"])
def test_the_path_is_that_of_the_children(name: str, distribution: str) -> None:
    model = build_model(name, input_shape=(1, 8, 8), seed=0)
    path = pruning_path(model, distribution)
    masks = prune_parent(model, 0.3, distribution)
    named = dict(model.named_parameters())
    removed = torch.cat([(named[n] * (masks[n] - 1)).reshape(-1) for n in regime_parameters(model)]).detach()
    torch.testing.assert_close(path.displacement(1 - 0.3), removed)
    points = len(path.distance) - 1
    assert path.distance[round(0.7 * points)] == pytest.approx(float(removed.norm()), rel=1e-3)
    assert np.all(np.diff(path.distance) >= 0)


def test_a_parent_has_one_spec_for_all_densities_and_grids() -> None:
    settings = GRIDS["epochs"].settings("quick")
    specs = parent_specs(settings, "quick")
    assert len(specs) == len(settings.values) * len(settings.seeds)
    assert [spec.train.seed for spec in specs] == sorted(spec.train.seed for spec in specs)
    whole = parent_spec(settings.spec(40, 0.1, 0), "quick")
    assert whole in specs
    assert parent_spec(GRIDS["learning-rate"].settings("quick").spec(0.1, 0.8, 0), "quick") == whole
    assert SynthesisSpec.from_dict(whole.to_dict()) == whole
    assert whole.about() == "40 epochs, batch 64, rate 0.1, seed 0"


def test_unknown_words_are_refused() -> None:
    with pytest.raises(PruneLimitError, match="refits='magic'"):
        SynthesisSpec(train=TRAIN, refits=("magic",))
    with pytest.raises(PruneLimitError, match="profile='huge'"):
        parent_spec(GRIDS["epochs"].settings("quick").spec(40, 0.1, 0), "huge")
