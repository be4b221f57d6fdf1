"""prune_lomp, prune_random and prune_uniform: exact counts, brute force, and what their knowledge is worth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunelimit import magnitude_masks
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.controls import RandomSpec, UniformSpec, largest_remainder, prune_random, prune_uniform
from prunelimit.pruning.lomp import LompSpec, prune_lomp
from prunelimit.pruning.magnitude import removed_count
from prunelimit.training import evaluate

METHODS = {
    "lomp": (prune_lomp, LompSpec),
    "random": (prune_random, RandomSpec),
    "uniform": (prune_uniform, UniformSpec),
}

sparsities = st.floats(0, 1, exclude_max=True)
widths = st.lists(st.integers(1, 9), min_size=2, max_size=5)


def network(widths: list[int], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(widths)


def pruned(method: str, model: nn.Module, sparsity: float, seed: int = 0) -> Pruned:
    prune, spec = METHODS[method]
    return prune(model, NO_DATA, sparsity, spec(seed=seed))


NO_DATA = DeviceSplit(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), (0.0,), (1.0,), 1)


def flat(masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([m.reshape(-1) for m in masks.values()])


@pytest.mark.parametrize("method", METHODS)
@given(widths=widths, sparsity=sparsities, seed=st.integers(0, 9))
def test_exactly_the_wanted_number_of_weights_goes(method: str, widths: list[int], sparsity: float, seed: int) -> None:
    model = network(widths)
    masks = pruned(method, model, sparsity, seed).masks
    assert {n: m.shape for n, m in masks.items()} == {
        n: p.shape for n, p in model.named_parameters() if n.endswith("weight")
    }
    keep = flat(masks)
    assert set(keep.tolist()) <= {0.0, 1.0}
    assert int((keep == 0).sum()) == removed_count(sparsity, len(keep))


@pytest.mark.parametrize("method", METHODS)
def test_the_network_stays_as_it_was_and_only_masks_come_back(method: str) -> None:
    model = network([8, 6, 4])
    before = copy.deepcopy(model.state_dict())
    found = pruned(method, model, 0.7)
    assert not found.weights
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    applied = found.applied(model)
    for name, p in applied.named_parameters():
        assert torch.equal(p, before[name] * found.masks.get(name, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_a_sparsity_out_of_range_is_refused(method: str, sparsity: float) -> None:
    with pytest.raises(PruneLimitError, match="sparsity"):
        pruned(method, network([3, 2]), sparsity)


def test_lomp_is_one_global_cut() -> None:
    model = network([9, 8, 7])
    expected = magnitude_masks(model, 0.63)
    assert all(torch.equal(mask, expected[name]) for name, mask in pruned("lomp", model, 0.63).masks.items())


def test_random_masks_depend_on_the_seed_and_on_nothing_else() -> None:
    one, other = network([9, 8, 7], seed=0), network([9, 8, 7], seed=1)
    assert torch.equal(flat(pruned("random", one, 0.5, 3).masks), flat(pruned("random", other, 0.5, 3).masks))
    assert not torch.equal(flat(pruned("random", one, 0.5, 3).masks), flat(pruned("random", one, 0.5, 4).masks))


def test_every_weight_has_the_same_chance_at_random() -> None:
    model = network([10, 6, 4])
    draws = 400
    kept = sum(flat(pruned("random", model, 0.7, seed).masks) for seed in range(draws))
    share = kept.numpy() / draws
    assert abs(share - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / draws)


@given(widths=widths, sparsity=sparsities)
def test_uniform_takes_the_smallest_of_each_layer(widths: list[int], sparsity: float) -> None:
    model = network(widths)
    masks = pruned("uniform", model, sparsity).masks
    removed = removed_count(sparsity, len(flat(masks)))
    for name, mask in masks.items():
        count = int((mask == 0).sum())
        assert abs(count - removed * mask.numel() / len(flat(masks))) < 1
        magnitude = dict(model.named_parameters())[name].detach().abs().reshape(-1).tolist()
        gone = [w for w, k in zip(magnitude, mask.reshape(-1).tolist(), strict=True) if not k]
        assert sorted(gone) == sorted(magnitude)[:count]


@given(quotas=st.lists(st.integers(0, 10**6), min_size=1, max_size=8), total=st.integers(0, 1000))
def test_remainders_are_rounded_to_an_exact_sum(quotas: list[int], total: int) -> None:
    if not sum(quotas):
        return
    exact = [q * total / sum(quotas) for q in quotas]
    counts = largest_remainder(exact, total)
    assert sum(counts) == total
    assert all(abs(c - e) < 1 for c, e in zip(counts, exact, strict=True))
    # Whoever was rounded up had lost at least as much as whoever was not.
    up = [e % 1 for c, e in zip(counts, exact, strict=True) if c > e + 1e-6]
    down = [e % 1 for c, e in zip(counts, exact, strict=True) if c < e - 1e-6]
    assert min(up, default=1) >= max(down, default=0) - 1e-6


def test_magnitude_beats_uniform_beats_random(trained_digits: nn.Module, digits: Dataset) -> None:
    test = digits.on_device("test")

    def accuracy(method: str) -> float:
        return evaluate(pruned(method, trained_digits, 0.8).applied(trained_digits), test)[1]

    assert accuracy("lomp") > accuracy("uniform") > accuracy("random") + 0.2
