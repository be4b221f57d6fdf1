"""The minimum of a quadratic in a ball, against its optimality conditions and a brute-force search."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from prunelimit.errors import PruneLimitError
from prunelimit.minima import ball_minimum


def check(matrix: np.ndarray, slope: np.ndarray, radius: float) -> None:
    """Moré and Sorensen: these conditions hold at a global minimiser and nowhere else."""
    value, z = ball_minimum(matrix, slope, radius)
    length = np.linalg.norm(z)
    assert length <= radius * (1 + 1e-7)
    assert value == pytest.approx(slope @ z + z @ matrix @ z / 2, rel=1e-9, abs=1e-12)
    pull = -(slope + matrix @ z)
    scale = np.linalg.norm(matrix) * radius + np.linalg.norm(slope)
    multiplier = max(0.0, pull @ z / radius**2) if length > radius * (1 - 1e-6) else 0.0
    np.testing.assert_allclose(pull, multiplier * z, atol=1e-6 * scale)
    assert np.linalg.eigvalsh(matrix)[0] + multiplier >= -1e-6 * scale / radius


@given(st.integers(1, 7), st.integers(0, 10_000), st.floats(0.01, 100), st.sampled_from(["any", "psd", "null", "hard"]))
def test_the_conditions_of_optimality_hold(size, seed, radius, kind):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values, parts = np.sort(rng.standard_normal(size)), rng.standard_normal(size)
    if kind in ("psd", "null"):
        values = np.sort(np.abs(values))
    if kind == "null":
        values[0] = 0
    if kind == "hard":
        parts[0] = 0
    check((turn * values) @ turn.T, turn @ parts, radius)


def test_no_point_of_the_ball_is_lower():
    rng = np.random.default_rng(0)
    for _ in range(5):
        matrix = rng.standard_normal((3, 3))
        matrix, slope = matrix + matrix.T, rng.standard_normal(3)
        points = rng.standard_normal((20_000, 3))
        points *= (2 * rng.random((20_000, 1)) ** (1 / 3)) / np.linalg.norm(points, axis=1, keepdims=True)
        values = points @ slope + np.einsum("ni,ij,nj->n", points, matrix, points) / 2
        lowest = ball_minimum(matrix, slope, 2.0)[0]
        assert lowest <= values.min()
        assert lowest == pytest.approx(values.min(), rel=0.05)


def test_nothing_to_do():
    assert ball_minimum(np.zeros((2, 2)), np.zeros(2), 1.0)[0] == 0
    assert ball_minimum(np.eye(2), np.ones(2), 0.0)[0] == 0
    assert ball_minimum(np.zeros((0, 0)), np.zeros(0), 1.0)[0] == 0
    assert ball_minimum(np.zeros((2, 2)), np.array([3.0, 4.0]), 2.0)[0] == pytest.approx(-10)


@pytest.mark.parametrize("radius", [-1.0, np.inf, np.nan])
def test_a_bad_radius_is_refused(radius):
    with pytest.raises(PruneLimitError, match="must be a finite number, at least zero"):
        ball_minimum(np.eye(2), np.ones(2), radius)
