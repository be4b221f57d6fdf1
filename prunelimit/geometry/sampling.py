"""Uniformly random rotations, subspaces and directions."""

from __future__ import annotations

import numpy as np

from prunelimit.checks import integer

#: A generator, or the seed of one.
Random = np.random.Generator | int


def _frame(columns: int, ambient: int, rng: Random) -> np.ndarray:
    """Orthonormalise Gaussian columns; the signs make the factor unique and hence its distribution invariant."""
    factor, triangle = np.linalg.qr(np.random.default_rng(rng).standard_normal((ambient, columns)))
    return factor * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)


def random_rotation(ambient: int, rng: Random) -> np.ndarray:
    """Draw a uniformly random rotation (Haar measure on the special orthogonal group).

    QR of a Gaussian matrix with the diagonal of R made positive is uniform on the orthogonal group; Q as LAPACK returns it
    is not (Mezzadri 2007). Where the determinant comes out as -1 the first column is turned round.

    Args:
        ambient: Dimension D, at least one.
        rng: Generator or seed.

    Returns:
        ``(D, D)`` orthogonal matrix of determinant one.

    Examples:
        >>> rotation = random_rotation(3, rng=0)
        >>> bool(np.allclose(rotation @ rotation.T, np.eye(3))), round(float(np.linalg.det(rotation)), 6)
        (True, 1.0)
    """
    rotation = _frame(integer("ambient", ambient), ambient, rng)
    if np.linalg.slogdet(rotation)[0] < 0:
        rotation[:, 0] *= -1
    return rotation


def random_subspace(dimension: int, ambient: int, rng: Random) -> np.ndarray:
    """Draw an orthonormal basis of a uniformly random subspace.

    Args:
        dimension: Its dimension k, from 0 to D.
        ambient: Dimension D of the space.
        rng: Generator or seed.

    Returns:
        ``(D, k)`` matrix with orthonormal columns. The span of any subset of them is a uniformly random subspace too.
    """
    integer("dimension", dimension, 0, integer("ambient", ambient))
    return _frame(dimension, ambient, rng)


def random_direction(ambient: int, rng: Random) -> np.ndarray:
    """Draw a uniformly random unit vector.

    Args:
        ambient: Dimension D.
        rng: Generator or seed.

    Returns:
        ``(D,)`` unit vector.
    """
    return _frame(1, integer("ambient", ambient), rng)[:, 0]
