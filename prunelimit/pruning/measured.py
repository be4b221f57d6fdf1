"""Limits that one finds by pruning: sweeps, one-shot limits on accuracy, and the fine-tuned limit.

Two questions are often mixed up. The one-shot limit asks how far one cut may go if the kept weights stay as they are.
The fine-tuned limit lets the kept weights move, which is what the theorem speaks about: that SOME point of the sparse
subspace lies in the sublevel set. Training on improves even an unpruned network, so the reference of the fine-tuned
limit is the dense network after the same extra training.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks
from prunelimit.training import OutOfTime, TrainSpec, evaluate, fit

#: Runs a computation, or returns what it gave before: a key and the computation in, its value out.
Memo = Callable[[str, Callable[[], Any]], Any]


def no_memo(key: str, compute: Callable[[], Any]) -> Any:
    """Run the computation, remembering nothing."""
    del key
    return compute()


def pruned_copy(model: nn.Module, path: MagnitudePath, sparsity: float) -> nn.Module:
    """Copy a network and set its smallest magnitudes to zero.

    Args:
        model: The network that ``path`` was made of.
        path: Its magnitudes, sorted.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.

    Returns:
        The pruned copy.
    """
    return apply_masks(copy.deepcopy(model), path.masks(sparsity))


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """Loss and accuracy of one pruned network, on both splits."""

    sparsity: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


def sweep(
    model: nn.Module,
    train: DeviceSplit,
    test: DeviceSplit,
    sparsities: Iterable[float],
    path: MagnitudePath | None = None,
    memo: Memo = no_memo,
) -> list[SweepPoint]:
    """Prune once per sparsity and evaluate, without any retraining.

    Args:
        model: The network; not changed.
        train: Training split, un-augmented.
        test: Test split.
        sparsities: Fractions to remove, each in ``[0, 1)``.
        path: The network's sorted magnitudes, if they are at hand.
        memo: Remembers each evaluation, so that an interrupted sweep goes on.

    Returns:
        One point per sparsity, in the given order.
    """
    path = path or MagnitudePath(model)

    def measure(sparsity: float) -> list[float]:
        pruned = pruned_copy(model, path, sparsity)
        return [*evaluate(pruned, train), *evaluate(pruned, test)]

    return [SweepPoint(s, *memo(f"sweep {s:.6f}", partial(measure, s))) for s in sparsities]


def largest_sparsity(
    model: nn.Module,
    test: DeviceSplit,
    accuracies: dict[str, float],
    step: float = 0.001,
    path: MagnitudePath | None = None,
    memo: Memo = no_memo,
) -> dict[str, float]:
    """Find the largest sparsity on a grid at which the test accuracy still reaches given values.

    This is the released code's definition of the actual limit: accuracy is not monotone in the sparsity, so the grid is
    searched from its sparse end and the first hit counts.

    Args:
        model: The network; not changed.
        test: Test split.
        accuracies: Name to the accuracy that must be reached.
        step: Distance of the grid points.
        path: The network's sorted magnitudes, if they are at hand.
        memo: Remembers each evaluation, so that an interrupted search goes on.

    Returns:
        Name to the sparsity, zero where no pruned network reaches the accuracy.
    """
    path = path or MagnitudePath(model)

    def measure(sparsity: float) -> float:
        return evaluate(pruned_copy(model, path, sparsity), test)[1]

    found = dict.fromkeys(accuracies, 0.0)
    open_names = set(accuracies)
    for number in range(round(1 / step) - 1, 0, -1):
        if not open_names:
            break
        sparsity = number * step
        accuracy = memo(f"accuracy {sparsity:.6f}", partial(measure, sparsity))
        for name in sorted(open_names):
            if accuracy >= accuracies[name] - 1e-9:  # a tie counts, whatever the last bit says
                found[name] = round(sparsity, 10)
                open_names.discard(name)
    return found


@dataclasses.dataclass(frozen=True)
class FineTunedLimit:
    """Result of :func:`fine_tuned_limit`.

    Attributes:
        sparsity: Largest sparsity found at which the fine-tuned loss stays within epsilon of the control.
        interval: That sparsity and the smallest one found at which it does not.
        reference_loss: Training loss of the dense control after the same extra training.
        points: Sparsity and training loss after fine-tuning, for each network that was tried.
    """

    sparsity: float
    interval: tuple[float, float]
    reference_loss: float
    points: tuple[tuple[float, float], ...]


def fine_tuned_limit(
    model: nn.Module,
    train: DeviceSplit,
    spec: TrainSpec,
    *,
    epsilon: float,
    guess: float = 0.5,
    tolerance: float = 0.005,
    memo: Memo = no_memo,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> FineTunedLimit:
    """Find how far a network can be pruned if the kept weights are trained on, mask fixed.

    Args:
        model: The trained network; not changed.
        train: Training split.
        spec: How to train on: the dense network's own settings with the extra epochs; the same objective, L1 included,
            for the pruned networks and for the dense control.
        epsilon: Tolerated rise of the training loss over that of the control.
        guess: First sparsity to try.
        tolerance: Width of the bracket at which the search stops.
        memo: Remembers each fine-tuning, so that an interrupted search goes on.
        folder: Where the state of the present fine-tuning is saved, so that it goes on as well.
        deadline: Value of ``time.monotonic()`` before which it is saved.
        progress: Whether to show the progress of each fine-tuning.

    Returns:
        The limit, its bracket and every loss on the way.

    Raises:
        OutOfTime: If the deadline passed.
        PruneLimitError: If ``guess`` is not in ``(0, 1)`` or ``tolerance`` not positive.
    """
    if not (0 < guess < 1 and tolerance > 0):
        raise PruneLimitError(f"guess={guess!r}, tolerance={tolerance!r}: guess must lie in (0, 1), tolerance above 0.")
    path = MagnitudePath(model)

    def tuned_loss(sparsity: float) -> float:
        def compute() -> float:
            tuned = copy.deepcopy(model)
            masks = path.masks(sparsity) if sparsity else None
            history = fit(tuned, train, spec, masks=masks, folder=place, deadline=deadline, progress=progress)
            if len(history) < spec.epochs:
                raise OutOfTime
            return evaluate(tuned, train)[0]

        name = f"tuned {sparsity:.6f}"
        place = None if folder is None else folder / name.replace(" ", "-")
        loss = float(memo(name, compute))
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        return loss

    reference = tuned_loss(0.0)
    low, high, middle, points = 0.0, 1.0, guess, []
    while high - low > tolerance:
        loss = tuned_loss(middle)
        points.append((middle, loss))
        low, high = (middle, high) if loss <= reference + epsilon else (low, middle)
        middle = (low + high) / 2
    return FineTunedLimit(low, (low, high), reference, tuple(sorted(points)))
