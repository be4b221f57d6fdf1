"""The swap search agrees with dense costs, and with exhaustive search where that is possible."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.errors import PruneLimitError
from prunelimit.pruning.cbs import CbsSpec, SwapSearch, random_partition, removal_cost, select_together
from prunelimit.pruning.fisher import EmpiricalFisher
from prunelimit.pruning.stages import smallest

DAMPING = 1e-4


def instance(seed, weights=11, examples=6):
    """Weights whose effects on the examples often cancel: fewer examples than weights."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(examples, weights, generator=generator, dtype=torch.float64)
    w = torch.randn(weights, generator=generator, dtype=torch.float64)
    dense = DAMPING * torch.eye(weights, dtype=torch.float64) + gradients.T @ gradients / examples
    return EmpiricalFisher(gradients, DAMPING), w, dense


def dense_cost(dense, w, removed):
    return float(w[removed] @ dense[removed][:, removed] @ w[removed])


def all_costs(dense, w, count):
    """Return the cost of every set of ``count`` weights."""
    sets = torch.tensor(list(itertools.combinations(range(len(w)), count)))
    chosen = torch.zeros(len(sets), len(w), dtype=torch.float64).scatter_(1, sets, 1.0) * w
    return ((chosen @ dense) * chosen).sum(1)


def wide(**changes):
    """Settings that look at every pair."""
    return CbsSpec(**{"window": 20, "attempts": 20, "threshold": 0.0, **changes})


@given(seed=st.integers(0, 10_000), count=st.integers(0, 11))
def test_cost_is_the_dense_quadratic_form(seed, count):
    fisher, w, dense = instance(seed)
    removed = smallest(w.abs(), count)
    assert removal_cost(fisher, w, removed) == pytest.approx(dense_cost(dense, w, removed), rel=1e-9, abs=1e-14)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 10), window=st.integers(1, 12), attempts=st.integers(0, 12))
def test_a_sweep_keeps_the_count_and_every_swap_pays(seed, count, window, attempts):
    fisher, w, dense = instance(seed)
    search = SwapSearch(fisher, w, smallest(w.abs(), count))
    before = dense_cost(dense, w, search.removed)
    swaps = search.sweep(window, attempts, 1e-3)
    after = dense_cost(dense, w, search.removed)
    assert int(search.removed.sum()) == count
    assert after <= before - 1e-3 * swaps + 1e-12
    assert search.cost() == pytest.approx(after, rel=1e-9, abs=1e-14)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 10))
def test_the_search_ends_where_no_swap_pays(seed, count):
    fisher, w, dense = instance(seed)
    removed, report = select_together(fisher, w, count, wide(), torch.Generator().manual_seed(0))
    assert int(removed.sum()) == count
    cost = dense_cost(dense, w, removed)
    assert report["cost"] <= report["start_cost"] <= report["magnitude_cost"]
    for i, j in itertools.product(removed.nonzero().flatten(), (~removed).nonzero().flatten()):
        swapped = removed.clone()
        swapped[i], swapped[j] = False, True
        assert dense_cost(dense, w, swapped) >= cost * (1 - 1e-9)


def test_it_is_near_the_optimum_of_exhaustive_search():
    found, magnitude = [], []
    for seed in range(40):
        fisher, w, dense = instance(seed)
        best = min(all_costs(dense, w, 6))
        removed, report = select_together(fisher, w, 6, wide(), torch.Generator().manual_seed(seed))
        found.append(dense_cost(dense, w, removed) / best)
        magnitude.append(report["magnitude_cost"] / best)
        assert found[-1] >= 1 - 1e-9
    found, magnitude = torch.tensor(found, dtype=torch.float64), torch.tensor(magnitude)
    assert (found < 1 + 1e-9).float().mean() >= 0.5  # the optimum itself in at least half of the instances
    assert found.median() < 1.01
    assert magnitude.median() > 1.5  # where magnitude alone is far from it


def test_weights_that_cancel_leave_together():
    gradients = torch.tensor([[4.0, 2.0, -2.2, 9.0, 8.0]], dtype=torch.float64).repeat(4, 1)
    w = torch.tensor([0.5, 0.8, 0.9, 1.0, 1.1], dtype=torch.float64)  # the first and the third pull against each other
    fisher = EmpiricalFisher(gradients, DAMPING)
    removed, report = select_together(fisher, w, 2, wide(starts=0), torch.Generator().manual_seed(0))
    assert removed.tolist() == [True, False, True, False, False]
    assert report["magnitude_cost"] > 10 > 0.01 > report["cost"]


def test_a_threshold_above_every_gain_leaves_the_start():
    fisher, w, _ = instance(5)
    spec = wide(starts=0, threshold=1e9)
    removed, report = select_together(fisher, w, 5, spec, torch.Generator().manual_seed(0))
    assert torch.equal(removed, smallest(w.abs(), 5))
    assert (report["swaps"], report["sweeps"]) == (0, 1)


@given(total=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_random_partition_removes_exactly_so_many(total, share, seed):
    w = torch.randn(total, generator=torch.Generator().manual_seed(seed))
    count = round(share * total)
    assert int(random_partition(w, count, torch.Generator().manual_seed(seed)).sum()) == count


def test_random_partitions_differ_but_stay_near_magnitude():
    w = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    one, two = (random_partition(w, 1400, torch.Generator().manual_seed(s)) for s in (1, 2))
    magnitude = smallest(w.abs(), 1400)
    assert not torch.equal(one, two)
    assert 0.8 < (one & magnitude).sum() / 1400 < 1


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"attempts": -1}, {"threshold": -1.0}, {"sweeps": -1}, {"starts": -1}]
)
def test_settings_that_cannot_search_are_refused(options):
    with pytest.raises(PruneLimitError, match=f"{next(iter(options))}="):
        CbsSpec(**options)
