"""A pruned parent and its retrained children: which weights are pruned, and what two children have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.landscape.connectivity import BATCH_SIZE, linear_path
from prunelimit.landscape.similarity import EXAMPLES, output_similarity
from prunelimit.models import prunable_names
from prunelimit.pruning.controls import uniform_masks
from prunelimit.pruning.magnitude import MagnitudePath, Masks

#: How the density is spread over layers: the same in each, or by one magnitude for all.
DISTRIBUTIONS = ("uniform", "global")

#: Retraining epochs, counted from the end, over which the test error of a child is averaged.
LAST_EPOCHS = 5


def regime_parameters(model: nn.Module) -> list[str]:
    """Name the weights that are pruned: those of all convolutions; of a network without any, of all linear layers but the last.

    The three-regime paper prunes convolutions and keeps the linear layer; for multilayer perceptrons the rule is ours.

    Args:
        model: The network.

    Returns:
        Parameter names, in the model's order.

    Raises:
        PruneLimitError: If the model has no weights of either kind.
    """
    names = prunable_names(model)
    convolutions = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    parameters = dict(model.named_parameters())
    return [name for name in names if id(parameters[name]) in convolutions] or names[:-1] or names


def check_density(density: float) -> None:
    """Refuse a density that prunes everything, or that is none.

    Args:
        density: Fraction of the weights that stays.

    Raises:
        PruneLimitError: If it does not lie in ``(0, 1]``.
    """
    if not 0 < density <= 1:
        raise PruneLimitError(f"density={density!r} must lie in (0, 1]: it is the fraction of weights that stays.")


def prune_parent(model: nn.Module, density: float, distribution: str = "uniform") -> Masks:
    """Choose the weights that stay, by magnitude.

    Args:
        model: The dense network; left as it was.
        density: Fraction of the weights named by :func:`regime_parameters` that stays, in ``(0, 1]``.
        distribution: ``"uniform"`` keeps this fraction of each layer, ``"global"`` the largest magnitudes of all.

    Returns:
        Parameter name to a 0-1 tensor; exactly ``floor(density * D)`` weights stay, up to rounding errors of the product.

    Raises:
        PruneLimitError: If the density is out of range or the distribution unknown.
    """
    if distribution not in DISTRIBUTIONS:
        raise unknown_name("distribution", distribution, DISTRIBUTIONS)
    check_density(density)
    sparsity, names = 1 - density, regime_parameters(model)
    if distribution == "uniform":
        return uniform_masks(model, sparsity, names)
    return MagnitudePath(model, names).masks(sparsity)


def final_error(history: Sequence[dict[str, Any]], last: int = LAST_EPOCHS) -> float:
    """Average the test error of a child over the end of its retraining.

    Args:
        history: Of the retraining; its last epochs were measured on the test split.
        last: So many of them.

    Returns:
        The error in ``[0, 1]``.
    """
    tested = [1 - epoch["test_accuracy"] for epoch in history[-last:]]
    return sum(tested) / len(tested)


@dataclasses.dataclass(frozen=True)
class Pair:
    """What two networks have in common.

    Attributes:
        errors: Training error in ``[0, 1]`` at 11 equally spaced points of the straight line between them.
        losses: Training loss in nats there.
        lmc: Mode connectivity by the error, zero connected and negative a barrier.
        lmc_loss: The same by the loss, in nats.
        cka: Linear CKA of their softmax outputs.
    """

    errors: tuple[float, ...]
    losses: tuple[float, ...]
    lmc: float
    lmc_loss: float
    cka: float


def measure_pair(
    first: nn.Module, second: nn.Module, data: DeviceSplit, *, examples: int = EXAMPLES, batch_size: int = BATCH_SIZE
) -> Pair:
    """Measure connectivity and similarity of two networks.

    Args:
        first: A network, on the device of ``data``; left as it was.
        second: One of the same architecture; left as it was.
        data: Un-augmented training images.
        examples: The first so many images for the similarity.
        batch_size: Images per pass.

    Returns:
        The measurements.

    Raises:
        PruneLimitError: If the architectures differ.
    """
    line = linear_path(first, second, data, batch_size=batch_size)
    similarity = output_similarity(first, second, data, examples=examples, batch_size=batch_size)
    return Pair(line["error"].values, line["loss"].values, line["error"].lmc, line["loss"].lmc, similarity)
