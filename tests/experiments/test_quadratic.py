"""Quadratics: the fast simulation against plain minimisation, exact distributions, and what the theorem promises."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import quadratic as q
from prunelimit.experiments import quadratic_frames as frames
from prunelimit.experiments.geometry_frames import wilson_interval
from prunelimit.geometry import random_rotation
from prunelimit.limit import effective_dimension

FAMILIES = list(q.FAMILIES)


def well_of(family, dimension=60, epsilon=0.02, distribution="gaussian", seed=0):
    weights = q.drawn_weights(distribution, dimension, np.random.default_rng(seed))
    return q.QuadraticWell(q.chosen_spectrum(family, dimension), weights, epsilon)


def brute_force(hessian, basis, step):
    """Minimise 1/2 (step + basis z)' H (step + basis z) by the normal equations."""
    z = scipy.linalg.lstsq(basis.T @ hessian @ basis, -basis.T @ hessian @ step)[0]
    point = step + basis @ z
    return 0.5 * point @ hessian @ point


@pytest.mark.parametrize("family", FAMILIES)
def test_spectra_fall_and_have_mean_one(family):
    values = q.chosen_spectrum(family, 100)
    assert values.mean() == pytest.approx(1)
    assert (np.diff(values) <= 0).all()
    assert (values == 0).sum() == (30 if family == "null" else 0)


def test_the_shape_of_a_spectrum_is_the_readers():
    power = q.chosen_spectrum("power", 50, exponent=2.0)
    assert power[0] / power[9] == pytest.approx(100)
    outliers = q.chosen_spectrum("outliers", 50, outliers=0.1, ratio=30.0)
    assert outliers[0] / outliers[5] == pytest.approx(30)
    assert (outliers > 2 * outliers[5]).sum() == 5
    levels = q.chosen_spectrum("levels", 50, ratio=7.0)
    assert levels[0] / levels[-1] == pytest.approx(7)
    spread = q.chosen_spectrum("loguniform", 50, decades=3.0)
    assert spread[0] / spread[-1] == pytest.approx(1000)


@pytest.mark.parametrize("distribution", q.DISTRIBUTIONS)
def test_weights_have_length_one_and_distances_end_there(distribution):
    well = well_of("flat", distribution=distribution)
    assert well.distance[0] == 0
    assert well.distance[-1] == pytest.approx(1)
    steps = well.displacements([0, 7, 60])
    assert np.linalg.norm(steps, axis=0) == pytest.approx(well.distance[[0, 7, 60]])
    assert np.count_nonzero(steps[:, 1]) == 7
    assert np.abs(well.weights[steps[:, 1] != 0]).max() <= np.abs(well.weights[steps[:, 1] == 0]).min()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_rise_over_a_random_subspace_is_the_minimum(family):
    well, rng = well_of(family, 24), np.random.default_rng(1)
    counts = [1, 6, 13, 20, 24]
    root = np.sqrt(well.eigenvalues)[:, None]
    draw, steps = rng.standard_normal((24, 24)), well.displacements(counts)
    positive = well.eigenvalues > 0
    found = q.smallest_rises((root * draw)[positive], (root * steps)[positive], 24 - np.array(counts))
    for value, count, step in zip(found, counts, steps.T, strict=True):
        basis = scipy.linalg.orth(draw[:, : 24 - count])
        assert value == pytest.approx(brute_force(np.diag(well.eigenvalues), basis, step), abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_rise_over_the_kept_weights_is_the_minimum(family):
    well = well_of(family, 24)
    counts = [1, 6, 13, 20, 24]
    found = q.coordinate_rises(well, counts, "random", 1, np.random.default_rng(5))[0]
    rotation = random_rotation(24, np.random.default_rng(5))  # the one that was drawn inside
    hessian = rotation.T @ np.diag(np.sort(well.eigenvalues)) @ rotation
    for value, count, step in zip(found, counts, well.displacements(counts).T, strict=True):
        kept = np.eye(24)[:, well.order[count:]]
        assert value == pytest.approx(brute_force(hessian, kept, step), abs=1e-9)


def test_along_the_weights_the_rise_is_the_saliency_of_what_is_removed():
    weights = np.array([0.1, -0.2, 0.3, -0.4])
    well = q.QuadraticWell(np.array([8.0, 4.0, 2.0, 1.0]), weights, 0.1)
    rng = np.random.default_rng(0)
    small, large = (q.coordinate_rises(well, [1, 2, 4], name, 1, rng)[0] for name in ("small", "large"))
    assert small == pytest.approx([0.5 * 8 * 0.01, 0.5 * (0.08 + 0.16), 0.5 * (0.08 + 0.16 + 0.18 + 0.16)])
    assert large == pytest.approx([0.5 * 0.01, 0.5 * (0.01 + 0.08), 0.5 * (0.01 + 0.08 + 0.36 + 1.28)])
    shuffled = q.coordinate_rises(well, [4], "independent", 200, rng)
    assert np.ptp(shuffled) > 0
    assert shuffled.mean() == pytest.approx(0.5 * well.eigenvalues.mean() * (weights**2).sum(), rel=0.1)


@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=12), st.integers(0, 2**20))
def test_no_subspace_beats_a_larger_one(values, seed):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(len(values))
    well = q.QuadraticWell(np.array(values), weights, 0.1)
    rises = q.coordinate_rises(well, range(len(values) + 1), "random", 1, rng)[0]
    assert rises[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(rises) >= -1e-9 * max(rises[-1], 1e-12)).all()  # fewer places for the kept weights each time


@pytest.mark.parametrize("count", [10, 30, 50])
def test_for_a_ball_the_rise_has_the_beta_distribution(count):
    well = well_of("flat", 60)
    rises = q.random_rises(well, [count], 300, np.random.default_rng(count))[:, 0]
    share = 2 * rises / well.distance[count] ** 2
    assert stats.kstest(share, stats.beta(count / 2, (60 - count) / 2).cdf).pvalue > 1e-3


