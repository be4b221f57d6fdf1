"""Limits that one finds by pruning: sweeps, one-shot limits on accuracy, and the fine-tuned limit.

Two questions are often mixed up. The one-shot limit asks how far one cut may go if the kept weights stay as they are.
The fine-tuned limit lets the kept weights move, which is what the theorem speaks about: that SOME point of the sparse
subspace lies in the sublevel set. Training on improves even an unpruned network, so the reference of the fine-tuned
limit is the dense network after the same extra training.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable

from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks
from prunelimit.training import TrainSpec, evaluate, fit

#: Runs a computation, or returns what it gave before: a key and the computation in, its value out.
Memo = Callable[[str, Callable[[], object]], object]


def no_memo(key: str, compute: Callable[[], object]) -> object:
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
) -> list[SweepPoint]:
    """Prune once per sparsity and evaluate, without any retraining.

    Args:
        model: The network; not changed.
        train: Training split, un-augmented.
        test: Test split.
        sparsities: Fractions to remove, each in ``[0, 1)``.
        path: The network's sorted magnitudes, if they are at hand.

    Returns:
        One point per sparsity, in the given order.
    """
    path = path or MagnitudePath(model)
    points = []
    for sparsity in sparsities:
        pruned = pruned_copy(model, path, sparsity)
        points.append(SweepPoint(sparsity, *evaluate(pruned, train), *evaluate(pruned, test)))
    return points


def largest_sparsity(
    model: nn.Module,
    test: DeviceSplit,
    accuracies: dict[str, float],
    step: float = 0.001,
    path: MagnitudePath | None = None,
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

    Returns:
        Name to the sparsity, zero where no pruned network reaches the accuracy.
    """
    path = path or MagnitudePath(model)
    found = dict.fromkeys(accuracies, 0.0)
    open_names = set(accuracies)
    for number in range(round(1 / step) - 1, 0, -1):
        if not open_names:
            break
        sparsity = number * step
        accuracy = evaluate(pruned_copy(model, path, sparsity), test)[1]
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

    Returns:
        The limit, its bracket and every loss on the way.

    Raises:
        PruneLimitError: If ``guess`` is not in ``(0, 1)`` or ``tolerance`` not positive.
    """
    if not (0 < guess < 1 and tolerance > 0):
        raise PruneLimitError(f"guess={guess!r}, tolerance={tolerance!r}: guess must lie in (0, 1), tolerance above 0.")
    path = MagnitudePath(model)

    def tuned_loss(sparsity: float) -> float:
        def compute() -> float:
            tuned = copy.deepcopy(model)
            fit(tuned, train, spec, masks=path.masks(sparsity) if sparsity else None)
            return evaluate(tuned, train)[0]

        return float(memo(f"tuned {sparsity:.6f}", compute))  # type: ignore[arg-type]

    reference = tuned_loss(0.0)
    low, high, middle, points = 0.0, 1.0, guess, []
    while high - low > tolerance:
        loss = tuned_loss(middle)
        points.append((middle, loss))
        low, high = (middle, high) if loss <= reference + epsilon else (low, middle)
        middle = (low + high) / 2
    return FineTunedLimit(low, (low, high), reference, tuple(sorted(points)))
