"""LOMP: train with L1, then cut the smallest magnitudes once, across all layers, and leave the rest as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.pruning.base import Pruned, PrunerSpec
from prunelimit.pruning.magnitude import magnitude_masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class LompSpec(PrunerSpec):
    """LOMP has no settings of its own: what matters is the L1 weight with which the network was trained."""


def prune_lomp(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: LompSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned:
    """Cut the smallest magnitudes of the whole network, once, without retraining.

    For a network trained with L1 this is the paper's L1-regularised one-shot magnitude pruning
    (:cite:t:`zhang2024sparse`); for one trained without, it is plain magnitude pruning.

    Args:
        model: The trained network; left as it was.
        data: Not read.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: Not read.
        folder: Not used: there is nothing to resume.
        deadline: Not used.
        progress: Not used.

    Returns:
        The masks; they remove exactly ``ceil(sparsity * D)`` weights.
    """
    del data, spec, folder, deadline, progress
    return Pruned(magnitude_masks(model, sparsity))
