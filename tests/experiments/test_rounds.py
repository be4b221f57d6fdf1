"""Limits of the networks that iterative pruning goes through, against the dense Hessian of the kept weights."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator, Spectrum
from prunelimit.datasets import load_dataset
from prunelimit.experiments.frames import fine_distance
from prunelimit.experiments.prune_specs import RoundsSpec
from prunelimit.experiments.rounds import EXPERIMENT, kept_operator, run_rounds
from prunelimit.experiments.store import load_record
from prunelimit.limit import exact_limit, formula_limit
from prunelimit.models import build_model
from prunelimit.pruning.iterative import IterativeSpec, iterative_rounds
from prunelimit.pruning.magnitude import MagnitudePath, flatten, magnitude_masks
from prunelimit.training import TrainSpec

TRAIN = TrainSpec(dataset="digits", model="fc3", epochs=6, batch_size=64, lr=0.05, train_size=300)
SETTINGS = IterativeSpec(train=TRAIN, rounds=2, share=0.5, rewind=2)
SPEC = RoundsSpec(train=TRAIN, method="iterative", settings=SETTINGS, steps=96)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_rounds(SPEC)
    assert found is not None
    return found


def test_there_is_one_entry_per_round(record: dict[str, Any]) -> None:
    assert [one["round"] for one in record["rounds"]] == [0, 1, 2]
    assert [one["removed"] for one in record["rounds"]] == [0, 1444, 2166]
    assert run_rounds(SPEC) == load_record(EXPERIMENT, SPEC)


def test_the_limit_of_a_round_holds_the_dense_truth(record: dict[str, Any]) -> None:
    data = load_dataset("digits").on_device("train", "cpu", 300)
    initial = build_model("fc3", input_shape=(1, 8, 8), seed=0)
    one = list(iterative_rounds(initial, data, SETTINGS))[-1]
    operator = HessianOperator(one.model, cross_entropy, data.tensors())
    keep = flatten([one.masks[name] for name in operator.names])
    matrix = operator.dense().double() * keep[:, None] * keep  # the pruned weights stay where they are
    found = record["rounds"][-1]
    epsilon, path = found["measured"]["epsilon"], MagnitudePath(one.model)
    truth = exact_limit(torch.linalg.eigvalsh(matrix).numpy(), path.distance, epsilon)
    limit = formula_limit(Spectrum.from_dict(found["spectrum"]), fine_distance(found), epsilon)
    assert limit.interval[0] - 1e-3 <= truth <= limit.interval[1] + 1e-3
    assert limit.total == path.total
    assert truth >= found["sparsity"]  # what is removed costs no distance


def test_pruned_weights_are_outside_of_the_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    masks = magnitude_masks(model, 0.5)
    sample = torch.randn(20, 3), torch.randint(0, 2, (20,))
    operator = kept_operator(model, sample, masks)
    dense = HessianOperator(model, cross_entropy, sample).dense()
    keep = flatten(list(masks.values())).bool()
    assert operator.nullity == 10
    np.testing.assert_allclose(operator @ torch.eye(10), dense[keep][:, keep], atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_limits(record: dict[str, Any]) -> None:
    spec = dataclasses.replace(SPEC, settings=dataclasses.replace(SETTINGS, rounds=1), steps=48)
    assert run_rounds(spec, deadline=time.monotonic()) is None
    stops = 0
    while (found := run_rounds(spec, deadline=time.monotonic() + 0.05)) is None:
        stops += 1
        assert stops < 400
    for mine, whole in zip(found["rounds"], record["rounds"], strict=False):
        assert mine["train_loss"] == whole["train_loss"]
        assert mine["radius"] == whole["radius"]
        probe = Spectrum.from_dict(whole["spectrum"]).truncated(48).probes[0]
        np.testing.assert_allclose(
            Spectrum.from_dict(mine["spectrum"]).probes[0].alpha, probe.alpha, rtol=1e-3, atol=1e-5
        )
