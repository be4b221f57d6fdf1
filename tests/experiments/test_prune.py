"""Records of pruned networks: what they hold, resumption, and that a pruner's word is checked."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
import torch

from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.prune import EXPERIMENT, count_kept, run_prune
from prunelimit.experiments.prune_specs import PruneSpec
from prunelimit.experiments.store import load_record
from prunelimit.models import build_model
from prunelimit.pruning.base import Method, Pruned
from prunelimit.pruning.iterative import IterativeSpec
from prunelimit.pruning.lomp import LompSpec
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks, magnitude_masks, removed_count
from prunelimit.pruning.methods import METHODS
from prunelimit.training import TrainSpec, evaluate, train

TRAIN = TrainSpec(dataset="digits", model="fc3", epochs=4, batch_size=64, lr=0.05, l1=1e-3, train_size=400)
LOMP = PruneSpec(train=TRAIN, method="lomp", settings=LompSpec(), sparsities=(0.5, 0.9))
SHORT = dataclasses.replace(TRAIN, epochs=2, l1=0.0)
IMP = PruneSpec(
    train=SHORT, method="iterative", settings=IterativeSpec(train=SHORT, rounds=4, rewind=3), sparsities=(0.3, 0.4)
)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_prune(LOMP, label={"comparison": "test", "profile": "quick"})
    assert found is not None
    return found


def test_one_cut_is_recorded_as_it_is(record: dict[str, Any]) -> None:
    model = train(TRAIN).model
    path = MagnitudePath(model)
    test = load_dataset("digits").on_device("test")
    assert [n["sparsity"] for n in record["networks"]] == [0.5, 0.9]
    for network in record["networks"]:
        assert network["kept"] == record["total"] - removed_count(network["sparsity"], record["total"])
        cut = apply_masks(train(TRAIN).model, path.masks(network["sparsity"]))
        assert (network["test_loss"], network["test_accuracy"]) == pytest.approx(evaluate(cut, test))
        assert network["epochs"] == 0
    assert record["epochs"] == 4
    assert record["dense"]["test_accuracy"] == pytest.approx(evaluate(model, test)[1])


def test_the_layers_add_up(record: dict[str, Any]) -> None:
    sizes = {n: p.numel() for n, p in build_model("fc3", input_shape=(1, 8, 8)).named_parameters() if p.ndim > 1}
    for network in record["networks"]:
        assert sum(sizes[name] * share for name, share in network["layers"].items()) == pytest.approx(network["kept"])


def test_a_record_is_found_again(record: dict[str, Any]) -> None:
    assert run_prune(LOMP) == load_record(EXPERIMENT, LOMP)
    assert run_prune(LOMP)["networks"] == record["networks"]


def test_a_pruner_that_trains_goes_on_where_it_was_stopped() -> None:
    assert run_prune(IMP, deadline=time.monotonic()) is None
    stops = 0
    while (found := run_prune(IMP, deadline=time.monotonic() + 0.05)) is None:
        stops += 1
        assert stops < 400
    again = dataclasses.replace(
        IMP, settings=dataclasses.replace(IMP.settings, rounds=5)
    )  # another name, the same rounds
    whole = run_prune(again)
    assert whole is not None
    names = ("kept", "test_loss", "train_loss", "layers", "epochs")
    assert [{k: n[k] for k in names} for n in found["networks"]] == [
        {k: n[k] for k in names} for n in whole["networks"]
    ]
    assert found["networks"][1]["epochs"] > 0


def test_a_pruner_that_misses_its_sparsity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: torch.nn.Module, data: Any, sparsity: float, spec: LompSpec, **_: Any) -> Pruned:
        return Pruned(magnitude_masks(model, sparsity / 2))

    monkeypatch.setitem(METHODS, "lomp", Method("wrong", LompSpec, wrong))
    spec = dataclasses.replace(LOMP, sparsities=(0.25,))
    with pytest.raises(PruneLimitError, match=r"method='lomp' kept"):
        run_prune(spec)
    assert load_record(EXPERIMENT, spec) is None


def test_a_mask_over_weights_that_are_not_zero_is_refused() -> None:
    model = build_model("fc3", input_shape=(1, 8, 8), seed=0)
    with pytest.raises(PruneLimitError, match="removes weights that are not zero"):
        count_kept(model, magnitude_masks(model, 0.5))


def test_settings_must_be_those_of_the_method() -> None:
    with pytest.raises(PruneLimitError, match="must be a LompSpec"):
        dataclasses.replace(LOMP, settings=IMP.settings)
    with pytest.raises(PruneLimitError, match="method='lomb'"):
        dataclasses.replace(LOMP, method="lomb")


def test_specs_come_back_from_their_dictionary() -> None:
    for spec in (LOMP, IMP):
        back = PruneSpec.from_dict(spec.to_dict())
        assert back == spec
        assert back.hash == spec.hash
    with pytest.raises(PruneLimitError, match="needs settings"):
        PruneSpec.from_dict(LOMP.to_dict() | {"settings": None})
