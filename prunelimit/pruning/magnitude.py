"""Global magnitude pruning: one sort of the weights gives every mask and the distance R(s) to every sparse point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from prunelimit.errors import PruneLimitError
from prunelimit.models import match_masks, prunable_names
from prunelimit.models.parameters import match_prunable

Masks = dict[str, Tensor]


def check_sparsity(sparsity: float) -> float:
    """Return the sparsity as a float, or say what is wrong with it.

    Args:
        sparsity: Fraction of the prunable weights to remove.

    Returns:
        The same number.

    Raises:
        PruneLimitError: If it does not lie in ``[0, 1)``.
    """
    if not 0 <= sparsity < 1:
        raise PruneLimitError(f"sparsity={sparsity!r} must lie in [0, 1): it is the fraction of weights to remove.")
    return float(sparsity)


def removed_count(sparsity: float, total: int) -> int:
    """Return how many of ``total`` weights a sparsity removes: the ceiling of ``sparsity * total``.

    Products that miss an integer by rounding alone count as that integer, so that ``k / total`` removes exactly ``k``.
    """
    exact = check_sparsity(sparsity) * total
    nearest = round(exact)
    return nearest if math.isclose(exact, nearest, rel_tol=1e-12) else math.ceil(exact)


def prunable_parameters(model: nn.Module, prunable: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by name.

    Args:
        model: Any torch module.
        prunable: Names of parameters, or patterns of them, see :func:`~prunelimit.models.parameters.match_prunable`; by default
            the weights of linear and convolution layers. A tied one goes by any of its names.

    Returns:
        The parameters by their first names, in the model's order.

    Raises:
        PruneLimitError: If a name is unknown, a parameter is frozen or complex, or a weight is not finite.
    """
    if isinstance(prunable, str):
        raise PruneLimitError(f"prunable={prunable!r} is one string: give a list of names, [{prunable!r}].")
    named = dict(model.named_parameters())
    first = {id(p): name for name, p in named.items()}
    tied = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    given = prunable_names(model) if prunable is None else prunable
    wanted = [n for name in given for n in ([name] if name in tied else match_prunable(model, [name]))]
    chosen = dict.fromkeys(tied.get(name, name) for name in wanted)  # in order: the first bad name is named
    for name in chosen:
        if not named[name].requires_grad:
            raise PruneLimitError(f"prunable={name!r} is frozen: set requires_grad=True or leave it out.")
        if named[name].is_complex():
            raise PruneLimitError(f"prunable={name!r} is complex: the limit is that of real weights, so leave it out.")
        if not bool(torch.isfinite(named[name]).all()):
            raise PruneLimitError(f"model has NaN or infinite weights in {name!r}: load finite weights before pruning.")
    if not chosen:
        raise PruneLimitError(
            "prunable=[] names no parameter: leave it out to prune all linear and convolution weights."
        )
    return {name: p for name, p in named.items() if name in chosen}


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors as one vector, each in row-major order."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


