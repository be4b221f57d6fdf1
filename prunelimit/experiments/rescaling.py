"""The same function with other weights, and the same weights times a number: what it does to predicted and measured limits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit.checks import integer, positives, several
from prunelimit.curvature import HessianOperator
from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.limit import default_epsilon, exact_limit, formula_side, solve_limit
from prunelimit.models import mlp
from prunelimit.predict import predict_limit
from prunelimit.pruning.magnitude import MagnitudePath, flatten, prunable_parameters
from prunelimit.threads import suited_threads
from prunelimit.training import TrainSpec, fit


def small_network(
    hidden: int | Sequence[int], epochs: int, l1: float, seed: int
) -> tuple[nn.Module, tuple[Tensor, Tensor], float]:
    """Train a small ReLU network on the digits, in seconds.

    Args:
        hidden: Widths of the hidden layers.
        epochs: Passes over the training data.
        l1: Factor of the sum of absolute values.
        seed: Seed of weights and order.

    Returns:
        The network, its training data and its default epsilon.

    Raises:
        PruneLimitError: If there is no hidden layer, or an argument is out of range.
    """
    hidden = [integer("hidden", width) for width in several("hidden", hidden)]
    torch.manual_seed(seed)
    model, split = mlp([64, *hidden, 10]), load_dataset("digits").on_device("train")
    spec = TrainSpec(dataset="digits", model="mlp", epochs=epochs, batch_size=64, lr=0.02, l1=l1, seed=seed)
    with suited_threads(model):
        fit(model, split, spec)
        epsilon = default_epsilon(model, cross_entropy, list(split.batches(128)))
    return model.eval(), split.tensors(), epsilon


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a network in their order."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def rescaled_layers(model: nn.Module, layer: int, factor: float) -> nn.Module:
    """Multiply a layer and divide the next one: other weights, the same function.

    A ReLU passes a positive factor through, so what one layer gains the next one can give back. Source: Dinh, Pascanu,
    Bengio and Bengio (2017).

    Args:
        model: A chain of linear layers with ReLUs between them, as :func:`~prunelimit.models.mlp` builds it; not changed.
        layer: Number of the layer that is multiplied, weights and biases; not the last.
        factor: What with, a positive number.

    Returns:
        Another network that computes the same.

    Raises:
        PruneLimitError: If there is no such pair of layers or the factor is not positive.
    """
    last = len(linear_layers(model)) - 1
    if not 0 <= layer < last:
        raise PruneLimitError(f"layer={layer!r} must lie in 0 to {last - 1}: the next layer takes the factor back.")
    if not factor > 0:
        raise PruneLimitError(f"factor={factor!r} must be positive: a ReLU passes no other one through.")
    other = copy.deepcopy(model)
    here, after = linear_layers(other)[layer : layer + 2]
    for parameter in here.parameters():
        parameter.mul_(factor)
    after.weight.div_(factor)
    return other


@torch.no_grad()
def scaled_network(model: nn.Module, factor: float) -> nn.Module:
    """Multiply all weights; biases follow, so that the logits are multiplied by the factor to the number of layers.

    Args:
        model: A chain of linear layers with ReLUs between them; not changed.
        factor: A positive number.

    Returns:
        Another network with the same decisions.
    """
    other = copy.deepcopy(model)
    for depth, layer in enumerate(linear_layers(other), start=1):
        layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor**depth)
    return other


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(cross_entropy(model(data[0]), data[1]))


@torch.no_grad()
def _of_ones(model: nn.Module) -> nn.Module:
    """Copy a network with all its parameters one: rescaled, they are the factors."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.fill_(1.0)
    return other


def _flat_weights(model: nn.Module) -> np.ndarray:
    return flatten(list(prunable_parameters(model).values())).double().numpy()


