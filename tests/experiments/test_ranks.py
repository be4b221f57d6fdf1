"""Rank statistics against scipy and scikit-learn, and their weights against copies of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import ranks

VALUES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=3, max_size=12)


def unpacked(rows):
    first, second, counts = np.array(rows, dtype=float).T
    return first, second, counts, np.repeat(np.arange(len(rows)), counts.astype(int))


@given(VALUES)
def test_a_row_that_counts_twice_is_two_rows(rows):
    first, second, counts, places = unpacked(rows)
    found = ranks.spearman(first, second, counts[None])[0]
    if len(set(first[places])) < 2 or len(set(second[places])) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(first[places], second[places]).statistic, abs=1e-9)


@given(VALUES)
def test_concordance_is_the_area_under_the_curve(rows):
    score, second, counts, places = unpacked(rows)
    truth = second > 1
    found = ranks.concordance(score, truth, counts[None])[0]
    if len(set(truth[places])) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(truth[places], score[places]), abs=1e-9)


def test_groups_are_compared_within_themselves():
    groups = [0, 0, 0, 1, 1, 1]
    first, second = [1, 2, 3, 3, 2, 1], [11, 12, 13, 1, 2, 3]
    assert ranks.grouped_spearman(first, second, groups)[0] == pytest.approx(0)
    assert ranks.grouped_spearman(first, [1, 2, 3, 7, 7, 7], groups)[0] == pytest.approx(1)  # the other does not vary
    truth = [False, False, True, True, False, False]
    assert ranks.concordance([1, 2, 3, 13, 12, 14], truth, groups=groups)[0] == pytest.approx(3 / 4)
    assert np.isnan(ranks.concordance(first, [True] * 3 + [False] * 3, groups=groups)[0])


def test_clusters_are_drawn_whole():
    values, seeds = np.repeat([10, 20, 30], 2), np.tile([0, 1], 3)
    counts = ranks.cluster_counts([values, seeds], draws=4000)
    assert (counts.sum(1) == 6).all()
    # Rows of one value have the counts of their seeds, in one ratio; drawn alike on average.
    by_value, by_seed = counts.reshape(-1, 3, 2).sum(2) / 2, counts.reshape(-1, 3, 2).sum(1) / 3
    np.testing.assert_allclose(counts.reshape(-1, 3, 2), by_value[:, :, None] * by_seed[:, None, :])
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.1)
    assert (ranks.cluster_counts([values], 5, 1) == ranks.cluster_counts([values], 5, 1)).all()


def test_labels_of_different_lengths_are_refused():
    with pytest.raises(PruneLimitError, match="labels"):
        ranks.cluster_counts([[1, 2], [1]])


def test_an_interval_needs_most_of_its_draws():
    assert ranks.interval(np.arange(1001)) == (25, 975)
    assert np.isnan(ranks.interval([1, np.nan, np.nan])).all()


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        values, seeds = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
        effect = generator.normal(size=12)[values]
        x = effect + generator.normal(size=72)
        y = generator.normal(size=12)[values] + generator.normal(size=72)  # independent of x, but clustered alike
        low, high = ranks.interval(ranks.spearman(x, y, ranks.cluster_counts([values, seeds], 300, trial)))
        held += low <= 0 <= high
    assert held >= 51
