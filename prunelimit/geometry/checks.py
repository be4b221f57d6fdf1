"""Checks of vectors and matrices that every module here shares."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunelimit.errors import PruneLimitError

#: Largest deviation of a basis from orthonormal columns.
ORTHONORMAL = 1e-8


def vector(name: str, values: Any) -> np.ndarray:
    """Return a float64 vector with at least one entry, all finite.

    Args:
        name: What the argument is called.
        values: What was given.

    Returns:
        ``(D,)`` array.

    Raises:
        PruneLimitError: If it is anything else.
    """
    array = np.array(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise PruneLimitError(f"{name} of shape {array.shape} must be a vector of finite numbers: one per dimension.")
    return array


def positive_vector(name: str, values: Any) -> np.ndarray:
    """Return a vector whose entries are all positive.

    Args:
        name: What the argument is called.
        values: What was given.

    Returns:
        ``(D,)`` array.

    Raises:
        PruneLimitError: If an entry is zero or negative.
    """
    array = vector(name, values)
    if not (array > 0).all():
        raise PruneLimitError(f"{name} must all be positive; the smallest is {array.min()}: leave flat directions out.")
    return array


def orthonormal(name: str, basis: Any, ambient: int | None = None) -> np.ndarray:
    """Return a matrix with orthonormal columns.

    Args:
        name: What the argument is called.
        basis: What was given.
        ambient: Number of rows that it must have; ``None`` for any.

    Returns:
        ``(D, k)`` array.

    Raises:
        PruneLimitError: If it has another shape or its columns are not orthonormal.
    """
    matrix = np.array(basis, dtype=float)
    if matrix.ndim != 2 or matrix.shape[1] > matrix.shape[0] or (ambient is not None and len(matrix) != ambient):
        rows = "D" if ambient is None else ambient
        raise PruneLimitError(f"{name} of shape {matrix.shape} must be ({rows}, k): one column per dimension.")
    if not np.allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), rtol=0, atol=ORTHONORMAL):
        raise PruneLimitError(f"{name} must have orthonormal columns: numpy.linalg.qr(basis)[0] makes them so.")
    return matrix
