"""Iterative magnitude pruning with rewinding: train, remove a share, go back to an early iteration, train again."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunelimit.checkpoints import check_settings, load_checkpoint, save_checkpoint
from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.controls import split_masks
from prunelimit.pruning.magnitude import Masks, flatten, prunable_parameters, removed_count
from prunelimit.pruning.retraining import TrainingPrunerSpec, copied_state, iterations_per_epoch, train_masked
from prunelimit.training import evaluate


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterativeSpec(TrainingPrunerSpec):
    """Settings of iterative magnitude pruning.

    Attributes:
        train: How the dense network is trained, and each sparse one from the rewind iteration on.
        rounds: Largest number of pruning rounds.
        share: Part of the remaining weights that a round removes.
        rewind: Iteration to which weights, statistics and learning rate go back; 0 is the initial network.
    """

    PUBLISHED: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "train": {
            "epochs": 160,
            "lr": 0.1,
            "schedule": "step",
            "milestones": (80, 120),
            "l2": 1e-4,
            "augment": True,
        }
    }

    nested: ClassVar[bool] = True

    rounds: int = 20
    share: float = 0.2
    rewind: int = 1000

    def __post_init__(self) -> None:
        """Refuse rounds that remove nothing, or everything."""
        super().__post_init__()
        if not 0 < self.share < 1:
            raise PruneLimitError(f"share={self.share!r} must lie in (0, 1): it is what a round removes of the rest.")
        if self.rounds < 0 or self.rewind < 0:
            raise PruneLimitError(f"rounds={self.rounds}, rewind={self.rewind}: neither can be negative.")


@dataclasses.dataclass(frozen=True)
class Round:
    """A trained network on the way.

    Attributes:
        number: 0 for the dense network, then the rounds.
        removed: Number of weights that are zero.
        model: The trained network, in evaluation mode; its pruned weights are exactly zero.
        masks: Parameter name to a 0-1 tensor of its shape.
        summary: ``round``, ``removed``, ``sparsity``, ``epochs`` and ``seconds`` of its training, and ``train_loss`` and
            ``train_accuracy`` on the un-augmented training images after it.
    """

    number: int
    removed: int
    model: nn.Module
    masks: Masks
    summary: dict[str, Any]


def round_counts(total: int, spec: IterativeSpec, sparsity: float | None = None) -> list[int]:
    """Return how many weights are removed after each round, the dense network first.

    Each round removes ``share`` of the rest, rounded up. With a target there are as many rounds as it takes, and the last
    one removes only what is missing, so that it lands on the target exactly; all rounds before are those without a target.

    Args:
        total: Number of prunable weights, D.
        spec: Number of rounds and share.
        sparsity: Target, in ``[0, 1)``; ``None`` for all ``spec.rounds`` rounds.

    Returns:
        Rising numbers, beginning with 0 and, with a target, ending with ``ceil(sparsity * D)``.

    Raises:
        PruneLimitError: If the target takes more than ``spec.rounds`` rounds.

    Example:
        >>> from prunelimit.training import TrainSpec
        >>> spec = IterativeSpec(train=TrainSpec(dataset="digits", model="fc3"), rounds=4)
        >>> round_counts(1000, spec), round_counts(1000, spec, sparsity=0.45)
        ([0, 200, 360, 488, 591], [0, 200, 360, 450])
    """
    target = total - 1 if sparsity is None else removed_count(sparsity, total)
    counts = [0]
    while counts[-1] < target:
        if len(counts) > spec.rounds and sparsity is None:
            break
        counts.append(min(target, counts[-1] + removed_count(spec.share, total - counts[-1])))
    if sparsity is not None and len(counts) > spec.rounds + 1:
        raise PruneLimitError(
            f"rounds={spec.rounds} of share={spec.share} do not reach sparsity={sparsity}: set rounds={len(counts) - 1}."
        )
    return counts


def iterative_rounds(
    model: nn.Module,
    data: DeviceSplit,
    spec: IterativeSpec,
    *,
    sparsity: float | None = None,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Iterator[Round]:
    """Prune round by round, and give the network after each of them.

    Runs with the same network and settings and different targets may share a folder: they have all rounds but their last
    in common, and each is trained once.

    Args:
        model: The initial network; left as it was.
        data: Training images and labels.
        spec: Settings.
        sparsity: Where to end; ``None`` goes through all ``spec.rounds`` rounds.
        folder: Where to keep the finished rounds and the state of the current one; ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.

    Yields:
        The dense network, then the network after each round. It ends early if the deadline passes; the next call goes on
        from there, to the same result bit for bit on the same machine.

    Raises:
        PruneLimitError: If the training is shorter than ``spec.rewind``, the target takes too many rounds, or the folder
            holds a run with other settings.
    """
    parameters = prunable_parameters(model)
    total = sum(p.numel() for p in parameters.values())
    counts = round_counts(total, spec, sparsity)
    length = spec.train.epochs * iterations_per_epoch(data, spec.train)
    if spec.rewind >= length:
        raise PruneLimitError(f"rewind={spec.rewind} must be less than the {length} iterations of the training.")
    rewind = _Rewind(model, spec, folder)
    order = torch.arange(total)
    for number, removed in enumerate(counts):
        keep = torch.ones(total, device=order.device)
        keep[order[:removed]] = 0
        masks = split_masks(parameters, keep)
        place = None if folder is None else folder / f"removed-{removed:010d}"
        found = _load_round(rewind.start(number), place, spec) or _train_round(
            rewind, number, masks, data, spec, place, deadline, progress
        )
        if found is None:
            return
        trained, summary = found
        order = removal_order(trained, masks)
        summary |= {"round": number, "removed": removed, "sparsity": removed / total}
        yield Round(number, removed, trained, masks, summary)


def removal_order(model: nn.Module, masks: Masks) -> Tensor:
    """Return the ``(D,)`` places of the prunable weights in the order in which they go.

    What is pruned comes first, before weights that merely happen to be zero, so that masks of more removed weights are
    nested in those of fewer; then the smallest magnitude, equal ones in the order of the model.

    Args:
        model: The trained network.
        masks: Parameter name to a 0-1 tensor of its shape, one per prunable parameter.

    Returns:
        Places in the vector of all prunable weights.
    """
    weights = prunable_parameters(model)
    magnitude = flatten([w.detach().abs() for w in weights.values()])
    magnitude[flatten([masks[name] for name in weights]) == 0] = -1
    return magnitude.argsort(stable=True)


class _Rewind:
    """The state to which each round goes back, taken while the dense network is trained."""

    def __init__(self, model: nn.Module, spec: IterativeSpec, folder: Path | None) -> None:
        self.model, self.iteration = copy.deepcopy(model), spec.rewind
        self.place = None if folder is None else folder / "rewind"
        self.state = copied_state(model) if spec.rewind == 0 else None
        found = None if self.place is None or self.state else load_checkpoint(self.place)
        if found:
            self.state = found[0]

    def start(self, number: int) -> nn.Module:
        """Return the network with which a round begins."""
        if number:
            assert self.state is not None
            self.model.load_state_dict(self.state)
        return self.model

    def watch(self, trained: nn.Module, iteration: int) -> None:
        """Take the snapshot, at the right iteration; on disk at once, because training may be resumed behind it."""
        if iteration == self.iteration:
            self.state = copied_state(trained)
            if self.place is not None:
                save_checkpoint(self.place, iteration, self.state, {})


def _train_round(
    rewind: _Rewind,
    number: int,
    masks: Masks,
    data: DeviceSplit,
    spec: IterativeSpec,
    place: Path | None,
    deadline: float | None,
    progress: bool | None,
) -> tuple[nn.Module, dict[str, Any]] | None:
    """Train the dense network, or retrain one from the rewind iteration; keep the finished one."""
    found = train_masked(
        rewind.start(number),
        data,
        spec.train,
        masks if number else None,
        folder=None if place is None else place / "training",
        deadline=deadline,
        progress=progress,
        first_iteration=spec.rewind if number else 0,
        watch=None if number else rewind.watch,
    )
    if found is None:
        return None
    trained, history = found
    loss, accuracy = evaluate(trained, data)
    seconds = math.fsum(entry["seconds"] for entry in history)
    epochs = spec.train.epochs - (spec.rewind / iterations_per_epoch(data, spec.train) if number else 0)
    summary = {"epochs": epochs, "seconds": round(seconds, 2), "train_loss": loss, "train_accuracy": accuracy}
    if place is not None:
        save_checkpoint(place, 1, copied_state(trained), {"spec": spec.to_dict(), "summary": summary})
        shutil.rmtree(place / "training", ignore_errors=True)
    return trained, summary


def _load_round(model: nn.Module, place: Path | None, spec: IterativeSpec) -> tuple[nn.Module, dict[str, Any]] | None:
    """Load a finished round, if there is one."""
    if place is None or (found := load_checkpoint(place)) is None:
        return None
    state, metadata = found
    check_settings(place, metadata, {"spec": spec.to_dict()})
    trained = copy.deepcopy(model)
    trained.load_state_dict(state)
    return trained.eval(), metadata["summary"]


def prune_iteratively(
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: IterativeSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Prune by iterative magnitude pruning (:cite:t:`frankle2019lottery`), rewinding as :cite:t:`renda2020comparing`.

    Train to the end of the schedule. Then, round by round: remove ``share`` of the remaining weights, the smallest
    magnitudes of the whole network; set the others, biases and statistics included, back to what they were at iteration
    ``rewind``; train them from that iteration to the end of the schedule, mask fixed. Momentum starts from zero after
    rewinding, and the images come in the same order in every round.

    Args:
        model: The initial network; left as it was.
        data: Training images and labels.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``; the last round removes what is missing.
        spec: Settings.
        folder: Where to keep the finished rounds and the state of the current one; ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.

    Returns:
        Masks, trained weights and one entry of history per round, or ``None`` if the deadline passed; the next call goes
        on from there.
    """
    wanted = removed_count(sparsity, sum(p.numel() for p in prunable_parameters(model).values()))
    history, last = [], None
    for last in iterative_rounds(
        model, data, spec, sparsity=sparsity, folder=folder, deadline=deadline, progress=progress
    ):
        history.append(last.summary)
    if last is None or last.removed < wanted:
        return None
    epochs = math.fsum(entry["epochs"] for entry in history)
    return Pruned(last.masks, copied_state(last.model), history, epochs)
