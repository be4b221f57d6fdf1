"""What determines a trained network, and its learning rates."""

from __future__ import annotations

import dataclasses
import math

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.precision import PRECISIONS
from prunelimit.specs import Spec, added

SCHEDULES = ("constant", "step", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """What determines a trained network.

    Attributes:
        dataset: Name of the data set.
        model: Name of the network.
        seed: Seed of the initial weights, of the order of the data and of the augmentation.
        epochs: Passes over the training data.
        batch_size: Images per step; the last batch of an epoch may be shorter.
        lr: Learning rate after warm-up.
        momentum: Momentum of SGD (no dampening, no Nesterov).
        l1: Factor of the sum of absolute values of every weight and bias.
        l2: Weight decay on every weight and bias.
        schedule: ``"constant"``, ``"step"`` or ``"cosine"``; moves once per epoch.
        milestones: Epochs at which ``"step"`` multiplies the rate by ``gamma``.
        gamma: Factor of ``"step"``.
        warmup_epochs: Epochs of linear growth of the rate at the start.
        augment: Random crop from a border of four zero pixels, and horizontal flip.
        train_size: First so many training images; ``None`` for all of them.
        precision: ``"float32"``, or ``"bfloat16"`` for matrix products and convolutions in bfloat16 with weights in
            float32. Memory layout and compilation are no part of a spec: see :mod:`prunelimit.throughput`.
        sam_rho: Radius of sharpness-aware minimisation, see :mod:`prunelimit.sam`; 0 is plain SGD.
        sam_adaptive: Whether that radius is measured in units of the weights (ASAM).
    """

    dataset: str
    model: str
    seed: int = 0
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    l1: float = 0.0
    l2: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: int = 0
    augment: bool = False
    train_size: int | None = None
    precision: str = added("float32")
    sam_rho: float = added(0.0)
    sam_adaptive: bool = added(False)

    def __post_init__(self) -> None:
        """Refuse values that cannot train anything."""
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for name, least in {"epochs": 0, "batch_size": 1, "warmup_epochs": 0, "l1": 0, "l2": 0, "momentum": 0}.items():
            if not getattr(self, name) >= least:
                raise PruneLimitError(f"{name}={getattr(self, name)!r} must be at least {least}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise PruneLimitError(f"lr={self.lr!r} must be a positive number.")
        if not (math.isfinite(self.sam_rho) and self.sam_rho >= 0):
            raise PruneLimitError(f"sam_rho={self.sam_rho!r} must be zero or a positive number.")
        if self.sam_adaptive and not self.sam_rho:
            raise PruneLimitError("sam_adaptive=True changes nothing without a radius: set sam_rho above 0 as well.")

    @property
    def title(self) -> str:
        """What a line of progress calls the training."""
        return f"{self.model} on {self.dataset}, seed {self.seed}"


def learning_rate(spec: TrainSpec, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from zero."""
    if epoch < spec.warmup_epochs:
        return spec.lr * (epoch + 1) / spec.warmup_epochs
    if spec.schedule == "step":
        return spec.lr * spec.gamma ** sum(epoch >= m for m in spec.milestones)
    if spec.schedule == "cosine":
        span = max(spec.epochs - spec.warmup_epochs, 1)
        return spec.lr * (1 + math.cos(math.pi * (epoch - spec.warmup_epochs) / span)) / 2
    return spec.lr
