"""What WoodFisher, CBS and CHITA have in common: exact counts, seeds, untouched models, stages and resumption."""

import copy
import dataclasses
import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.pruning import cbs as cbs_module
from prunelimit.pruning import chita as chita_module
from prunelimit.pruning import woodfisher as woodfisher_module
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.cbs import CbsSpec, cbs
from prunelimit.pruning.chita import ChitaSpec, chita
from prunelimit.pruning.magnitude import export_pruning, flatten, magnitude_masks, prunable_parameters, removed_count
from prunelimit.pruning.stages import counts, prune_in_stages
from prunelimit.pruning.woodfisher import WoodFisherSpec, woodfisher
from prunelimit.training import evaluate

METHODS = {
    "woodfisher": (woodfisher, WoodFisherSpec, woodfisher_module),
    "joint": (woodfisher, lambda **options: WoodFisherSpec(joint=True, **options), woodfisher_module),
    "cbs": (cbs, CbsSpec, cbs_module),
    "chita": (chita, ChitaSpec, chita_module),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(scope="module")
def data(digits):
    return digits.on_device("train")


def flat(tensors):
    return flatten(list(tensors.values()))


@settings(max_examples=12)
@given(sparsity=st.floats(0, 1, exclude_max=True), stages=st.integers(1, 3), seed=st.integers(0, 50))
@pytest.mark.parametrize("name", METHODS)
def test_the_sparsity_is_exact_to_one_weight(name, data, sparsity, stages, seed):
    torch.manual_seed(seed)
    model = mlp([64, 4, 3, 10])
    pruner, spec, _ = METHODS[name]
    pruned = pruner(model, data, sparsity, spec(examples=20, stages=stages, seed=seed, damping=1e-3))
    kept = flat(pruned.masks)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert int((kept == 0).sum()) == removed_count(sparsity, len(kept))
    weights = flat({name: pruned.weights[name] for name in pruned.masks})
    assert (weights[kept == 0] == 0).all()
    assert torch.equal(flat(prunable_parameters(pruned.applied(model))), weights)


def test_the_seed_decides_and_the_model_stays(method, data, digits_model):
    pruner, spec, _ = method
    before = copy.deepcopy(digits_model.state_dict())
    digits_model.train()
    one, same, other = (pruner(digits_model, data, 0.8, spec(examples=60, seed=seed)) for seed in (3, 3, 4))
    assert digits_model.training
    assert all(torch.equal(before[name], value) for name, value in digits_model.state_dict().items())
    assert torch.equal(flat(one.weights), flat(same.weights))
    assert not torch.equal(flat(one.weights), flat(other.weights))


def test_convolutions_with_normalisation_are_pruned(method, data):
    pruner, spec, _ = method
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    pruned = pruner(model, data, 0.7, spec(examples=40))
    assert set(pruned.masks) == set(pruned.weights) == set(prunable_parameters(model))
    assert any(mask.dim() == 4 and 0 < mask.mean() < 1 for mask in pruned.masks.values())
    evaluate(pruned.applied(model), data)


def random_masks(model, sparsity):
    parameters = prunable_parameters(model)
    scores = torch.rand(sum(p.numel() for p in parameters.values()), generator=torch.Generator().manual_seed(0))
    kept = (scores >= scores.sort().values[removed_count(sparsity, len(scores))]).float()
    parts = kept.split([p.numel() for p in parameters.values()])
    return {name: part.reshape(parameters[name].shape) for name, part in zip(parameters, parts, strict=True)}


def test_it_beats_random_and_magnitude_on_the_training_loss(method, data, digits_model):
    pruner, spec, _ = method
    sparsity = 0.85
    pruned = pruner(digits_model, data, sparsity, spec(examples=1437))
    loss = evaluate(pruned.applied(digits_model), data)[0]
    magnitude = evaluate(Pruned(magnitude_masks(digits_model, sparsity)).applied(digits_model), data)[0]
    by_chance = evaluate(Pruned(random_masks(digits_model, sparsity)).applied(digits_model), data)[0]
    assert loss < magnitude < by_chance


def test_sparsity_zero_changes_nothing(method, data, digits_model):
    pruner, spec, _ = method
    pruned = pruner(digits_model, data, 0.0, spec(examples=20))
    assert torch.equal(flat(pruned.weights), flat(prunable_parameters(digits_model)))
    assert flat(pruned.masks).all()


def test_stages_remove_more_and_more(method, data, digits_model):
    pruner, spec, _ = method
    pruned = pruner(digits_model, data, 0.9, spec(examples=60, stages=3))
    total = len(flat(pruned.masks))
    assert [entry["kept"] for entry in pruned.history] == counts(total, total - removed_count(0.9, total), 3)
    assert [entry["stage"] for entry in pruned.history] == [1, 2, 3]
    assert pruned.history[0]["examples"] == 60


@given(total=st.integers(1, 10_000), share=st.floats(0, 1), stages=st.integers(1, 20))
def test_counts_fall_by_equal_factors_to_the_goal(total, share, stages):
    keep = round(share * total)
    found = counts(total, keep, stages)
    assert found[-1] == keep
    assert len(found) == stages
    assert all(a >= b for a, b in zip([total, *found], found, strict=False))
    for before, after in itertools.pairwise(found[:-1]):
        assert after / before == pytest.approx((max(keep, 1) / total) ** (1 / stages), abs=1 / before)


def test_an_interrupted_run_ends_with_the_same_result(method, data, digits_model, tmp_path):
    pruner, spec, module = method
    spec = spec(examples=60, stages=3)
    whole = pruner(digits_model, data, 0.9, spec, folder=tmp_path / "whole")
    calls = []

    def interrupted(cut):
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError
        return module._choose(cut)

    options = ("", digits_model, data, 0.9, spec)
    with pytest.raises(InterruptedError):
        prune_in_stages(interrupted, *options, folder=tmp_path / "other")
    assert prune_in_stages(interrupted, *options, folder=tmp_path / "other", deadline=time.monotonic() - 1) is None
    resumed = prune_in_stages(interrupted, *options, folder=tmp_path / "other")
    assert len(calls) == 4
    finished = prune_in_stages(interrupted, *options, folder=tmp_path / "other", deadline=time.monotonic() - 1)
    assert len(calls) == 4  # what is finished is not computed again
    for found in (resumed, finished):
        assert torch.equal(flat(found.weights), flat(whole.weights))
        assert torch.equal(flat(found.masks), flat(whole.masks))
        assert [entry["kept"] for entry in found.history] == [entry["kept"] for entry in whole.history]


def test_nothing_begins_after_the_deadline(method, data, digits_model, tmp_path):
    pruner, spec, _ = method
    late = time.monotonic() - 1
    assert pruner(digits_model, data, 0.9, spec(examples=20), folder=tmp_path, deadline=late) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"sparsity": 0.5}, {"seed": 1}])
def test_the_folder_of_another_run_is_refused(data, digits_model, tmp_path, change):
    spec = ChitaSpec(examples=20)
    chita(digits_model, data, 0.9, spec, folder=tmp_path)
    sparsity = change.pop("sparsity", 0.9)
    with pytest.raises(PruneLimitError, match="other settings"):
        chita(digits_model, data, sparsity, dataclasses.replace(spec, **change), folder=tmp_path)


def test_weights_that_are_not_finite_are_refused(data, digits_model):
    def broken(cut):
        kept = torch.arange(len(cut.weights)) < cut.keep
        return kept, torch.full_like(cut.weights, torch.nan), {}

    with pytest.raises(PruneLimitError, match="damping="):
        prune_in_stages(broken, "", digits_model, data, 0.5, ChitaSpec(examples=20))


def test_masks_and_weights_export_to_torch(data, digits_model):
    pruned = cbs(digits_model, data, 0.9, CbsSpec(examples=60))
    network = export_pruning(pruned.applied(digits_model), pruned.masks)
    assert evaluate(network, data) == evaluate(pruned.applied(digits_model), data)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            assert prune.is_pruned(layer)
            prune.remove(layer, "weight")
    assert torch.equal(flat(prunable_parameters(network)), flat(pruned.weights))
