"""The combinatorial brain surgeon: choose the weights that go TOGETHER, then update the rest (Yu et al. 2022)."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CbsSpec(SecondOrderSpec):
    """Settings of :func:`cbs`; the letters are those of Yu et al. (2022).

    Attributes:
        starts: Random partitions that are tried as the starting set, besides plain magnitude.
        window: Candidates on either side that a removed weight may be swapped with, rho.
        attempts: Removed weights without a partner after which a sweep ends, tau.
        threshold: Least fall of the cost that is worth a swap, epsilon.
        sweeps: Most sweeps of swaps.
    """

    starts: int = 5
    window: int = 10
    attempts: int = 20
    threshold: float = 1e-4
    sweeps: int = 100

    def __post_init__(self) -> None:
        """Refuse a search that cannot search."""
        super().__post_init__()
        for name, least in {"starts": 0, "window": 1, "attempts": 0, "threshold": 0, "sweeps": 0}.items():
            if not getattr(self, name) >= least:
                raise PruneLimitError(f"{name}={getattr(self, name)!r} must be at least {least}.")


def removal_cost(fisher: EmpiricalFisher, weights: Tensor, removed: Tensor) -> float:
    """Return ``w_R' F_RR w_R``: twice the quadratic model's rise of the loss if a set R goes and the rest stays."""
    return 2 * fisher.loss_rise(torch.where(removed, weights, 0.0))


def random_partition(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Remove the smallest magnitudes of each group of a random partition: near to magnitude, but never the same.

    Args:
        weights: ``(d,)``.
        count: How many are removed, exactly.
        generator: Source of randomness, on the CPU.

    Returns:
        ``(d,)`` bool, true where a weight is removed. As in the released code there are about sqrt(d) groups, at most 1000.
    """
    total = len(weights)
    order = torch.randperm(total, generator=generator).to(weights.device)
    groups = max(1, min(int(total**0.5), 1000))
    removed = torch.zeros(total, dtype=torch.bool, device=weights.device)
    for number in range(groups):
        start, stop = total * number // groups, total * (number + 1) // groups
        share = count * (number + 1) // groups - count * number // groups
        places = order[start:stop]
        removed[places[smallest(weights[places].abs(), min(share, len(places)))]] = True
    missing = count - int(removed.sum())  # where a group was too small for its share
    if missing:
        spare = torch.where(removed, torch.inf, weights.abs())
        removed |= smallest(spare, missing)
    return removed


