"""The released code's way to an effective dimension, written anew from its description, not copied.

A Rademacher probe; a graph of the gradient built for each product, batch by batch; vectors as lists of tensors, each
orthogonalised tensor by tensor against all earlier ones; an eigen-decomposition; the density on 100,000 bins as a sum of
Gaussian bumps of variance 1e-10; the integral as a sum over the bins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems import Problem

BINS, VARIANCE, MARGIN = 100_000, 1e-10, 0.01

Vector = list[Tensor]


def inner(left: Vector, right: Vector) -> Tensor:
    """Add up the inner products of all tensors."""
    return sum(((a * b).sum() for a, b in zip(left, right, strict=True)), torch.zeros(()))


def rademacher(parameters: Vector, generator: torch.Generator | None = None) -> Vector:
    """Draw random signs of norm one."""
    signs = [2.0 * torch.randint(0, 2, p.shape, generator=generator) - 1 for p in parameters]
    norm = inner(signs, signs).sqrt()
    return [s / norm for s in signs]


def product(problem: Problem, vector: Vector, rows: int) -> Vector:
    """Multiply the Hessian by a vector, with a new graph for each batch."""
    total = [torch.zeros_like(p) for p in problem.parameters]
    for inputs, targets in problem.batches(rows):
        loss = problem.loss_fn(problem.model(inputs), targets)
        slope = torch.autograd.grad(loss, problem.parameters, create_graph=True)
        parts = torch.autograd.grad(slope, problem.parameters, vector)
        total = [t + part * (len(targets) / len(problem.targets)) for t, part in zip(total, parts, strict=True)]
    return total


def lanczos(multiply: Callable[[Vector], Vector], start: Vector, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run Lanczos on lists of tensors; nodes and weights come from a full eigen-decomposition.

    Args:
        multiply: The product.
        start: Start vector of norm one.
        steps: Number of products.

    Returns:
        ``(steps,)`` nodes and weights.
    """
    basis, matrix = [start], torch.zeros(steps, steps)
    for k in range(steps):
        vector = multiply(basis[k])
        matrix[k, k] = inner(vector, basis[k])
        for known in basis:
            overlap = inner(vector, known)
            vector = [v - overlap * b for v, b in zip(vector, known, strict=True)]
        if k + 1 < steps:
            size = inner(vector, vector).sqrt()
            matrix[k, k + 1] = matrix[k + 1, k] = size
            basis.append([v / size for v in vector])
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes.numpy(), (vectors[0] ** 2).numpy()


def smoothed(nodes: np.ndarray, weights: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Smear nodes over bins; vectorised over blocks of bins, which the released loop is not.

    Args:
        nodes: ``(k,)`` nodes.
        weights: ``(k,)`` weights.
        bins: Number of bins.

    Returns:
        ``(bins,)`` centres and the probability of each bin; NaN if every bump falls between two bins.
    """
    grid = np.linspace(nodes.min() - MARGIN, nodes.max() + MARGIN, bins)
    density = np.concatenate(
        [np.exp(-((part[:, None] - nodes) ** 2) / (2 * VARIANCE)) @ weights for part in np.array_split(grid, 100)]
    )
    with np.errstate(invalid="ignore"):
        return grid, density / density.sum()


def effective_dimension(grid: np.ndarray, mass: np.ndarray, mu: np.ndarray, dimension: int) -> np.ndarray:
    """Integrate over the bins."""
    magnitudes = np.abs(grid)
    return np.array([dimension * float(mass @ (magnitudes / (magnitudes + m))) for m in np.ravel(mu)])