@given(st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=30))
def test_the_mean_curvature_falls_from_the_mean_eigenvalue_to_zero(values):
    spectrum = np.array(values)
    kept = np.arange(len(values) + 1)
    found = q.mean_curvature(spectrum, kept)
    assert found[0] == pytest.approx(spectrum.mean())
    assert found[-1] == 0
    assert (np.diff(found) < 1e-12 * spectrum.mean()).all()
    for k in kept[1:-1]:  # what it is made of: d(mu) = k
        mu = found[k] * len(values) / k
        assert effective_dimension(spectrum, mu) == pytest.approx(k, rel=1e-6)


def test_the_mean_curvature_of_a_ball_is_the_share_removed():
    assert q.mean_curvature(np.ones(50), [10, 25, 40]) == pytest.approx([0.8, 0.5, 0.2])


@pytest.mark.parametrize("family", ["power", "levels", "loguniform"])
def test_the_mean_rise_is_what_the_proposition_says(family):
    well, rng = well_of(family, 100), np.random.default_rng(3)
    counts = np.array([35, 50, 75])
    s = counts / 100
    half = 0.5 * well.distance[counts] ** 2
    over = {
        "random": q.random_rises(well, counts, 150, rng) / half,
        "coordinates": q.coordinate_rises(well, counts, "random", 150, rng) / half * s,
    }
    expected = q.mean_curvature(well.eigenvalues, 100 - counts)
    for rises in over.values():  # both means are nu: to leading order in D (2 %), and up to noise
        error = rises.std(axis=0) / np.sqrt(len(rises))
        assert (np.abs(rises.mean(axis=0) - expected) < 4 * error + 0.02 * expected).all()


@pytest.fixture(scope="module")
def simulated():
    wells = {family: well_of(family, 200) for family in FAMILIES}
    success = frames.success_frame(wells, trials=20, points=41)
    return wells, success, frames.prediction_frame(wells, success)


def test_random_subspaces_meet_where_the_theorem_promises(simulated):
    _, success, predictions = simulated
    for _, row in predictions.iterrows():
        part = success[(success.name == row["name"]) & (success.subspace == "random")]
        # At least 99 % of each; that three of twenty miss by chance has a probability of about one in a thousand.
        assert (part.probability[part.sparsity <= row.lower - 2 / 200] > 0.85).all()


def test_the_transition_lies_in_the_window_and_right_of_the_limit(simulated):
    predictions = simulated[2]
    assert (predictions.lower < predictions.formula).all()
    assert (predictions.random <= predictions.upper).all()
    assert (predictions.random > predictions.formula).all()


def test_the_transition_is_where_the_mean_rise_passes_epsilon(simulated):
    predictions = simulated[2]
    for subspace in q.SUBSPACES:
        assert (predictions[subspace] - predictions[f"{subspace}_mean"]).abs().max() < 0.03


def test_a_ball_is_met_outside_of_the_window():
    places = frames.ball_places(frames.ball_frame([300, 30_000], 0.1)).set_index("dimension")
    assert places.loc[300, "half"] < places.loc[300, "upper"]
    assert places.loc[30_000, "half"] > places.loc[30_000, "upper"] + 0.05
    well = well_of("flat", 30_000, 0.1)
    at = places.loc[30_000, "half"]
    assert 2 * 0.1 / well.distance[round(at * 30_000)] ** 2 == pytest.approx(at, abs=2e-3)  # s = r^2 / R^2


def test_wilson_by_hand():
    low, high = wilson_interval(np.array([0, 5, 10]), 10)
    assert low == pytest.approx([0, 0.2366, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.7634, 1], abs=1e-4)


def test_halfway_by_hand():
    frame = pd.DataFrame({"sparsity": [0.2, 0.4, 0.6, 0.8], "probability": [1.0, 0.75, 0.25, 0.0]})
    assert frames.halfway(frame) == pytest.approx(0.5)
    assert frames.halfway(frame.assign(probability=1.0)) == 1
    assert frames.halfway(frame.assign(probability=0.0)) == pytest.approx(0.1)


def test_orientations_pass_where_their_median_does():
    wells = {"a": well_of("loguniform", 40)}
    frame = frames.orientation_frame(wells["a"], draws=3, points=41)
    table = frames.orientation_table(wells, {"a": frame}).iloc[0]
    assert table["formula s*"] == wells["a"].predicted()
    for label, part in frame.groupby("label"):
        assert part["median"][part.sparsity <= table[label]].max() <= 1
        assert (part["median"][part.sparsity > table[label]] > 1).all()
    assert list(table.index[2:]) == list(frames.CASES.values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: q.chosen_spectrum("flaat", 10), "Did you mean 'flat'"),
        (lambda: q.chosen_spectrum("flat", 1), "dimension=1"),
        (lambda: q.chosen_spectrum("null", 10, nullity=1.0), "nullity=1.0"),
        (lambda: q.drawn_weights("normal", 10, np.random.default_rng(0)), "weights='normal'"),
        (lambda: q.QuadraticWell(np.ones(3), np.ones(4), 0.1), "one length"),
        (lambda: q.QuadraticWell(-np.ones(3), np.ones(3), 0.1), "negative"),
        (lambda: q.QuadraticWell(np.ones(3), np.ones(3), 0.0), "epsilon=0.0"),
        (lambda: well_of("flat").expected("cone"), "subspace='cone'"),
        (lambda: q.coordinate_rises(well_of("flat"), [1], "big", 1, np.random.default_rng(0)), "orientation='big'"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(PruneLimitError, match=words):
        call()
