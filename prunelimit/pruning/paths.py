"""Paths to the sparse points of any pruner, beside the sorted magnitudes of :mod:`prunelimit.pruning.magnitude`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import MagnitudePath, Masks


class MaskPath:
    """The sparse points of any pruner, given by its masks.

    Args:
        names: Names of the prunable parameters.
        parameters: The parameters themselves.
        masks: Maps a sparsity to masks.
        points: Number of equally spaced sparsities at which the distance is taken.

    Raises:
        PruneLimitError: If ``masks`` is no function, or what it returns cannot be used.
    """

    def __init__(
        self, names: list[str], parameters: list[nn.Parameter], masks: Callable[[float], Masks], points: int = 200
    ) -> None:
        if not callable(masks):
            raise PruneLimitError(
                f"masks={type(masks).__name__} is not a function: give one that maps a sparsity to masks."
            )
        # Copies, because measuring prunes the network itself along the way.
        self._weights, self._names, self._masks = [p.detach().clone() for p in parameters], names, masks
        self.total = sum(w.numel() for w in self._weights)
        curve = [0.0] + [float(self.displacement(k / points).norm()) for k in range(1, points)]
        everything = math.sqrt(sum(float(w.double().square().sum()) for w in self._weights))
        # A pruner may move closer at a higher sparsity; the farthest so far is on the safe side.
        self.distance = np.maximum.accumulate(np.array([*curve, everything]))

    def masks(self, sparsity: float) -> Masks:
        """Return the pruner's masks.

        Args:
            sparsity: Fraction of the prunable weights to remove.

        Returns:
            Parameter name to a 0-1 tensor of its shape.

        Raises:
            PruneLimitError: If a mask is missing, has another shape or other values than 0 and 1.
        """
        masks = self._masks(sparsity)
        if not isinstance(masks, Mapping):
            raise PruneLimitError(
                f"masks({sparsity}) returned {type(masks).__name__}: return a dictionary, parameter name to mask."
            )
        missing = set(self._names) - set(masks)
        if missing:
            raise PruneLimitError(
                f"masks({sparsity}) has no mask for {sorted(missing)[0]!r}: return one per prunable parameter."
            )
        for name, weight in zip(self._names, self._weights, strict=True):
            if masks[name].shape != weight.shape:
                raise PruneLimitError(
                    f"masks({sparsity})[{name!r}] has shape {tuple(masks[name].shape)}: give it {tuple(weight.shape)}."
                )
            if not bool(((masks[name] == 0) | (masks[name] == 1)).all()):
                raise PruneLimitError(f"masks({sparsity})[{name!r}] has other values than 0 and 1: threshold it first.")
        return masks

    def displacement(self, sparsity: float) -> Tensor:
        """Return the ``(D,)`` step from the trained weights to the pruned ones."""
        return self.perpendicular(sparsity)

    def perpendicular(self, sparsity: float) -> Tensor:
        """Return the ``(D,)`` part of the step that sets weights to zero; what it does to the others stays in their subspace."""
        masks = self.masks(sparsity)
        parts = [(w * (masks[n].to(w) - 1)).reshape(-1) for n, w in zip(self._names, self._weights, strict=True)]
        return torch.cat(parts)


#: What the limits along a path accept.
PruningPath = MagnitudePath | MaskPath
