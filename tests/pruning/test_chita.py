"""CHITA's objective is the published regression, and its solution is close to the best subset of twelve features."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.errors import PruneLimitError
from prunelimit.pruning.chita import ChitaSpec, HardThresholding, sparse_regression
from prunelimit.pruning.fisher import EmpiricalFisher
from prunelimit.pruning.stages import smallest

DAMPING = 1e-2


def instance(seed, features=12, examples=30):
    generator = torch.Generator().manual_seed(seed)
    scale = 0.2 + 2 * torch.rand(features, generator=generator, dtype=torch.float64)
    gradients = torch.randn(examples, features, generator=generator, dtype=torch.float64) * scale
    w = torch.randn(features, generator=generator, dtype=torch.float64)
    return EmpiricalFisher(gradients, DAMPING), w


def published(fisher, w, b, c):
    """The objective as the paper prints it, over the number of examples and up to its value at b = w."""
    n, x = fisher.examples, fisher.gradients
    y = x @ w - c * torch.ones(n, dtype=torch.float64)

    def value(point):
        return ((y - x @ point).square().sum() + n * DAMPING * (point - w).square().sum()) / (2 * n)

    return float(value(b) - value(w))


def best_subset(fisher, w, keep, c=0.0):
    """The least objective over all supports, each with a dense least-squares solution."""
    n, x = fisher.examples, fisher.gradients
    y = x @ w - c * torch.ones(n, dtype=torch.float64)
    supports = torch.tensor(list(itertools.combinations(range(len(w)), keep)))  # (S, k), solved all at once
    ridge = (n * DAMPING) ** 0.5
    rows = torch.cat([x[:, supports].movedim(0, 1), ridge * torch.eye(keep).double().expand(len(supports), -1, -1)], 1)
    right = torch.cat([y.expand(len(supports), -1), ridge * w[supports]], 1)
    points = torch.zeros(len(supports), len(w), dtype=torch.float64)
    points.scatter_(1, supports, torch.linalg.lstsq(rows, right.unsqueeze(2)).solution.squeeze(2))
    return min(published(fisher, w, b, c) for b in points)


@pytest.mark.parametrize("c", [0.0, 1.0])
def test_the_objective_is_the_published_one(c):
    fisher, w = instance(0)
    b = torch.where(w.abs() > 0.5, w + 0.3, 0.0)
    assert HardThresholding(fisher, w, b, 5, c).value == pytest.approx(published(fisher, w, b, c), rel=1e-9)


@given(seed=st.integers(0, 10_000), keep=st.integers(0, 12), c=st.sampled_from([0.0, 1.0]))
def test_it_keeps_so_many_and_is_never_worse_than_magnitude_refitted(seed, keep, c):
    fisher, w = instance(seed)
    kept, b, report = sparse_regression(fisher, w, keep, ChitaSpec(first_order=c))
    assert int(kept.sum()) == keep
    assert (b[~kept] == 0).all()
    magnitude = fisher.refit(w, ~smallest(w.abs(), 12 - keep), c)
    found = published(fisher, w, b, c)
    assert found <= published(fisher, w, magnitude, c) + 1e-12
    assert report["objective"] == pytest.approx(found, rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 10_000), c=st.sampled_from([0.0, 1.0]))
def test_the_objective_never_rises_and_the_point_stays_sparse(seed, c):
    fisher, w = instance(seed)
    search = HardThresholding(fisher, w, torch.where(smallest(w.abs(), 7), 0.0, w), 5, c)
    for _ in range(10):
        before = search.value
        fell = search.iterate()
        assert search.value == pytest.approx(before - fell, rel=1e-12, abs=1e-15)
        assert fell >= 0
        assert int((search.point != 0).sum()) <= 5
        assert search.value == pytest.approx(published(fisher, w, search.point, c), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("c", [0.0, 1.0])
def test_it_is_near_the_best_subset_of_twelve_features(c):
    gaps, magnitude = [], []
    for seed in range(12):
        fisher, w = instance(seed)
        best = best_subset(fisher, w, 5, c)
        _, _, report = sparse_regression(fisher, w, 5, ChitaSpec(first_order=c))
        gaps.append(report["objective"] - best)
        magnitude.append(report["magnitude_objective"] - best)
        assert gaps[-1] >= -1e-12
    assert sum(gaps) < 0.5 * sum(magnitude)


def test_orthogonal_features_of_equal_length_are_solved_exactly():
    gradients = torch.linalg.qr(torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    fisher = EmpiricalFisher(5 * gradients, DAMPING)
    w = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept, b, report = sparse_regression(fisher, w, 4, ChitaSpec(first_order=1.0))
    assert report["objective"] == pytest.approx(best_subset(fisher, w, 4, 1.0), rel=1e-9)
    assert int(kept.sum()) == int((b != 0).sum()) == 4


@pytest.mark.parametrize("options", [{"iterations": -1}, {"tolerance": -1.0}, {"first_order": -1.0}])
def test_settings_that_cannot_search_are_refused(options):
    with pytest.raises(PruneLimitError, match=f"{next(iter(options))}="):
        ChitaSpec(**options)
