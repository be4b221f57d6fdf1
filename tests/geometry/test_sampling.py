"""Random rotations and subspaces: orthogonal, of determinant one, and invariant in distribution."""

import numpy as np
import pytest
from scipy import stats

from prunelimit import PruneLimitError
from prunelimit.geometry import random_direction, random_rotation, random_subspace


@pytest.mark.parametrize("total", [1, 2, 5, 40])
def test_rotations_are_rotations(total: int) -> None:
    for seed in range(5):
        rotation = random_rotation(total, seed)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(total), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)


def samples(transform, seed: int, count: int = 3000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([transform(random_rotation(3, rng)) for _ in range(count)])


def test_entries_of_rotations_have_the_right_distribution() -> None:
    """Each entry of a Haar rotation in three dimensions is uniform on [-1, 1] (Archimedes)."""
    entries = samples(lambda q: q, 0)
    for i in range(3):
        for j in range(3):
            assert stats.kstest(entries[:, i, j], "uniform", (-1, 2)).pvalue > 1e-3


def test_the_trace_has_the_right_distribution() -> None:
    """1 + 2 cos theta with theta of density (1 - cos theta) / pi. QR without the sign fix fails this."""
    angles = np.arccos(np.clip((samples(np.trace, 1) - 1) / 2, -1, 1))
    assert stats.kstest(angles, lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-3
    rng = np.random.default_rng(1)
    plain = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(3000)]
    plain = [q * np.sign(np.linalg.det(q)) for q in plain]
    wrong = np.arccos(np.clip((np.trace(np.array(plain), axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(wrong, lambda t: (t - np.sin(t)) / np.pi).pvalue < 1e-3


def test_rotating_changes_nothing() -> None:
    fixed = random_rotation(3, 99)
    left, plain = samples(lambda q: np.trace(fixed @ q), 2), samples(lambda q: np.trace(q @ fixed), 3)
    assert stats.ks_2samp(left, samples(np.trace, 4)).pvalue > 1e-3
    assert stats.ks_2samp(plain, samples(np.trace, 4)).pvalue > 1e-3


def test_subspaces_are_orthonormal_and_uniform() -> None:
    rng = np.random.default_rng(5)
    direction = np.arange(1, 7) / np.linalg.norm(np.arange(1, 7))
    squares = []
    for _ in range(2000):
        basis = random_subspace(2, 6, rng)
        squares.append(((basis.T @ direction) ** 2).sum())
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-12)
    # The squared cosine of the angle between a subspace and any fixed direction is Beta(k / 2, (D - k) / 2).
    assert stats.kstest(squares, stats.beta(1, 2).cdf).pvalue > 1e-3
    assert random_subspace(0, 4, 0).shape == (4, 0)


def test_directions() -> None:
    rng = np.random.default_rng(6)
    entries = np.array([random_direction(3, rng) for _ in range(2000)])
    np.testing.assert_allclose(np.linalg.norm(entries, axis=1), 1)
    assert stats.kstest(entries[:, 2], "uniform", (-1, 2)).pvalue > 1e-3


def test_seeds_repeat() -> None:
    np.testing.assert_array_equal(random_rotation(4, 3), random_rotation(4, np.random.default_rng(3)))
    assert not np.allclose(random_rotation(4, 3), random_rotation(4, 4))


def test_bad_input() -> None:
    with pytest.raises(PruneLimitError, match=r"^dimension=5"):
        random_subspace(5, 4, 0)
    with pytest.raises(PruneLimitError, match=r"^ambient=2\.5"):
        random_rotation(2.5, 0)  # type: ignore[arg-type]
