"""CHITA: pruning as sparse regression on per-example gradients (Benbaki et al. 2023)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.fisher import EmpiricalFisher
from prunelimit.pruning.stages import Cut, SecondOrderSpec, prune_in_stages, smallest

#: Step lengths that are tried beyond the first change of the support.
LENGTHS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChitaSpec(SecondOrderSpec):
    """Settings of :func:`chita`.

    The defaults suit one cut. Over many stages the gradient of the half-pruned network is what matters: there
    ``first_order=1`` with a damping of 0.01 to 0.1 goes much further, which in one cut would be a step far too long.

    Attributes:
        damping: The published ridge parameter lambda; it is tuned there, and this value is ours.
        iterations: Most steps of iterative hard thresholding, all starts together.
        tolerance: Relative fall of the objective in a step below which they end.
        first_order: Factor of the linear term; one takes the mean gradient as it is, zero leaves it out.
    """

    damping: float = 1e-4
    iterations: int = 100
    tolerance: float = 1e-5
    first_order: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a search that cannot search."""
        super().__post_init__()
        for name in ("iterations", "tolerance", "first_order"):
            if not getattr(self, name) >= 0:
                raise PruneLimitError(f"{name}={getattr(self, name)!r} must be at least 0.")


class HardThresholding:
    r"""Iterative hard thresholding on the objective of CHITA.

    With X the gradients and e a vector of ones, the published objective over the vectors b with k entries is

    .. math:: \tfrac12 \lVert y - X b \rVert^2 + \tfrac{n \lambda}{2} \lVert b - w \rVert^2, \qquad y = X w - c\, e ,

    which over n, and but for a constant, is the quadratic model of the loss at the step b - w, with damping lambda.

    Args:
        fisher: The Fisher matrix, which holds the gradients and lambda.
        weights: ``(d,)`` weights w.
        start: ``(d,)`` point to start from, with at most k entries.
        keep: Number of entries k.
        first_order: Factor c of the linear term.
    """

    def __init__(
        self, fisher: EmpiricalFisher, weights: Tensor, start: Tensor, keep: int, first_order: float = 0.0
    ) -> None:
        self.fisher, self.weights, self.keep, self.first_order = fisher, weights, keep, first_order
        self.point = start
        self.value, self._moved = self._measure(start)

    def _measure(self, point: Tensor) -> tuple[float, Tensor]:
        """Return the objective at a point, and A times the step to it."""
        step = point - self.weights
        moved = self.fisher.forward(step)
        linear = self.first_order * moved.sum() / self.fisher.examples**0.5
        return float(linear + (moved @ moved + self.fisher.damping * step @ step) / 2), moved

    def _threshold(self, vector: Tensor) -> Tensor:
        return torch.where(smallest(vector.abs(), len(vector) - self.keep), 0.0, vector)

    def iterate(self, tolerance: float = 0.0) -> float:
        """Take one gradient step and threshold it; the objective never rises.

        As published, the step is the best one along the gradient if the support stays the same on the way there; else
        lengths from the first change of the support on are tried, each twice the one before.

        Args:
            tolerance: A step on the same support that lowers the objective by less than this share is not taken.

        Returns:
            How much the objective fell.
        """
        before = self.value
        shifted = self._moved + self.first_order / self.fisher.examples**0.5
        gradient = self.fisher.backward(shifted) + self.fisher.damping * (self.point - self.weights)
        inside = self.point != 0
        change = self._first_change(gradient, inside)
        along = torch.where(inside, gradient, 0.0)
        slope, moved = along @ along, self.fisher.forward(along)
        bend = moved @ moved + self.fisher.damping * slope
        if float(slope**2 / bend) / 2 > tolerance * abs(before) and float(slope / bend) < change:
            self._try(self.point - slope / bend * along)
        elif change < torch.inf:
            length, origin = change * (1 + 1e-4), self.point
            for _ in range(LENGTHS):
                if not self._try(self._threshold(origin - length * gradient)) and self.value < before:
                    break
                length *= 2
        return before - self.value

    def _first_change(self, gradient: Tensor, inside: Tensor) -> float:
        """Return about the shortest step after which an entry from outside is larger than one inside."""
        if bool(inside.all()) or not bool(inside.any()):
            return torch.inf
        entering = gradient[~inside].abs().max()
        growth = -gradient[inside] * self.point[inside].sign()  # of the magnitudes inside, per length
        overtaken = self.point[inside].abs() / (entering - growth)
        overtaken = overtaken[overtaken > 0]
        return float(overtaken.min()) if len(overtaken) else torch.inf

    def _try(self, point: Tensor) -> bool:
        """Go to a point if the objective is lower there."""
        value, moved = self._measure(point)
        if not value < self.value:
            return False
        self.value, self.point, self._moved = value, point, moved
        return True


def sparse_regression(
    fisher: EmpiricalFisher, weights: Tensor, keep: int, spec: ChitaSpec
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Find a good support and the best weights on it.

    Hard thresholding starts from the largest magnitudes, as published, and then again from the best weights found so far
    until that changes nothing.

    Args:
        fisher: The Fisher matrix.
        weights: ``(d,)`` trained weights.
        keep: Number of weights to keep.
        spec: The settings.

    Returns:
        ``(d,)`` bool of what is kept, the new weights, and the objective on the way. The result is never worse, in the
        objective, than plain magnitude with the best weights on its support.
    """
    kept = ~smallest(weights.abs(), len(weights) - keep)
    found = fisher.refit(weights, kept, spec.first_order)
    objective = magnitude = fisher.loss_rise(found - weights, spec.first_order)
    start, steps, rounds = torch.where(kept, weights, 0.0), 0, 0
    while steps < spec.iterations:
        search = HardThresholding(fisher, weights, start, keep, spec.first_order)
        falls = True
        while falls and steps < spec.iterations:
            falls, steps = search.iterate(spec.tolerance) > spec.tolerance * abs(search.value), steps + 1
        rounds += 1
        # An entry inside can be zero by chance, so that the point alone would not say what is kept.
        support = ~smallest(search.point.abs(), len(weights) - keep)
        better = False
        if not torch.equal(support, kept):
            point = fisher.refit(weights, support, spec.first_order)
            value = fisher.loss_rise(point - weights, spec.first_order)
            better = value < objective
            if better:
                kept, found, objective = support, point, value
        if rounds > 1 and not better:
            break
        start = found
    return kept, found, {"magnitude_objective": magnitude, "objective": objective, "iterations": steps}


def _choose(cut: Cut) -> tuple[Tensor, Tensor, dict[str, Any]]:
    return sparse_regression(cut.fisher(), cut.weights, cut.keep, cut.spec)


def chita(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: ChitaSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Find the sparse weights that reproduce the per-example first-order changes of the trained ones.

    Use it where the Fisher matrix is too large for its inverse: N gradients are all that it keeps. Iterative hard
    thresholding finds the support, starting from plain magnitude; one linear system then gives the best weights on it,
    which is where coordinate descent would end. With ``stages`` above one it is the published multi-stage form, CHITA++,
    but for one thing: a weight once removed stays removed. Source: Benbaki et al. (2023).

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
    return prune_in_stages(_choose, "CHITA", model, data, sparsity, spec, **options)
