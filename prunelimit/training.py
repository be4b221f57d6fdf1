"""Training as one readable loop: SGD with momentum, L1, L2, augmentation on the device, resumable to the bit.

The settings follow the released code of the fundamental-limit paper (kept in the catalogue of experiments), with one
stated difference: the learning-rate schedule moves once per epoch, not once per iteration.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.checkpoints import load_checkpoint, save_checkpoint
from prunelimit.datasets import Dataset, DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.files import cache_folder
from prunelimit.models import build_model, match_masks
from prunelimit.progress import ProgressLine
from prunelimit.specs import Spec
from prunelimit.threads import suited_threads

SCHEDULES = ("constant", "step", "cosine")

#: An epoch shorter than this is not worth a file of its own: the state is saved when so many seconds have passed.
SAVE_INTERVAL = 5.0


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

    def __post_init__(self) -> None:
        """Refuse values that cannot train anything."""
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        for name, least in {"epochs": 0, "batch_size": 1, "warmup_epochs": 0, "l1": 0, "l2": 0, "momentum": 0}.items():
            if not getattr(self, name) >= least:
                raise PruneLimitError(f"{name}={getattr(self, name)!r} must be at least {least}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise PruneLimitError(f"lr={self.lr!r} must be a positive number.")


@dataclasses.dataclass
class TrainedModel:
    """A trained network with the history of its training.

    Attributes:
        model: The network, in evaluation mode.
        spec: What determined it.
        history: One dictionary per epoch: ``epoch``, ``lr``, ``loss``, ``accuracy``, ``seconds`` and, where it was
            measured, ``test_loss`` and ``test_accuracy``.
    """

    model: nn.Module
    spec: TrainSpec
    history: list[dict[str, Any]]


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


def evaluate(model: nn.Module, data: DeviceSplit, batch_size: int = 2000) -> tuple[float, float]:
    """Measure the mean cross-entropy and the accuracy on un-augmented images, in evaluation mode.

    Args:
        model: The network; its mode is restored afterwards.
        data: The images and labels.
        batch_size: Images per forward pass; it does not change the result beyond rounding.

    Returns:
        Mean loss in nats and accuracy in ``[0, 1]``.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=data.device, dtype=torch.float64)
    right = torch.zeros((), device=data.device, dtype=torch.int64)
    try:
        with torch.no_grad():
            for images, labels in data.batches(batch_size):
                logits = model(images)
                loss += functional.cross_entropy(logits, labels, reduction="sum")
                right += (logits.argmax(1) == labels).sum()
    finally:
        model.train(was_training)
    return float(loss) / len(data), int(right) / len(data)