def rescaling_frame(
    model: nn.Module, data: tuple[Tensor, Tensor], epsilon: float, layer: int, exchange: float | Sequence[float]
) -> pd.DataFrame:
    r"""Predict and measure the limit of networks that compute the same function with other weights.

    The dense Hessian is formed once. With M the diagonal matrix of the factors, that of the rescaled network is
    :math:`M^{-1} H M^{-1}`, by the chain rule.

    Args:
        model: A trained chain of linear layers with ReLUs between them, of at most a few thousand weights.
        data: Inputs and targets.
        epsilon: Tolerated rise of the loss.
        layer: Layer that is multiplied; the next one is divided.
        exchange: Factors of it, positive numbers.

    Returns:
        One row per factor: ``factor``, ``loss``, ``trace`` (of the absolute Hessian), ``length`` (of the weights),
        ``formula`` and ``measured`` with masks by magnitude, and ``formula_fixed`` and ``measured_fixed`` with the order of
        removal of the network as trained.

    Raises:
        PruneLimitError: If there is no such layer, no factor, or one is not positive.
    """
    exchange = positives("exchange", exchange)
    before = MagnitudePath(model)
    order = np.argsort(np.abs(_flat_weights(model)), kind="stable")
    hessian = HessianOperator(model, cross_entropy, data).dense().numpy()
    ones = _of_ones(model)
    rows = []
    for factor in exchange:
        other = rescaled_layers(model, layer, factor)
        weights = _flat_weights(other)
        scale = _flat_weights(rescaled_layers(ones, layer, factor))
        eigenvalues = np.linalg.eigvalsh(hessian / np.outer(scale, scale))
        fixed = np.sqrt(np.r_[0.0, np.cumsum(weights[order] ** 2)])
        own, kept = (
            predict_limit(other, cross_entropy, data, epsilon=epsilon, method="measured", masks=masks)
            for masks in (None, before.masks)
        )
        rows.append(
            {
                "factor": float(factor),
                "loss": _loss(other, data),
                "trace": float(np.abs(eigenvalues).sum()),
                "length": float(np.linalg.norm(weights)),
                "formula": exact_limit(eigenvalues, MagnitudePath(other).distance, epsilon),
                "measured": own.sparsity,
                "formula_fixed": exact_limit(eigenvalues, fixed, epsilon),
                "measured_fixed": kept.sparsity,
            }
        )
    return pd.DataFrame(rows)


def growth_frame(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    epsilon: float,
    growth: float | Sequence[float],
    *,
    steps: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Multiply all weights of a real network and take its real Hessian, beside the thought experiment that holds it fixed.

    Args:
        model: A trained chain of linear layers with ReLUs between them.
        data: Inputs and targets.
        epsilon: Tolerated rise of the loss, the same for every factor.
        growth: Factors of all weights, positive numbers.
        steps: Hessian products per spectrum.
        seed: Seed of the probe.

    Returns:
        One row per factor: ``factor``, ``loss``, ``largest`` (eigenvalue), ``held`` (the limit with the Hessian of factor
        one), ``formula`` with its interval ``low`` to ``high`` (with its own Hessian) and ``measured``.

    Raises:
        PruneLimitError: If there is no factor, or one is not positive.
    """
    growth = positives("growth", growth)
    first = predict_limit(model, cross_entropy, data, epsilon=epsilon, steps=steps, seed=seed).spectrum
    assert first is not None  # the formula's always has one
    distance = MagnitudePath(model).distance
    rows = []
    for factor in growth:
        other = scaled_network(model, factor)
        limit = predict_limit(other, cross_entropy, data, epsilon=epsilon, steps=steps, seed=seed)
        assert limit.spectrum is not None
        rows.append(
            {
                "factor": float(factor),
                "loss": _loss(other, data),
                "largest": limit.spectrum.largest,
                "held": solve_limit(factor * distance, formula_side(first, 0, epsilon)),
                "formula": limit.sparsity,
                "low": limit.interval[0],
                "high": limit.interval[1],
                "measured": predict_limit(other, cross_entropy, data, epsilon=epsilon, method="measured").sparsity,
            }
        )
    return pd.DataFrame(rows)
