"""Distances between weight distributions are those of the definition, and what they are without difference is exact."""

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import distributions
from prunelimit.experiments.distributions import DistributionsSpec, run_distributions
from prunelimit.experiments.store import record_path
from prunelimit.models import build_model
from prunelimit.training import TrainSpec, train

SPEC = DistributionsSpec(
    train=TrainSpec(dataset="digits", model="fc5-quick", epochs=3, batch_size=64, lr=0.02, l1=1e-3, train_size=400),
    seeds=(0, 1),
    bins=(5, 50),
    draws=20,
)

COUNTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8).filter(
    lambda pairs: all(sum(part) > 0 for part in zip(*pairs, strict=True)) and all(sum(pair) > 0 for pair in pairs)
)


def both(pairs):
    return tuple(np.array(part) for part in zip(*pairs, strict=True))


@pytest.fixture(scope="module")
def record():
    return run_distributions(SPEC, label={"task": "test", "profile": "quick"}, progress=False)


def test_a_spec_comes_back_from_its_dictionary():
    assert DistributionsSpec.from_dict(SPEC.to_dict()) == SPEC
    assert [run.seed for run in SPEC.runs()] == [0, 1]
    assert SPEC.about() == "beside seed 1"
    assert dataclasses.replace(SPEC, seeds=(0,)).about() == "alone"


@pytest.mark.parametrize("change", [{"seeds": ()}, {"seeds": (0, 0)}, {"seeds": (1, 0)}, {"bins": (1,)}, {"draws": 1}])
def test_a_spec_that_compares_nothing_is_refused(change):
    with pytest.raises(PruneLimitError, match=next(iter(change))):
        dataclasses.replace(SPEC, **change)


@given(COUNTS)
def test_the_distance_is_the_largest_difference_of_any_event(pairs):
    first, second = both(pairs)
    shares = first / first.sum() - second / second.sum()
    events = itertools.product([0, 1], repeat=len(shares))
    largest = max(float(np.dot(event, shares)) for event in events)
    assert distributions.total_variation(first, second) == pytest.approx(largest, abs=1e-12)


def test_without_difference_all_divisions_count_alike():
    first, second = np.array([3, 0, 1]), np.array([1, 2, 0])
    pool = np.repeat([0, 1, 2], first + second)
    distances = []
    for chosen in itertools.combinations(range(len(pool)), int(first.sum())):
        part = np.bincount(pool[list(chosen)], minlength=3)
        distances.append(distributions.total_variation(part, first + second - part))
    assert distributions.expected_null(first, second) == pytest.approx(np.mean(distances), rel=1e-9)


@given(COUNTS)
def test_the_exact_mean_is_that_of_the_hypergeometric_distribution(pairs):
    first, second = both(pairs)
    sizes = first.sum(), second.sum()
    wanted = sum(
        scipy.stats.hypergeom(sum(sizes), m, sizes[0]).expect(
            lambda k, m=m: np.abs(k / sizes[0] - (m - k) / sizes[1]), maxcount=100
        )
        for m in first + second
    )
    assert distributions.expected_null(first, second) == pytest.approx(wanted / 2, rel=1e-6)


def test_random_divisions_agree_with_both_formulas():
    generator = np.random.default_rng(0)
    first, second = (generator.multinomial(4000, [0.7, 0.2, 0.05, 0.05]) for _ in range(2))
    drawn = distributions.drawn_null(first, second, 4000)
    error = 3 * drawn.std() / math.sqrt(len(drawn))
    assert distributions.expected_null(first, second) == pytest.approx(drawn.mean(), abs=error)
    assert distributions.approximate_null(first, second) == pytest.approx(drawn.mean(), abs=error)


def test_the_approximation_is_the_closed_form_of_equal_samples():
    first, second = np.array([500, 300, 200]), np.array([480, 330, 190])
    shares = (first + second) / 2000
    wanted = np.sqrt(shares * (1 - shares) / (math.pi * 1000)).sum()
    assert distributions.approximate_null(first, second) == pytest.approx(wanted)


def test_the_approximation_falls_short_where_every_weight_has_a_bin_of_its_own():
    first, second = np.arange(200) % 2, 1 - np.arange(200) % 2
    assert distributions.expected_null(first, second) == pytest.approx(1.0)
    assert distributions.approximate_null(first, second) < 0.8


def test_millions_of_counts_do_not_overflow():
    first = np.array([40_000_000, 5_000_000, 20])
    second = first + np.array([0, 0, 3])
    assert distributions.expected_null(first, second) == pytest.approx(
        distributions.approximate_null(first, second), rel=1e-3
    )


def test_equal_width_bins_are_those_of_numpy():
    generator = np.random.default_rng(1)
    first, second = (np.sort(generator.standard_normal(size)) for size in (500, 700))
    edges = np.linspace(min(first[0], second[0]), max(first[-1], second[-1]), 24)
    wanted = [np.histogram(sample, edges)[0] for sample in (first, second)]
    there = wanted[0] + wanted[1] > 0
    for found, counts in zip(distributions.equal_width_counts(first, second, 23), wanted, strict=True):
        np.testing.assert_array_equal(found, counts[there])


