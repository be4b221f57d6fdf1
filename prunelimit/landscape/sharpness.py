r"""Sharpness: trace and top eigenvalue of the Hessian, from the curvature engine's products.

The Hessian is that of the mean cross-entropy over un-augmented images, in evaluation mode, by the prunable weights: see
:mod:`prunelimit.curvature`. Both come with an error: the trace with the standard error of its probes, the eigenvalue with the
residual that bounds its distance from an eigenvalue.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional

from prunelimit.curvature import HessianOperator, LanczosRun
from prunelimit.curvature.active import ActiveOperator
from prunelimit.curvature.lanczos import SymmetricOperator, scrambled_seed, sphere_vector
from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.geometry import Estimate

#: Entries of the vectors that are multiplied at once.
BLOCK = 2**24

#: Lanczos steps between two looks at the residual.
STRIDE = 8


def hessian_trace(operator: SymmetricOperator, *, probes: int = 32, seed: int = 0) -> Estimate:
    r"""Estimate a trace by :math:`v^T H v` with random signs v (Hutchinson 1989).

    The mean is the trace, and the variance of one probe is twice the sum of the squared entries off the diagonal.

    Args:
        operator: Symmetric operator with D rows.
        probes: Number of vectors, at least 2; each is one product.
        seed: Seed of the vectors, which are drawn on the CPU.

    Returns:
        Mean and standard error.

    Raises:
        PruneLimitError: If there are fewer than two probes.
    """
    if probes < 2:
        raise PruneLimitError(f"probes={probes!r} must be at least 2: one alone has no standard error.")
    generator = torch.Generator().manual_seed(scrambled_seed(seed, "signs"))
    together = max(1, BLOCK // operator.dimension)
    forms: list[float] = []
    while len(forms) < probes:
        count = min(together, probes - len(forms))
        signs = torch.randint(0, 2, (count, operator.dimension), generator=generator, dtype=torch.int8)
        vectors = signs.T.to(operator.device, operator.dtype) * 2 - 1
        forms += (vectors.double() * (operator @ vectors).double()).sum(dim=0).tolist()
    return Estimate(float(np.mean(forms)), float(np.std(forms, ddof=1) / np.sqrt(probes)))


@dataclasses.dataclass(frozen=True)
class Eigenvalue:
    """An approximate eigenvalue.

    Attributes:
        value: The Ritz value.
        residual: An eigenvalue lies within this distance of it.
        steps: Products it took.
    """

    value: float
    residual: float
    steps: int


def top_eigenvalue(
    operator: SymmetricOperator, *, tolerance: float = 1e-3, most: int = 256, seed: int = 0
) -> Eigenvalue:
    """Compute the largest eigenvalue by Lanczos, until its residual is small.

    The Ritz value never exceeds the largest eigenvalue by more than rounding. That the eigenvalue near it is the largest one
    is not proved by the residual: a random start vector misses it with probability zero, and hides it rarely.

    Args:
        operator: Symmetric operator with D rows.
        tolerance: Largest residual, relative to the value.
        most: The most products.
        seed: Seed of the start vector.

    Returns:
        The largest Ritz value; its residual says whether ``most`` was enough.

    Raises:
        PruneLimitError: If an argument is out of range.
    """
    if not tolerance > 0 or most < 1:
        raise PruneLimitError(f"tolerance={tolerance!r} must be positive and most={most!r} at least 1.")
    run = LanczosRun(operator, sphere_vector(operator.dimension, seed, operator.device))
    while True:
        run.extend(min(STRIDE, most - run.steps))
        found = run.tridiagonals[0]
        last = len(found.alpha) - 1
        values, vectors = scipy.linalg.eigh_tridiagonal(
            found.alpha, found.beta[:-1], select="i", select_range=(last, last)
        )
        residual = float(found.beta[-1] * abs(vectors[-1, 0]))
        if run.complete[0] or run.steps >= most or residual <= tolerance * abs(float(values[0])):
            return Eigenvalue(float(values[0]), residual, run.steps)


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """How sharply the training loss is curved at a network.

    Attributes:
        trace: Trace of the Hessian, with its standard error.
        top: Its largest eigenvalue.
        dimension: Number of weights it is taken by.
        examples: Number of images of the loss. Fewer images are a bias, not noise: report the number.
    """

    trace: Estimate
    top: Eigenvalue
    dimension: int
    examples: int


def measure_sharpness(
    model: nn.Module,
    data: DeviceSplit,
    *,
    examples: int | None = None,
    kept_only: bool = False,
    probes: int = 32,
    tolerance: float = 1e-3,
    most: int = 256,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Sharpness:
    """Measure the sharpness of a network's training loss.

    Args:
        model: The network, on the device of ``data``; left as it was.
        data: Un-augmented training images.
        examples: The first so many of them; by default all.
        kept_only: Whether to differentiate by those prunable weights only that are not zero: of a pruned network, the
            directions in which it may move.
        probes: Vectors for the trace.
        tolerance: Largest residual of the eigenvalue, relative to its value.
        most: The most products for it.
        seed: Seed of the random vectors.
        dtype: Type to compute in, see :class:`~prunelimit.curvature.HessianOperator`.

    Returns:
        Trace and top eigenvalue.

    Raises:
        PruneLimitError: If an argument is out of range, or all weights are zero and ``kept_only`` is set.
    """
    whole = HessianOperator(model, functional.cross_entropy, data.tensors(examples), dtype=dtype)
    operator: SymmetricOperator = whole
    if kept_only:
        operator = ActiveOperator(whole, torch.cat([p.detach().reshape(-1) != 0 for p in whole.parameters]))
    return Sharpness(
        trace=hessian_trace(operator, probes=probes, seed=seed),
        top=top_eigenvalue(operator, tolerance=tolerance, most=most, seed=seed),
        dimension=operator.dimension,
        examples=whole.examples,
    )
