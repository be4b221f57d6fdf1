"""Shorter and longer trainings of the same kind share their first epochs: what is trained once is not trained again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from prunelimit.checkpoints import load_checkpoint, save_checkpoint
from prunelimit.files import cache_folder
from prunelimit.train_spec import TrainSpec, learning_rate


def is_prefix(shorter: TrainSpec, longer: TrainSpec) -> bool:
    """Whether a training is the beginning of another one: the same settings and learning rates, fewer epochs.

    A cosine, whose rates depend on the number of epochs, is the beginning of no other.

    Args:
        shorter: A training.
        longer: Another one.

    Returns:
        Whether the longer one passes through the result of the shorter one.
    """
    alike = dataclasses.replace(shorter, epochs=longer.epochs) == longer and shorter.epochs < longer.epochs
    return alike and all(learning_rate(shorter, i) == learning_rate(longer, i) for i in range(shorter.epochs))


def begin_from_shorter(longer: TrainSpec, others: Sequence[TrainSpec], folder: Path | None = None) -> TrainSpec | None:
    """Let a training that has not begun go on from the longest finished one that is a beginning of it.

    Args:
        longer: What is to be trained.
        others: Trainings that may be beginnings of it, in any order.
        folder: Folder that holds one folder of checkpoints per training, named by its hash; by default where
            :func:`prunelimit.train` keeps them.

    Returns:
        The one it goes on from; ``None`` if it had begun, or there is none.
    """
    folder = folder or cache_folder() / "checkpoints"
    if load_checkpoint(folder / longer.hash) is not None:
        return None
    for shorter in sorted((other for other in others if is_prefix(other, longer)), key=lambda s: -s.epochs):
        found = load_checkpoint(folder / shorter.hash)
        if found is not None and len(found[1]["history"]) == shorter.epochs:
            tensors, metadata = found
            save_checkpoint(folder / longer.hash, metadata["step"], tensors, metadata | {"spec": longer.to_dict()})
            return shorter
    return None