def test_far_more_bins_than_numbers_separate_all_that_differ():
    first, second = np.array([0.0, 1e-9, 1.0]), np.array([0.0, 2e-9, 1.0])
    one, other = distributions.equal_width_counts(first, second, 10**12)
    assert (one.tolist(), other.tolist()) == ([1, 1, 0, 1], [1, 0, 1, 1])


def test_equal_mass_bins_hold_equally_many_and_do_not_see_the_scale():
    generator = np.random.default_rng(2)
    first, second = (np.sort(generator.standard_normal(1000)) for _ in range(2))
    one, other = distributions.equal_mass_counts(first, second, 8)
    assert (one + other).tolist() == [250] * 8
    cubed = distributions.equal_mass_counts(first**3, second**3, 8)
    np.testing.assert_array_equal(cubed, (one, other))


def test_equal_numbers_share_a_bin():
    one, other = distributions.equal_mass_counts(np.zeros(10), np.array([0.0] * 9 + [1.0]), 4)
    assert (one.sum(), other.sum()) == (10, 10)
    assert distributions.total_variation(one, other) in (0.0, pytest.approx(0.1))


def test_the_named_rule_is_that_of_numpy():
    sample = np.sort(np.random.default_rng(3).standard_normal(4001))
    assert distributions.freedman_diaconis_bins(sample) == len(np.histogram_bin_edges(sample, "fd")) - 1
    assert distributions.freedman_diaconis_bins(np.array([0.0] * 9 + [1.0])) is None


def test_the_histogram_counts_every_weight_once():
    weights = np.array([-3.0, -1e-5, 0.0, 1e-15, 2e-5, 2e-5, 5.0, 300.0])
    found = distributions.histogram(weights)
    assert (sum(found["negative"]), sum(found["positive"])) == (2, 3)
    assert (found["below"], found["above"]) == (2, 1)
    place = int(np.searchsorted(distributions.magnitude_edges(), 2e-5)) - 1
    assert found["positive"][place] == 2


def test_statistics_are_those_of_scipy():
    weights = np.random.default_rng(4).laplace(size=5000) + 0.1
    found = distributions.statistics(weights)
    assert found["kurtosis"] == pytest.approx(scipy.stats.kurtosis(weights, fisher=False))
    assert found["mean_magnitude"] == pytest.approx(np.abs(weights).mean())
    assert found["effective"] == pytest.approx(np.abs(weights).sum() ** 2 / (weights**2).sum() / 5000)
    assert found["quantiles"]["0.5"] == pytest.approx(np.median(np.abs(weights)))
    assert found["below"]["0.1"] == (np.abs(weights) < 0.1).mean()


def test_the_record_holds_the_networks_that_the_seeds_give(record):
    assert [(n["state"], n["seed"]) for n in record["networks"]] == [
        (state, seed) for seed in (0, 1) for state in ("trained", "initial")
    ]
    for network in record["networks"]:
        counts = network["histogram"]
        assert sum(counts["negative"]) + sum(counts["positive"]) + counts["below"] + counts["above"] == 5920
    initial = build_model("fc5-quick", input_shape=(1, 8, 8), num_classes=10, seed=1)
    weights = distributions.sorted_weights(initial)
    assert record["networks"][3]["statistics"]["rms"] == pytest.approx(np.sqrt((weights.astype(float) ** 2).mean()))


def test_every_pair_is_compared_by_every_rule(record):
    rows = record["comparisons"]
    pairs = list(dict.fromkeys(zip(rows["kind"], rows["first"], rows["second"], strict=True)))
    assert pairs == [("trained", 0, 1), ("initial", 0, 1), ("change", 0, 0), ("change", 1, 1)]
    assert rows["rule"][:5] == ["equal width"] * 2 + ["equal mass"] * 2 + ["Freedman-Diaconis"]
    assert rows["bins"][:4] == [5, 50, 5, 50]
    dataset = load_dataset("digits")
    first, second = (
        distributions.sorted_weights(train(run, dataset=dataset, progress=False).model) for run in SPEC.runs()
    )
    wanted = distributions.total_variation(*distributions.equal_mass_counts(first, second, 50))
    assert rows["distance"][3] == pytest.approx(wanted)
    for drawn, deviation, expected in zip(rows["drawn"], rows["deviation"], rows["expected"], strict=True):
        assert abs(drawn - expected) < 5 * deviation / math.sqrt(SPEC.draws)


def test_a_recorded_run_is_not_repeated(record, monkeypatch):
    monkeypatch.setattr(distributions, "train", None)
    assert run_distributions(SPEC, progress=False)["comparisons"] == record["comparisons"]


def test_nothing_is_recorded_after_the_deadline():
    late = dataclasses.replace(SPEC, train=dataclasses.replace(SPEC.train, lr=0.03))
    assert run_distributions(late, deadline=time.monotonic() - 1, progress=False) is None
    assert not record_path(distributions.EXPERIMENT, late).exists()
