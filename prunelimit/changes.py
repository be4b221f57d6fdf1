"""What would have to change in a network for it to be pruned further, and by how much."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq

from prunelimit.adapters import Adapted
from prunelimit.curvature.data import mean_loss
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import apply_masks, removed_count
from prunelimit.pruning.paths import PruningPath
from prunelimit.threads import suited_threads

#: How far beyond the limit the advice looks, in sparsity, unless told.
FURTHER = 0.05


@dataclasses.dataclass(frozen=True)
class Change:
    r"""What has to change for the formula's limit to be higher.

    The formula's equation, :math:`1 - d(2 \epsilon / R^2) / D = s`, knows curvature, distance and tolerance only through
    :math:`R^2 H / \epsilon`. At the wanted sparsity, with the present distance R there, that product has to become
    ``factor`` times what it is. Each of the others does it alone.

    Attributes:
        sparsity: The wanted limit.
        factor: What the curvature has to be multiplied by, below one: flatter.
        interval: The same with the high and the low end of the effective dimension; infinite where that end leaves room for
            any curvature.
        radius: The present distance R at the wanted sparsity.
        rise: What one cut to the wanted sparsity raises the loss by now; NaN if it was not measured.
    """

    sparsity: float
    factor: float
    interval: tuple[float, float]
    radius: float = math.nan
    rise: float = math.nan

    @property
    def weights(self) -> float:
        """What the weights that are cut have to be multiplied by, at the same curvature; R with them."""
        return self.factor**0.5

    @property
    def epsilon(self) -> float:
        """What the tolerated rise has to be multiplied by, for the same network."""
        return 1 / self.factor if self.factor else float("inf")

    def sentences(self, epsilon: float) -> list[str]:
        """Say what has to change, and what one cut does now.

        Args:
            epsilon: Tolerated rise of the loss, in its units.

        Returns:
            One sentence or two.
        """
        lines = [f"A limit of {self.sparsity:.1%} is within the formula already."]
        if self.factor == 0:
            lines = [f"No flatter curvature of this shape lifts the formula's limit to {self.sparsity:.1%}."]
        elif self.factor < 1:
            low, high = self.interval
            lines = [
                f"For the formula's limit to be {self.sparsity:.1%}, curvature times squared distance has to fall to "
                f"{self.factor:.3g} of what it is ({low:.3g} to {f'{high:.3g}' if high < 1 else 'no change'}): "
                f"flatter by that factor; or the weights that are cut smaller, {self.weights:.3g} times as large at "
                f"the same curvature, so that R at this sparsity falls from {self.radius:.3g} to "
                f"{self.weights * self.radius:.3g}; or a tolerated rise {self.epsilon:.3g} times as large."
            ]
        if math.isfinite(self.rise):
            times = f", {self.rise / epsilon:.3g} times what is tolerated" if self.rise > 0 else ""
            lines.append(
                f"One cut to {self.sparsity:.1%} now changes the loss by {self.rise:+.3g}{times}: measured, with the kept "
                "weights as they are."
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; infinity, for which JSON has no number, becomes ``None``."""
        low, high = self.interval
        values = {"curvature": self.factor, "curvature_low": low, "curvature_high": high}
        values |= {"weights": self.weights, "epsilon": self.epsilon, "radius": self.radius, "rise": self.rise}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return {"sparsity": self.sparsity, **finite}


def needed_change(found: Spectrum, distance: np.ndarray, epsilon: float, sparsity: float) -> Change:
    """Solve the formula's equation for the curvature that a higher limit needs.

    Args:
        found: The spectrum.
        distance: ``(D + 1,)`` distances R, as in :class:`~prunelimit.pruning.magnitude.MagnitudePath`.
        epsilon: Tolerated rise of the loss.
        sparsity: The wanted limit, in ``(0, 1)``.

    Returns:
        The change; a factor above one means that there is room already, zero that no curvature seen is small enough.

    Raises:
        PruneLimitError: If the sparsity is out of range.
    """
    if not 0 < sparsity < 1:
        raise PruneLimitError(f"sparsity={sparsity!r} must lie in (0, 1): it is a fraction of weights to remove.")
    radius = float(distance[removed_count(sparsity, len(distance) - 1)])
    if not radius:  # zeros alone go
        return Change(sparsity, math.inf, (math.inf, math.inf), radius)
    now = 2 * epsilon / radius**2

    def factor(which: int) -> float:
        def gap(log_mu: float) -> float:
            share = found.effective_dimension(np.array([np.exp(log_mu)]))[which] / found.dimension
            return float(np.asarray(share).item()) - (1 - sparsity)

        low, high = np.log(now) - 60, np.log(now) + 60
        if gap(low) <= 0:
            return float("inf")
        return 0.0 if gap(high) >= 0 else float(now / np.exp(brentq(gap, low, high, xtol=1e-10)))

    value, *ends = (factor(which) for which in range(3))
    return Change(sparsity, value, (min(ends), max(ends)), radius)


@torch.no_grad()
def measured_rise(adapted: Adapted, path: PruningPath, sparsity: float) -> float:
    """Prune for real and evaluate for real, once; the weights are put back whatever happens.

    Args:
        adapted: The network, its loss and its data.
        path: The sparse points.
        sparsity: Fraction of the prunable weights to remove.

    Returns:
        Rise of the mean loss over the data.
    """
    named, masks = dict(adapted.model.named_parameters()), path.masks(sparsity)
    kept = {name: named[name].clone() for name in masks}
    with suited_threads(adapted.model):
        dense = mean_loss(adapted.model, adapted.loss_fn, adapted.batches)[0]
        try:
            apply_masks(adapted.model, masks)
            return mean_loss(adapted.model, adapted.loss_fn, adapted.batches)[0] - dense
        finally:
            for name, value in kept.items():
                named[name].copy_(value)
