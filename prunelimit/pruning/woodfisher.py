"""WoodFisher: the optimal brain surgeon with the empirical Fisher matrix for the Hessian (Singh and Alistarh 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.fisher import EmpiricalFisher
from prunelimit.pruning.stages import Cut, SecondOrderSpec, prune_in_stages, smallest


@dataclasses.dataclass(frozen=True, kw_only=True)
class WoodFisherSpec(SecondOrderSpec):
    """Settings of :func:`woodfisher`.

    Attributes:
        block: Most weights in a block of the block-diagonal form; ``None`` takes the whole matrix.
        joint: Update the kept weights for all removed ones together, exactly, in place of the published sum of the
            updates that each removed weight would ask for alone.
    """

    block: int | None = None
    joint: bool = False

    def __post_init__(self) -> None:
        """Refuse blocks without weights."""
        super().__post_init__()
        if self.block is not None and (isinstance(self.block, bool) or self.block < 1):
            raise PruneLimitError(f"block={self.block!r} must be at least 1, or None for the whole matrix.")


def saliencies(weights: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Return how much the quadratic model rises if one weight alone goes: ``w_q^2 / (2 [F^-1]_qq)``, ``(d,)``."""
    return weights.square() / (2 * inverse_diagonal)


def independent_update(fisher: EmpiricalFisher, weights: Tensor, kept: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Add up the updates ``-w_q F^-1 e_q / [F^-1]_qq`` of all removed weights, as if each went alone.

    Args:
        fisher: The Fisher matrix F of these weights.
        weights: ``(d,)``.
        kept: ``(d,)`` bool.
        inverse_diagonal: ``(d,)`` diagonal of the inverse.

    Returns:
        New weights, ``(d,)``, zero where nothing is kept.
    """
    removed = torch.where(kept, 0.0, weights / inverse_diagonal)
    return torch.where(kept, weights - fisher.inverse_product(removed), 0.0)


def _choose(cut: Cut) -> tuple[Tensor, Tensor, dict[str, Any]]:
    # The whole matrix is factored once; blocks, which may be many, are made twice and never kept.
    whole = [] if cut.spec.block else [(slice(0, len(cut.weights)), cut.fisher())]

    def blocks() -> Iterable[tuple[slice, EmpiricalFisher]]:
        return whole or cut.blocks(cut.spec.block)

    diagonal = torch.empty_like(cut.weights)
    for place, fisher in blocks():
        diagonal[place] = fisher.inverse_diagonal()
    saliency = saliencies(cut.weights, diagonal)
    kept = ~smallest(saliency, len(cut.weights) - cut.keep)
    found = torch.empty_like(cut.weights)
    for place, fisher in blocks():
        w, k = cut.weights[place], kept[place]
        found[place] = fisher.refit(w, k) if cut.spec.joint else independent_update(fisher, w, k, diagonal[place])
    return kept, found, {"saliency": float(saliency[~kept].sum())}


def woodfisher(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: WoodFisherSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Remove the weights of smallest saliency and let the others make up for them.

    Use it for one-shot pruning without training. The inverse of the empirical Fisher matrix comes from one Cholesky factor
    by the Woodbury identity, which gives the same matrix as the published recursion over examples. As published, each
    removed weight brings its own update and the updates are added; with many weights gone at once, ``joint=True`` is the
    exact minimum of the quadratic model instead. Source: Singh and Alistarh (2020).

    Args:
        model: The trained network; left as it was.
        data: Training images and labels.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: The settings.
        folder: Where to save each stage, and to look for one to resume from.
        deadline: Value of ``time.monotonic()`` after which no further stage is begun.
        progress: Whether to show a progress line.

    Returns:
        Masks and new weights; ``None`` if the deadline passed first.
    """
    options: dict[str, Any] = {"folder": folder, "deadline": deadline, "progress": progress}
    return prune_in_stages(_choose, "WoodFisher", model, data, sparsity, spec, **options)