class MagnitudePath:
    """The path from the trained weights to zero, removing the smallest magnitude first.

    Args:
        model: The network; its weights are read once, here.
        prunable: Names of the prunable parameters; see :func:`prunable_parameters`.

    Attributes:
        total: Number of prunable weights, D.
        names: Their parameters.
        distance: ``(D + 1,)`` float64; entry m is R = ||w* - w||_2 with the m smallest magnitudes set to zero.
    """

    def __init__(self, model: nn.Module, prunable: Sequence[str] | None = None) -> None:
        parameters = prunable_parameters(model, prunable)
        self.names = list(parameters)
        self._shapes = {name: p.shape for name, p in parameters.items()}
        weights = flatten(list(parameters.values()))
        self._weights, self.total = weights, weights.numel()
        # Stable, so that equal magnitudes leave in the order of the model, and every mask is exact to one weight.
        magnitude, self._order = torch.sort(weights.abs(), stable=True)
        squares = np.cumsum(magnitude.cpu().double().numpy() ** 2)
        self.distance = np.sqrt(np.concatenate([[0.0], squares]))

    def radius(self, sparsity: float | np.ndarray) -> float | np.ndarray:
        """Return R(s), the distance between the trained and the pruned weights.

        Args:
            sparsity: One value or an array, in ``[0, 1)``.

        Returns:
            Distance(s) in units of the weights.
        """
        if np.ndim(sparsity) == 0:
            return float(self.distance[removed_count(float(sparsity), self.total)])
        counts = [removed_count(float(s), self.total) for s in np.ravel(sparsity)]
        return self.distance[counts].reshape(np.shape(sparsity))

    def masks(self, sparsity: float) -> Masks:
        """Return the masks that remove exactly ``ceil(s D)`` weights.

        Args:
            sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.

        Returns:
            Parameter name to a tensor of its shape and type, 1 where a weight is kept and 0 where it is removed.
        """
        keep = torch.ones_like(self._weights)
        keep[self._order[: removed_count(sparsity, self.total)]] = 0
        return self.split(keep)

    def displacement(self, sparsity: float) -> Tensor:
        """Return d = w(s) - w*, the ``(D,)`` step from the trained to the pruned weights."""
        step = torch.zeros_like(self._weights)
        removed = self._order[: removed_count(sparsity, self.total)]
        step[removed] = -self._weights[removed]
        return step

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a ``(D,)`` vector into tensors of the parameters' shapes."""
        parts = torch.split(vector, [shape.numel() for shape in self._shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def effective_sparsity(distance: np.ndarray, total: int) -> float:
    r"""Predict a limit from the magnitudes alone: keep :math:`N_\mathrm{eff} = (\sum_i |w_i|)^2 / \sum_i w_i^2` weights.

    It knows nothing of loss, data or curvature, which makes it the rival that a prediction with curvature has to beat.
    Source: effective model pruning, Wang et al. (2025).

    Args:
        distance: Distances R of :class:`MagnitudePath`, ``(D + 1,)``, or a coarser, equally spaced curve: weights between two
            of its points then count as equally large.
        total: Number of prunable weights, D.

    Returns:
        The sparsity, between 0 and 1.

    Raises:
        PruneLimitError: If all weights are zero.
    """
    squares = np.diff(np.asarray(distance, dtype=float) ** 2).clip(min=0)
    if not squares.sum() > 0:
        raise PruneLimitError("distance is zero everywhere: a network without weights has no effective number of them.")
    together = total / len(squares)
    return 1 - float(np.sqrt(squares * together).sum() ** 2 / squares.sum()) / total


def magnitude_masks(model: nn.Module, sparsity: float, prunable: Sequence[str] | None = None) -> Masks:
    """Find the masks of one global magnitude cut.

    Args:
        model: Any torch module.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.

    Returns:
        Parameter name to a 0-1 tensor of its shape; together they remove exactly ``ceil(sparsity * D)`` weights.

    Raises:
        PruneLimitError: If the sparsity is out of range, or a weight is NaN or infinite.

    Example:
        >>> layer = torch.nn.Linear(4, 2)
        >>> masks = magnitude_masks(layer, 0.5)
        >>> int(masks["weight"].sum())
        4
    """
    check_sparsity(sparsity)
    return MagnitudePath(model, prunable).masks(sparsity)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """Set the masked weights of a network to zero, in place.

    Args:
        model: The network.
        masks: Parameter name to a 0-1 tensor of its shape.

    Returns:
        The same network.

    Raises:
        PruneLimitError: If a mask names no parameter or has another shape.
    """
    for parameter, mask in match_masks(model, masks):
        parameter.mul_(mask.to(parameter))
    return model


def export_pruning(model: nn.Module, masks: Masks) -> nn.Module:
    """Register the masks with ``torch.nn.utils.prune``, in place, so that they survive further training.

    Args:
        model: The network.
        masks: Parameter name to a 0-1 tensor of its shape.

    Returns:
        The same network; ``torch.nn.utils.prune.remove`` makes the zeros permanent.
    """
    match_masks(model, masks)
    for name, mask in masks.items():
        module, _, leaf = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(module), leaf, mask)
    return model
