"""Rare Gems: learn which of the initial weights to keep, without changing any, then train those."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.controls import split_masks
from prunelimit.pruning.magnitude import Masks, check_sparsity, prunable_parameters, removed_count
from prunelimit.pruning.retraining import TrainingPrunerSpec, copied_state, iterations_per_epoch, train_masked
from prunelimit.training import TrainSpec

#: A weight counts in the search if its score reaches this.
THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class RareGemsSpec(TrainingPrunerSpec):
    """Settings of Rare Gems. The published ones are those of the released code for ResNet20 on CIFAR-10.

    Attributes:
        train: How the kept weights are trained afterwards.
        search: How the scores are trained.
        l2_scores: Factor of the sum of squared scores in the objective of the search; 0 leaves it out. The released code
            has 1e-4 where 1.44 % of the weights or fewer are kept, and 3e-5 for 3.72 %.
        period: Epochs between two freezings.
        signed_constant: Whether each initial weight is replaced by its sign times its layer's standard deviation,
            sqrt(2 / fan-in).
    """

    PUBLISHED: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "train": {
            "epochs": 150,
            "lr": 0.01,
            "schedule": "step",
            "milestones": (80, 120),
            "l2": 1e-4,
            "augment": True,
        },
        "search": {"epochs": 150, "lr": 0.1, "schedule": "cosine", "augment": True},
    }

    search: TrainSpec
    l2_scores: float = 1e-4
    period: int = 5
    signed_constant: bool = True

    def __post_init__(self) -> None:
        """Refuse a search that cannot be run; penalties on the scores have one place."""
        super().__post_init__()
        if self.period < 1:
            raise PruneLimitError(f"period={self.period} must be at least 1 epoch.")
        if not (math.isfinite(self.l2_scores) and self.l2_scores >= 0):
            raise PruneLimitError(f"l2_scores={self.l2_scores!r} must be zero or a positive number.")
        if self.search.l1 or self.search.l2:
            raise PruneLimitError("search has l1 or l2 above zero: set both to 0 and use l2_scores.")
        if self.search.sam_rho:
            raise PruneLimitError(f"search has sam_rho={self.search.sam_rho!r}: set it to 0, scores have no sharpness.")
        if self.search.epochs < 1:
            raise PruneLimitError("search has epochs=0: give the scores at least one epoch.")


class _StraightThrough(torch.autograd.Function):
    """1[score >= threshold] for the active weights, 0 for the others; backwards as if it were the score itself."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, active: Tensor) -> Tensor:
        ctx.save_for_backward(active)
        return ((scores >= THRESHOLD) & active).to(scores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (active,) = ctx.saved_tensors
        return gradients[0] * active, None


class ScoredNetwork(nn.Module):
    """A network with frozen weights, of which scores decide the ones that count.

    Its state is all that the search depends on, so that it is trained, saved and resumed like any network.

    Args:
        model: The network; copied, and everything in the copy is frozen.
        seed: Seed of the initial scores, uniform on [0, 1], and of the order among equal scores.

    Attributes:
        scores: ``(D,)``, one per prunable weight, in [0, 1].
        active: ``(D,)``; false once a weight has been frozen at zero.
    """

    active: Tensor

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self._names = list(prunable_parameters(model))
        self.network = copy.deepcopy(model).requires_grad_(False)
        weights = self.weights()
        total = sum(w.numel() for w in weights.values())
        device = next(iter(weights.values())).device
        generator = torch.Generator().manual_seed(seed)
        self.scores = nn.Parameter(torch.rand(total, generator=generator).to(device))
        self.register_buffer("active", torch.ones(total, dtype=torch.bool, device=device))
        # Many scores end at exactly 0 or 1. In the model's order, ties would empty the first layers.
        self._shuffled = torch.randperm(total, generator=generator).to(device)

    def weights(self) -> dict[str, Tensor]:
        """Return the prunable weights by name."""
        return {name: self.network.get_parameter(name) for name in self._names}

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits with the weights that count."""
        weights = self.weights()
        masks = split_masks(weights, _StraightThrough.apply(self.scores, self.active))
        return functional_call(self.network, {name: w * masks[name] for name, w in weights.items()}, (images,))

    @torch.no_grad()
    def project(self) -> None:
        """Bring the scores back to [0, 1]."""
        self.scores.clamp_(0, 1)

    @torch.no_grad()
    def freeze(self, removed: int) -> None:
        """Freeze the active weights with the lowest scores at zero, until so many are frozen."""
        ranked = self.scores.masked_fill(~self.active, -1)[self._shuffled]
        order = self._shuffled[ranked.argsort(stable=True)]
        self.active[order[:removed]] = False

    def masks(self) -> Masks:
        """Return the masks of the active weights."""
        return split_masks(self.weights(), self.active)


def frozen_counts(total: int, sparsity: float, epochs: int, period: int) -> dict[int, int]:
    r"""Return how many weights are frozen after which epoch of the search.

    After epoch j, :math:`e^{-c j}` of the weights are left, with :math:`c = \ln(1 / k) / E` for the density k and E epochs:
    the density falls by the same factor each time.

    Args:
        total: Number of prunable weights, D.
        sparsity: Target, in ``[0, 1)``.
        epochs: Epochs of the search, E.
        period: Epochs between two freezings; there is always one at the end.

    Returns:
        Epoch, from one, to the number of frozen weights; the last is ``ceil(sparsity * D)``.

    Example:
        >>> frozen_counts(100, 0.75, epochs=4, period=2)
        {2: 50, 4: 75}
    """
    rate = -math.log1p(-check_sparsity(sparsity)) / epochs
    counts = {epoch: removed_count(-math.expm1(-rate * epoch), total) for epoch in range(period, epochs, period)}
    return counts | {epochs: removed_count(sparsity, total)}


@torch.no_grad()
def with_signed_constants(model: nn.Module) -> nn.Module:
    """Copy a network, each prunable weight replaced by its sign times sqrt(2 / fan-in)."""
    changed = copy.deepcopy(model)
    for p in prunable_parameters(changed).values():
        p.copy_(torch.where(p < 0, -1.0, 1.0) * math.sqrt(2 / p[0].numel()))
    return changed


def prune_rare_gems(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: RareGemsSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Prune by Rare Gems, the Gem-Miner of :cite:t:`sreenivasan2022rare`.

    Every prunable weight w has a score p in [0, 1] and counts as w if p >= 1/2, else as zero. SGD moves the scores, and
    nothing else: the gradient passes the rounding as if it were not there, each step is projected to [0, 1], and
    ``l2_scores`` times the sum of p^2 may be added to the loss. After every ``period`` epochs the lowest scores are frozen
    at zero for good. What is left in the end is kept, whatever its score, and trained from the initial weights.

    Args:
        model: The initial network; left as it was. Biases and the parameters of normalisation layers stay as they are
            in the search.
        data: Training images and labels.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: Settings.
        folder: Where to save the state of search and training; ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.

    Returns:
        Masks, trained weights and one entry of history per epoch, with its ``phase``, or ``None`` if the deadline passed;
        the next call goes on from there.
    """
    scored = ScoredNetwork(with_signed_constants(model) if spec.signed_constant else model, spec.seed)
    counts = frozen_counts(len(scored.scores), sparsity, spec.search.epochs, spec.period)
    per_epoch = iterations_per_epoch(data, spec.search)

    def after(trained: nn.Module, iteration: int) -> None:
        assert isinstance(trained, ScoredNetwork)
        trained.project()
        if iteration % per_epoch == 0 and iteration // per_epoch in counts:
            trained.freeze(counts[iteration // per_epoch])

    place = None if folder is None else folder / f"removed-{counts[spec.search.epochs]:010d}"
    options: dict[str, Any] = {"deadline": deadline, "progress": progress}
    search = dataclasses.replace(spec.search, l2=2 * spec.l2_scores)  # the gradient of l2_scores |p|^2
    searched = train_masked(
        scored, data, search, None, folder=None if place is None else place / "search", watch=after, **options
    )
    if searched is None:
        return None
    found = searched[0]
    assert isinstance(found, ScoredNetwork)
    masks = found.masks()
    start = found.network
    for p, original in zip(start.parameters(), model.parameters(), strict=True):
        p.requires_grad_(original.requires_grad)
    tuned = train_masked(start, data, spec.train, masks, folder=None if place is None else place / "train", **options)
    if tuned is None:
        return None
    phases = (("search", searched[1]), ("train", tuned[1]))
    history = [{"phase": phase, **entry} for phase, entries in phases for entry in entries]
    return Pruned(masks, copied_state(tuned[0]), history, epochs=spec.search.epochs + spec.train.epochs)
