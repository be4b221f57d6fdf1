"""The Lanczos process with full reorthogonalisation."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prunelimit.errors import PruneLimitError
from prunelimit.progress import ProgressLine


class SymmetricOperator(Protocol):
    """Anything with a dimension that multiplies vectors."""

    dimension: int
    dtype: torch.dtype
    device: torch.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by a ``(D,)`` vector."""
        ...


@dataclasses.dataclass(frozen=True)
class Tridiagonal:
    """The matrix that Lanczos leaves of an operator and a start vector.

    Attributes:
        alpha: ``(k,)`` diagonal.
        beta: ``(k,)`` off-diagonal; the last entry is the norm of the residual, zero if the Krylov space is complete.
    """

    alpha: np.ndarray
    beta: np.ndarray


def sphere_vector(dimension: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw a float32 vector uniformly from the unit sphere; drawn on the CPU, so that devices agree.

    The seed is scrambled first. A network is often initialised from the same small seed, and normal draws from the same
    generator would make the probe a copy of its first weights, which know about the curvature.

    Args:
        dimension: Number of entries.
        seed: Seed of the draw.
        device: Where the vector goes.

    Returns:
        ``(D,)`` of Euclidean norm one.
    """
    scrambled = int.from_bytes(hashlib.sha256(f"probe {seed}".encode()).digest()[:7])
    vector = torch.randn(dimension, generator=torch.Generator().manual_seed(scrambled))
    return (vector / vector.norm()).to(device)


def lanczos(
    operator: SymmetricOperator, start: Tensor, steps: int, *, progress: ProgressLine | None = None
) -> Tridiagonal:
    """Run Lanczos, reorthogonalising each new vector twice against all earlier ones.

    Use it for the quadrature of one probe. The basis takes ``steps * D`` numbers of memory.

    Args:
        operator: Symmetric operator with D rows.
        start: ``(D,)`` start vector; it need not have norm one.
        steps: Number of products, at least one.
        progress: A line that is told of each product.

    Returns:
        The tridiagonal matrix; shorter than ``steps`` if the Krylov space was complete earlier.

    Raises:
        PruneLimitError: If ``steps`` is less than one or the start vector is zero.
    """
    if steps < 1:
        raise PruneLimitError(f"steps={steps!r} must be at least 1: each step is one Hessian product.")
    if not float(start.norm()) > 0:
        raise PruneLimitError("start is the zero vector (or NaN): draw a random one.")
    steps = min(steps, operator.dimension)
    basis = torch.empty(steps, operator.dimension, dtype=operator.dtype, device=operator.device)
    basis[0] = start.to(basis)
    basis[0] /= basis[0].double().norm().to(basis)
    alpha, beta = np.zeros(steps), np.zeros(steps)
    scale = 0.0
    for k in range(steps):
        vector = operator @ basis[k]
        alpha[k] = float(vector.double() @ basis[k].double())
        done = basis[: k + 1]
        for _ in range(2):  # once is not enough in float32 (Parlett: twice is)
            vector -= done.T @ (done @ vector)
        beta[k] = float(vector.double().norm())
        scale = max(scale, abs(alpha[k]), beta[k])
        if progress is not None:
            progress.update(k + 1)
        # What is left after a complete Krylov space is rounding: it must not become a direction.
        if beta[k] <= 10 * torch.finfo(operator.dtype).eps * scale or k + 1 == operator.dimension:
            beta[k] = 0.0
            return Tridiagonal(alpha[: k + 1], beta[: k + 1])
        if k + 1 < steps:
            basis[k + 1] = vector / beta[k]
    return Tridiagonal(alpha, beta)
