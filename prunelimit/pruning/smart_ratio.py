"""Smart-Ratio: how many weights each layer keeps is fixed beforehand, which ones is drawn at random; then train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.controls import largest_remainder
from prunelimit.pruning.magnitude import Masks, prunable_parameters, removed_count
from prunelimit.pruning.retraining import TrainingPrunerSpec, copied_state, train_masked


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmartRatioSpec(TrainingPrunerSpec):
    """Settings of Smart-Ratio.

    Attributes:
        train: How the sparse network is trained.
        classifier_density: Fraction of its weights that the last layer keeps if it is linear.
        divide_by_square: Whether layer l keeps l^2 times less, as published for VGG.
    """

    PUBLISHED: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "train": {
            "epochs": 160,
            "batch_size": 64,
            "lr": 0.1,
            "schedule": "step",
            "milestones": (80, 120),
            "l2": 1e-4,
            "augment": True,
        }
    }

    classifier_density: float = 0.3
    divide_by_square: bool = False

    def __post_init__(self) -> None:
        """Refuse a density that is none."""
        super().__post_init__()
        if not 0 <= self.classifier_density <= 1:
            raise PruneLimitError(f"classifier_density={self.classifier_density!r} must lie in [0, 1].")


def kept_per_layer(model: nn.Module, sparsity: float, spec: SmartRatioSpec) -> dict[str, int]:
    r"""Return how many weights each layer keeps.

    Layer l of L, convolution or linear, keeps a fraction in proportion to :math:`(L - l + 1)^2 + (L - l + 1)`, over
    :math:`l^2` for VGG. What a layer cannot hold is pushed on to the next one. The last layer, if linear, is left out of
    this and keeps ``classifier_density``: the networks of :cite:t:`su2020sanity` have no other linear layer, and ours with
    several, fully connected ones included, treat the hidden ones like convolutions.

    Args:
        model: The network.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: Settings.

    Returns:
        Parameter name to a number of weights, in the model's order; their sum is exact.

    Raises:
        PruneLimitError: If the last layer alone would keep more than the sparsity leaves.
    """
    parameters = prunable_parameters(model)
    sizes = [p.numel() for p in parameters.values()]
    kept = sum(sizes) - removed_count(sparsity, sum(sizes))
    layers, classifier = len(sizes), 0
    if layers > 1 and list(parameters.values())[-1].ndim == 2:
        classifier = 1
    rest = kept - classifier * spec.classifier_density * sizes[-1]
    if rest < 0:
        raise PruneLimitError(
            f"classifier_density={spec.classifier_density} keeps more than the {kept} weights that sparsity={sparsity} "
            "leaves: lower one of the two."
        )
    shares = []
    for depth, size in enumerate(sizes[: layers - classifier], 1):
        ratio = (layers - depth + 1) ** 2 + (layers - depth + 1)
        shares.append(ratio * size / (depth**2 if spec.divide_by_square else 1))
    quotas, excess = [], 0.0
    for share, size in zip(shares, sizes, strict=False):
        # Densities fall with depth, so the full layers come first and the next ones have room.
        wanted = rest * share / sum(shares) + excess
        quotas.append(min(wanted, size))
        excess = wanted - quotas[-1]
    if classifier:
        quotas.append(kept - sum(quotas))
    return dict(zip(parameters, largest_remainder(quotas, kept), strict=True))


def random_masks(model: nn.Module, kept: Mapping[str, int], seed: int) -> Masks:
    """Draw masks that keep a given number of weights in each layer, at random inside the layer.

    Args:
        model: The network.
        kept: Parameter name to the number of weights to keep.
        seed: Seed of the draw.

    Returns:
        Parameter name to a 0-1 tensor of its shape.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, p in prunable_parameters(model, list(kept)).items():
        keep = torch.zeros(p.numel())
        keep[torch.randperm(p.numel(), generator=generator)[: kept[name]]] = 1
        masks[name] = keep.reshape(p.shape).to(p)
    return masks


def prune_smart_ratio(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: SmartRatioSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Prune by Smart-Ratio (:cite:t:`su2020sanity`): layer densities by a formula, random masks, then training.

    Neither the data nor the weights have a say in the mask, so the method is the control for every pruner that looks at
    them before training.

    Args:
        model: The initial network; left as it was.
        data: Training images and labels.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        spec: Settings.
        folder: Where to save the state of the training; ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.

    Returns:
        Masks, trained weights and one entry of history per epoch, or ``None`` if the deadline passed; the next call goes
        on from there.
    """
    kept = kept_per_layer(model, sparsity, spec)
    masks = random_masks(model, kept, spec.seed)
    place = None if folder is None else folder / f"kept-{sum(kept.values()):010d}"
    found = train_masked(model, data, spec.train, masks, folder=place, deadline=deadline, progress=progress)
    if found is None:
        return None
    trained, history = found
    return Pruned(masks, copied_state(trained), history, epochs=spec.train.epochs)