class SwapSearch:
    """Local search over sets of removed weights by swaps, on the cost of :func:`removal_cost`.

    With z_i the column of A times w_i and u the sum over the removed set R, the cost is ``|u|^2`` and damping, so that a
    swap is priced by inner products of length N; F itself is never needed.

    Args:
        fisher: The Fisher matrix F.
        weights: ``(d,)``.
        removed: ``(d,)`` bool, the set to start from.
    """

    def __init__(self, fisher: EmpiricalFisher, weights: Tensor, removed: Tensor) -> None:
        self.fisher, self.weights, self.removed = fisher, weights.double(), removed.clone()
        self.extra = fisher.damping * self.weights**2  # what damping adds for each removed weight
        self.own = (fisher.diagonal() - fisher.damping) * self.weights**2  # |z_i|^2

    def cost(self) -> float:
        """Return the cost of the present set."""
        return removal_cost(self.fisher, self.weights, self.removed)

    def sweep(self, window: int, attempts: int, threshold: float) -> int:
        """Go once through the removed weights, dearest first, and swap each with the first partner that pays.

        Args:
            window: Candidates on either side of the same rank among the kept weights, cheapest first.
            attempts: Removed weights without a partner after which the sweep ends.
            threshold: Least fall of the cost that is worth a swap.

        Returns:
            How many pairs were swapped.
        """
        total = self.fisher.forward(torch.where(self.removed, self.weights, 0.0))  # u
        shared = self.weights * self.fisher.backward(total)  # z_i' u
        out = self.removed.nonzero().squeeze(1)
        gain = 2 * shared[out] - self.own[out] + self.extra[out]  # what the cost falls by if i stays after all
        out = out[torch.argsort(gain, descending=True, stable=True)]
        into = (~self.removed).nonzero().squeeze(1)
        if len(out) == 0 or len(into) == 0:
            return 0
        first = self._columns(out[:1])[:, 0]
        price = 2 * shared[into] + self.own[into] + self.extra[into]
        price -= 2 * self.weights[into] * self.fisher.backward(first)[into]  # the dearest weight is about to leave
        into = into[torch.argsort(price, stable=True)]
        free = torch.ones(len(into), dtype=torch.bool)
        swaps = failures = 0
        for rank in range(min(len(out), len(into) + window)):
            near = torch.arange(max(0, rank - window), min(len(into), rank + window))
            near = near[free[near]]
            leaving = self._columns(out[rank : rank + 1])[:, 0]
            place = self._partner(total, leaving, out[rank], into[near], threshold) if len(near) else None
            if place is None:
                failures += 1
                if failures > attempts:
                    break
                continue
            partner = into[near[place]]
            total = total - leaving + self._columns(partner.reshape(1))[:, 0]
            self.removed[out[rank]], self.removed[partner] = False, True
            free[near[place]] = False
            swaps += 1
        return swaps

    def _partner(self, total: Tensor, leaving: Tensor, i: Tensor, candidates: Tensor, threshold: float) -> int | None:
        """Return the first candidate that lowers the cost by more than rounding and by the threshold."""
        without = total - leaving
        joining = self._columns(candidates)
        change = 2 * without @ joining + joining.square().sum(0) + self.extra[candidates]
        change += without @ without - total @ total - self.extra[i]
        floor = max(threshold, 1e-12 * float(total @ total + self.extra[i]))
        pays = (change <= -floor).nonzero()
        return int(pays[0]) if len(pays) else None

    def _columns(self, places: Tensor) -> Tensor:
        return self.fisher.columns(places) * self.weights[places]


def select_together(
    fisher: EmpiricalFisher, weights: Tensor, count: int, spec: CbsSpec, generator: torch.Generator
) -> tuple[Tensor, dict[str, Any]]:
    """Choose a set to remove by its joint cost: the best of several magnitude-like starts, improved by swaps.

    Args:
        fisher: The Fisher matrix.
        weights: ``(d,)``.
        count: How many weights go.
        spec: The settings.
        generator: Source of randomness.

    Returns:
        ``(d,)`` bool, true where a weight is removed, and the costs on the way.
    """
    magnitude = smallest(weights.abs(), count)
    starts = [magnitude, *(random_partition(weights, count, generator) for _ in range(spec.starts))]
    costs = [removal_cost(fisher, weights, start) for start in starts]
    search = SwapSearch(fisher, weights, starts[costs.index(min(costs))])
    swaps = sweeps = 0
    for _ in range(spec.sweeps):
        made = search.sweep(spec.window, spec.attempts, spec.threshold)
        sweeps, swaps = sweeps + 1, swaps + made
        if not made:
            break
    report = {"magnitude_cost": costs[0], "start_cost": min(costs), "cost": search.cost()}
    return search.removed, {**report, "swaps": swaps, "sweeps": sweeps}


def _choose(cut: Cut) -> tuple[Tensor, Tensor, dict[str, Any]]:
    fisher = cut.fisher()
    removed, report = select_together(fisher, cut.weights, len(cut.weights) - cut.keep, cut.spec, cut.generator)
    return ~removed, fisher.refit(cut.weights, ~removed), report


def cbs(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: CbsSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Remove a set of weights that cancel one another, and update the others for all of them together.

    Use it where interactions between the removed weights matter, at high sparsity. The set minimises ``w_R' F_RR w_R``,
    cross terms included, by local search; the update is the exact minimum of the quadratic model for that set. Source: Yu
    et al. (2022) and their released code (github.com/yuxwind/CBS). Two choices are ours: of the random partitions the one
    of least cost is searched from, plain magnitude among them; and the search ends with a sweep that swaps nothing.

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
    return prune_in_stages(_choose, "CBS", model, data, sparsity, spec, **options)
