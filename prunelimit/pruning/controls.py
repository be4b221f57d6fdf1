"""Controls: pruners that know less than magnitude pruning, so that one sees what its knowledge is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunelimit.datasets import DeviceSplit
from prunelimit.pruning.base import Pruned, PrunerSpec
from prunelimit.pruning.magnitude import Masks, prunable_parameters, removed_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSpec(PrunerSpec):
    """Random pruning draws with the seed; it has no other setting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformSpec(PrunerSpec):
    """Layer-wise magnitude pruning has no settings and draws nothing."""


def split_masks(parameters: Mapping[str, Tensor], keep: Tensor) -> Masks:
    """Cut one vector over all prunable weights into masks.

    Args:
        parameters: The prunable parameters, in the model's order.
        keep: ``(D,)``; nonzero where a weight is kept.

    Returns:
        Parameter name to a 0-1 tensor of its shape and type.
    """
    parts = keep.split([p.numel() for p in parameters.values()])
    return {name: part.reshape(p.shape).to(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def largest_remainder(quotas: Sequence[float], total: int) -> list[int]:
    """Round quotas to whole numbers with an exact sum: down first, then up where the most was cut off.

    Args:
        quotas: Non-negative numbers whose sum is ``total``, up to rounding.
        total: The sum wanted.

    Returns:
        Whole numbers, each less than one away from its quota, with sum ``total``.

    Example:
        >>> largest_remainder([1.5, 2.2, 3.3], 7)
        [2, 2, 3]
    """
    near = np.round(quotas)
    # A quota that misses a whole number by rounding errors alone is that number.
    exact = np.where(np.isclose(quotas, near, rtol=1e-12, atol=1e-9), near, quotas)
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts.tolist()


def prune_random(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: RandomSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned:
    """Remove weights at random, each one with the same probability, whatever its layer.

    Args:
        model: The network; left as it was.
        data: Not read.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: The seed.
        folder: Not used: there is nothing to resume.
        deadline: Not used.
        progress: Not used.

    Returns:
        The masks; they remove exactly ``ceil(sparsity * D)`` weights.
    """
    del data, folder, deadline, progress
    parameters = prunable_parameters(model)
    total = sum(p.numel() for p in parameters.values())
    order = torch.randperm(total, generator=torch.Generator().manual_seed(spec.seed))
    keep = torch.ones(total)
    keep[order[: removed_count(sparsity, total)]] = 0
    return Pruned(split_masks(parameters, keep))


def prune_uniform(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: UniformSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned:
    """Remove the smallest magnitudes of each layer, the same fraction of every layer.

    Args:
        model: The network; left as it was.
        data: Not read.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: Not read.
        folder: Not used: there is nothing to resume.
        deadline: Not used.
        progress: Not used.

    Returns:
        The masks; they remove exactly ``ceil(sparsity * D)`` weights, and of each layer its share, to less than one weight.
    """
    del data, spec, folder, deadline, progress
    return Pruned(uniform_masks(model, sparsity))


def uniform_masks(model: nn.Module, sparsity: float, prunable: Sequence[str] | None = None) -> Masks:
    """Choose the weights that stay if the smallest magnitudes of each layer go, the same fraction of every layer.

    Args:
        model: The network; left as it was.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        prunable: Names of the prunable parameters; see :func:`prunable_parameters`.

    Returns:
        The masks; they remove exactly ``ceil(sparsity * D)`` weights, and of each layer its share, to less than one weight.
    """
    parameters = prunable_parameters(model, prunable)
    sizes = [p.numel() for p in parameters.values()]
    removed = removed_count(sparsity, sum(sizes))
    counts = largest_remainder([removed * size / sum(sizes) for size in sizes], removed)
    masks = {}
    for (name, p), count in zip(parameters.items(), counts, strict=True):
        order = p.detach().abs().reshape(-1).argsort(stable=True)
        keep = torch.ones_like(order, dtype=p.dtype)
        keep[order[:count]] = 0
        masks[name] = keep.reshape(p.shape)
    return masks
