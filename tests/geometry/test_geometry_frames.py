"""Frames of the geometry pages: counts, intervals and predictions agree with direct computation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunelimit import PruneLimitError
from prunelimit.experiments import geometry_frames as frames
from prunelimit.geometry import EllipsoidCone, ellipsoid_dimension, transition_window


@pytest.fixture(scope="module")
def thresholds() -> pd.DataFrame:
    return frames.thresholds_frame([12, 24], rotations=150)


@pytest.fixture(scope="module")
def phase(thresholds: pd.DataFrame) -> pd.DataFrame:
    return frames.phase_frame(thresholds)


def test_lines_meet_between_the_tangents_and_nowhere_else() -> None:
    cone = EllipsoidCone([0.9, 0.3], [1.1, 0.8])
    low, high = sorted(math.atan2(ray[1], ray[0]) for ray in cone.edges())
    lines = frames.lines_frame(cone, count=60)
    assert list(lines.meets) == [low <= a <= high for a in lines.angle]
    assert 0 < lines.meets.sum() < 60


def test_dimension_rows() -> None:
    table = frames.dimension_frame(["ball", "wide"], 40, [0.05, 0.7, 1.5], ["random", "flattest", "stiffest"], 400)
    # From a distance that is shorter than the half-axis along the line of sight the point would lie inside.
    kept = {(r.ellipsoid, r.direction, r.distance) for r in table.itertuples()}
    assert ("wide", "flattest", 0.7) not in kept
    assert ("ball", "random", 0.05) not in kept
    assert ("wide", "flattest", 1.5) in kept
    assert table.exact.notna().equals(table.ellipsoid == "ball")
    row = table[(table.ellipsoid == "wide") & (table.direction == "stiffest") & (table.distance == 1.5)].iloc[0]
    assert row.formula == pytest.approx(ellipsoid_dimension(frames.half_axes("wide", 40), 1.5))
    assert row.difference == pytest.approx(row.formula - row.measured)
    assert (table.measured > table.low - 4 * table.error).all()
    assert (table.measured < table.high + 4 * table.error).all()


def test_examples() -> None:
    wide, ball = frames.half_axes("wide", 50), frames.half_axes("ball", 50)
    assert wide.max() / wide.min() == pytest.approx(frames.RATIO)
    assert (ball**2).sum() == pytest.approx((wide**2).sum())
    with pytest.raises(PruneLimitError, match=r"^name='flat'"):
        frames.half_axes("flat", 3)


def test_projections_concentrate() -> None:
    table = frames.concentration_frame([20, 320], 0.4, 500)
    spread = table.groupby("total").share.std()
    assert spread[20] / spread[320] == pytest.approx(4, rel=0.25)  # the root of the ratio of the dimensions


@pytest.mark.parametrize("count", [0, 3, 50, 100])
def test_wilson_ends_solve_their_equation(count: int) -> None:
    """An end p of the interval is where the observed share lies 1.96 standard deviations of p away."""
    for end in frames.wilson_interval(np.array(count), 100):
        assert abs(count / 100 - end) == pytest.approx(
            stats.norm.ppf(0.975) * math.sqrt(end * (1 - end) / 100), abs=1e-7
        )


def test_probabilities_count_thresholds(thresholds: pd.DataFrame, phase: pd.DataFrame) -> None:
    for (cone, total), part in phase.groupby(["cone", "total"]):
        first = thresholds["first"][(thresholds.cone == cone) & (thresholds.total == total)]
        assert list(part.dimension) == list(range(total + 1))
        assert part.probability.iloc[0] == 0
        assert part.probability.iloc[-1] == 1
        assert part.probability[part.dimension == 7].item() == (first <= 7).mean()
        assert ((part.low <= part.probability) & (part.probability <= part.high)).all()


def test_exact_probabilities_lie_in_almost_all_intervals(phase: pd.DataFrame) -> None:
    known = phase[phase.exact.notna() & (phase.exact > 0.01) & (phase.exact < 0.99)]
    assert set(known.cone) == {"orthant", "circular cone, 30°"}
    assert ((known.low <= known.exact) & (known.exact <= known.high)).mean() > 0.8


def test_windows(thresholds: pd.DataFrame, phase: pd.DataFrame) -> None:
    table = frames.window_frame(thresholds, phase, 0.1)
    assert len(table) == 8
    assert (table.outside == 0).all()
    assert np.abs(table["median"] - table.predicted).max() < 3
    assert (table.allowed > table.half_width).all()
    assert table.allowed.iloc[0] == pytest.approx(transition_window(12, 0.1))
    row = table[(table.cone == "orthant") & (table.total == 24)].iloc[0]
    coins = stats.binom(23, 0.5)  # Wendel
    assert row.half_width == pytest.approx((coins.ppf(0.9) - coins.ppf(0.1)) / 2, abs=1)