class _Loop:
    """State of one training run: the optimiser, the masks and the epochs done."""

    def __init__(
        self,
        model: nn.Module,
        data: DeviceSplit,
        spec: TrainSpec,
        masks: dict[str, Tensor] | None,
        first_iteration: int = 0,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.data, self.spec = model, data, spec
        self.per_epoch, self.first, self.after_step = -(-len(data) // spec.batch_size), first_iteration, after_step
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.l2, fused=True
        )
        self.masked = [(p, mask.to(p)) for p, mask in match_masks(model, masks or {})]
        self.history: list[dict[str, Any]] = []
        self.saved = 0
        self._apply_masks()

    @torch.no_grad()
    def _apply_masks(self) -> None:
        for weight, mask in self.masked:
            weight.mul_(mask)

    @property
    def number(self) -> int:
        """Number of the next epoch, from zero."""
        return self.first // self.per_epoch + len(self.history)

    def epoch(self) -> dict[str, Any]:
        """Train one epoch; its randomness depends on the seed and the epoch alone, so that a resumed run is the same."""
        number, spec, start = self.number, self.spec, time.monotonic()
        skipped = 0 if self.history else self.first % self.per_epoch
        seen = 0
        seed = (spec.seed * 1_000_003 + number) % 2**63
        order_generator = torch.Generator().manual_seed(seed)
        augment_generator = torch.Generator(self.data.device).manual_seed(seed + 1) if spec.augment else None
        self.optimiser.param_groups[0]["lr"] = learning_rate(spec, number)
        self.model.train()
        loss_sum = torch.zeros((), device=self.data.device)
        right = torch.zeros((), device=self.data.device, dtype=torch.int64)
        with torch.random.fork_rng(devices=[self.data.device] if self.data.device.type == "cuda" else []):
            torch.manual_seed(seed + 2)  # dropout
            batches = self.data.batches(spec.batch_size, order_generator, augment_generator)
            for place, (images, labels) in enumerate(batches):
                if place < skipped:
                    continue
                self.optimiser.zero_grad()
                logits = self.model(images)
                loss = functional.cross_entropy(logits, labels)
                loss.backward()
                if spec.l1:
                    with torch.no_grad():
                        for p in self.parameters:
                            if p.grad is not None:
                                p.grad.add_(p.sign(), alpha=spec.l1)
                self.optimiser.step()
                self._apply_masks()
                if self.after_step is not None:
                    self.after_step(number * self.per_epoch + place + 1)
                loss_sum += loss.detach() * len(labels)
                right += (logits.detach().argmax(1) == labels).sum()
                seen += len(labels)
        mean_loss = float(loss_sum) / seen
        if not math.isfinite(mean_loss):
            raise PruneLimitError(
                f"lr={spec.lr!r}: the loss became {mean_loss} in epoch {number + 1}; lower lr or add warm-up."
            )
        entry = {
            "epoch": number + 1,
            "lr": self.optimiser.param_groups[0]["lr"],
            "loss": mean_loss,
            "accuracy": int(right) / seen,
            "seconds": time.monotonic() - start,
        }
        self.history.append(entry)
        return entry

    def save(self, folder: Path) -> None:
        """Save everything that the next epoch depends on."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, p in enumerate(self.parameters):
            momentum = self.optimiser.state[p].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i}"] = momentum
        self.saved = len(self.history)
        save_checkpoint(folder, self.saved, tensors, {"spec": self.spec.to_dict(), "history": self.history})

    def load(self, folder: Path) -> None:
        """Go back to the saved state, if there is one."""
        found = load_checkpoint(folder)
        if found is None:
            return
        tensors, metadata = found
        if metadata["spec"] != self.spec.to_dict():
            raise PruneLimitError(
                f"folder={str(folder)!r} holds a run with other settings: give each run a folder of its own."
            )
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for i, p in enumerate(self.parameters):
            if f"momentum.{i}" in tensors:
                self.optimiser.state[p]["momentum_buffer"] = tensors[f"momentum.{i}"].to(p.device)
        self.history = metadata["history"]
        self.saved = len(self.history)


def fit(
    model: nn.Module,
    data: DeviceSplit,
    spec: TrainSpec,
    *,
    masks: dict[str, Tensor] | None = None,
    test: DeviceSplit | None = None,
    test_every: int = 10,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    first_iteration: int = 0,
    after_step: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a given network in place.

    Args:
        model: The network, on the device of ``data``; left in evaluation mode.
        data: Training images and labels.
        spec: Settings; ``dataset``, ``model`` and ``train_size`` are not read here.
        masks: Parameter name to a 0-1 tensor of its shape; masked weights stay exactly zero.
        test: Where to measure loss and accuracy, every ``test_every`` epochs and at the end.
        test_every: Epochs between two measurements on ``test``.
        folder: Where to save the state after each epoch (of five seconds or more) and to look for one to resume from; ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.
        first_iteration: Iterations of the schedule that the network has behind it already, as after rewinding: training
            begins there, in the middle of an epoch if need be.
        after_step: Called after each iteration with the number of iterations done, ``first_iteration`` included. What it
            keeps is not part of the saved state.

    Returns:
        The history, one dictionary per epoch; it ends before ``spec.epochs`` only if the deadline passed.

    Raises:
        PruneLimitError: If the loss stops being finite, or ``first_iteration`` lies outside of the training.
    """
    loop = _Loop(model, data, spec, masks, first_iteration, after_step)
    if not 0 <= first_iteration <= spec.epochs * loop.per_epoch:
        raise PruneLimitError(
            f"first_iteration={first_iteration!r} must lie between 0 and the {spec.epochs * loop.per_epoch} of the training."
        )
    if folder is not None:
        loop.load(folder)
    saved = time.monotonic()
    title = f"{spec.model} on {spec.dataset}, seed {spec.seed}"
    with suited_threads(model), ProgressLine(title, spec.epochs, progress) as line:
        while loop.number < spec.epochs:
            if deadline is not None and time.monotonic() > deadline:
                if folder is not None and len(loop.history) > loop.saved:
                    loop.save(folder)
                break
            entry = loop.epoch()
            if test is not None and (entry["epoch"] % test_every == 0 or entry["epoch"] == spec.epochs):
                entry["test_loss"], entry["test_accuracy"] = evaluate(model, test)
            done = entry["epoch"] == spec.epochs
            if folder is not None and (done or time.monotonic() - saved >= SAVE_INTERVAL):
                loop.save(folder)
                saved = time.monotonic()
            line.update(entry["epoch"], loss=entry["loss"], accuracy=entry["accuracy"])
    model.eval()
    return loop.history


def train(
    spec: TrainSpec,
    *,
    device: str | torch.device = "cpu",
    folder: Path | None = None,
    dataset: Dataset | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> TrainedModel:
    """Train the network that a spec describes, or load it if that was done before.

    Args:
        spec: What to train.
        device: Where to train; data and augmentation live there too.
        folder: Folder of the checkpoints; by default one named by the spec's hash in the cache folder.
        dataset: The data set, if it is loaded already.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.

    Returns:
        The trained network. If the deadline passed, its history is shorter than ``spec.epochs``; the next call goes on
        from there, to the same result, bit for bit on the same machine.
    """
    dataset = dataset or load_dataset(spec.dataset)
    model = build_model(spec.model, input_shape=dataset.image_shape, num_classes=dataset.num_classes, seed=spec.seed)
    model.to(device)
    folder = folder or cache_folder() / "checkpoints" / spec.hash
    data, test = dataset.on_device("train", device, spec.train_size), dataset.on_device("test", device)
    history = fit(model, data, spec, test=test, folder=folder, deadline=deadline, progress=progress)
    return TrainedModel(model, spec, history)
