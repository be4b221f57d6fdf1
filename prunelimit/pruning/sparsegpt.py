"""SparseGPT: layer by layer, the optimal brain surgeon in one sweep over the columns (Frantar and Alistarh 2023).

A layer with weights W that reads X should give nearly W X after pruning. For one output that is a quadratic function of its
weights with the matrix H = XX' + damping, the same for every output. Columns are visited from left to right; a weight that is
removed is made up for by the weights to its right, those to its left being final:

    w_k <- w_k - w_j / [H_j^-1]_jj [H_j^-1]_jk   for k >= j,   H_j = H restricted to the columns j and later.

All the H_j^-1 are in one triangular matrix U with U'U = H^-1: [H_j^-1]_jk = U_jj U_jk. Within a block of columns the masks are
chosen together, just before the block is swept: the smallest w_j^2 / U_jj^2, over all outputs, leave.

Three things can be had. :func:`sparsegpt` is the method: masks and new weights. :class:`SparseGPTPath` runs it for every
sparsity, so that a limit *with* the new weights can be measured or expanded to second order. :class:`SparseGPTOrder` is the
criterion alone, at the trained weights: one order, nested masks, kept weights as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.curvature.data import LossFunction
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import Pruned
from prunelimit.pruning.controls import largest_remainder
from prunelimit.pruning.layerwise import Calibration, ScoreOrder, relative_ranks
from prunelimit.pruning.magnitude import Masks, check_sparsity, removed_count
from prunelimit.pruning.paths import MaskPath
from prunelimit.pruning.stages import smallest


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Settings of the sweep."""

    block: int
    damping: float

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or self.block < 1:
            raise PruneLimitError(
                f"block={self.block!r} must be at least 1: it is a number of columns, for example 128."
            )
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise PruneLimitError(f"damping={self.damping!r} must be a positive number, for example 0.01.")


def sparsegpt(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Any,
    sparsity: float | None = None,
    *,
    masks: Masks | None = None,
    block: int = 128,
    damping: float = 0.01,
    prunable: Sequence[str] | None = None,
) -> Pruned:
    """Remove weights layer by layer, and let the others in the layer make up for them.

    Use it for large networks, without training: it needs forward passes and, for each layer, one matrix of the size of its
    inputs squared. Layers are pruned in the order in which the network calls them, each with the inputs that the pruned layers
    before it give; in the published code those are the layers of the transformer blocks before. Every layer, and every block
    of its columns, loses the same fraction. Source: Frantar and Alistarh (2023), "SparseGPT: Massive Language Models Can be
    Accurately Pruned in One-Shot", algorithm 1.

    Args:
        model: Any torch module; left as it was.
        loss_fn: As for :func:`~prunelimit.predict_limit`; it only tells how the model is called.
        data: As there. A layer wants more positions than it has inputs.
        sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``; exactly ``ceil(sparsity * D)`` of them go.
        masks: In place of a sparsity: masks from elsewhere, for example n:m, of which only the kept weights are then updated.
        block: Columns whose masks are chosen together, and which all lose the same fraction. The published 128 is made for wide
            layers: one with fewer inputs is chosen before anything is updated, which may be worse than magnitude.
        damping: What is added to the diagonal of H, as a fraction of its mean.
        prunable: Names of the prunable parameters; by default those of ``masks``, or the weights of linear and convolution
            layers.

    Returns:
        Masks and new weights. The history has, for each layer, ``layer``, ``sparsity`` and ``error``: the squared change of its
        output as a fraction of the squared output without bias, on the inputs that it was pruned with.

    Raises:
        PruneLimitError: If an argument cannot be used, or a weight is in no linear or convolution layer that is called.
    """
    settings = _Settings(block, damping)
    if (sparsity is None) == (masks is None):
        raise PruneLimitError("sparsity and masks: give one of them, the other follows from it.")
    if masks is not None and prunable is None:
        prunable = list(masks)
    goal = masks if sparsity is None else check_sparsity(sparsity)
    return _prune(Calibration(model, loss_fn, data, prunable), goal or 0.0, settings)


class SparseGPTOrder(ScoreOrder):
    """Weights in the order of SparseGPT's criterion at the trained weights, ``|w_j| / U_jj``; a pruner for ``predict_limit``.

    It is what :func:`sparsegpt` chooses by, without the updates that change the weights of later columns before they are chosen,
    and with all inputs from the dense network. So the masks are nested, and cost one pass per layer in all.

    Args:
        model: Any torch module; left as it was.
        loss_fn: As for :func:`~prunelimit.predict_limit`; it only tells how the model is called.
        data: As there.
        block: Columns among which scores are compared, over all outputs.
        damping: What is added to the diagonal of H, as a fraction of its mean.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.

    Attributes:
        total: Number of prunable weights, D.
        scores: Parameter name to scores of its shape, float64.

    Raises:
        PruneLimitError: If an argument cannot be used, or a weight is in no linear or convolution layer that is called.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        data: Any,
        *,
        block: int = 128,
        damping: float = 0.01,
        prunable: Sequence[str] | None = None,
    ) -> None:
        settings = _Settings(block, damping)
        calibration = Calibration(model, loss_fn, data, prunable)
        scores, ranks = {}, {}
        for name in calibration.parameters:
            matrix, gram = calibration.matrix(name).double(), calibration.gram(name)
            score, rank = torch.empty_like(matrix), torch.empty_like(matrix)
            for group in range(len(matrix)):
                factor, dead = _factor(name, gram[group], settings.damping)
                score[group] = torch.where(dead, 0.0, matrix[group].abs() / factor.diagonal())
                for part in _parts(matrix.shape[2], settings.block):
                    ranked = relative_ranks(score[group][:, part].reshape(1, -1))
                    rank[group][:, part] = ranked.reshape(matrix.shape[1], -1)
            scores[name], ranks[name] = calibration.shaped(name, score), calibration.shaped(name, rank)
        super().__init__(calibration.parameters, scores, ranks)


class SparseGPTPath(MaskPath):
    """The sparse points of SparseGPT with their new weights: the method is run for every sparsity that is asked for.

    Its steps hold the updates, so that :func:`~prunelimit.path_limits.measured_limit` and ``directional_limit`` give the limit
    of the method itself. A run costs one pass over the data per layer. The masks of two sparsities need not be nested.

    Args:
        model: Any torch module; left as it was.
        loss_fn: As for :func:`~prunelimit.predict_limit`.
        data: As there.
        masks: Maps a sparsity to masks from elsewhere, of which only the kept weights are then updated; ``None`` chooses them.
        points: Number of equally spaced sparsities at which the distance is taken, each with a run.
        block: Columns whose masks are chosen together.
        damping: What is added to the diagonal of H, as a fraction of its mean.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        data: Any,
        *,
        masks: Callable[[float], Masks] | None = None,
        points: int = 10,
        block: int = 128,
        damping: float = 0.01,
        prunable: Sequence[str] | None = None,
    ) -> None:
        self._settings, self._chosen = _Settings(block, damping), masks
        self._calibration = Calibration(model, loss_fn, data, prunable)
        self._last: tuple[float, Pruned] | None = None
        parameters = self._calibration.parameters
        super().__init__(list(parameters), list(parameters.values()), self._own_masks, points)

    def pruned(self, sparsity: float) -> Pruned:
        """Return masks and new weights at a sparsity; the last ones are remembered."""
        if self._last is None or self._last[0] != sparsity:
            goal = check_sparsity(sparsity) if self._chosen is None else self._chosen(sparsity)
            self._last = sparsity, _prune(self._calibration, goal, self._settings)
        return self._last[1]

    def displacement(self, sparsity: float) -> Tensor:
        """Return the ``(D,)`` step from the trained weights to the pruned and updated ones."""
        new = self.pruned(sparsity).weights
        return torch.cat([(new[n] - w).reshape(-1) for n, w in zip(self._names, self._weights, strict=True)])

    def _own_masks(self, sparsity: float) -> Masks:
        return self.pruned(sparsity).masks


@torch.no_grad()
def _prune(calibration: Calibration, goal: float | Masks, settings: _Settings) -> Pruned:
    """Prune layer by layer in the network itself, and put its weights back whatever happens."""
    parameters, choices = calibration.parameters, _choices(calibration, goal)
    dense = {name: p.detach().clone() for name, p in parameters.items()}
    masks, weights, history = {}, {}, []
    try:
        for name in calibration.call_order():
            gram, matrix = calibration.gram(name), calibration.matrix(name).double()
            new, kept = _sweep_groups(name, matrix, gram, choices[name], settings)
            error, output = (float((m @ gram * m).sum()) for m in (new - matrix, matrix))
            parameters[name].copy_(calibration.shaped(name, new))  # from here on, matrix may be the new one
            weights[name] = parameters[name].detach().clone()
            masks[name] = calibration.shaped(name, kept).to(weights[name])
            removed = 1 - float(kept.double().mean())
            history.append({"layer": name, "sparsity": removed, "error": error / output if output else 0.0})
    finally:
        for name, p in parameters.items():
            p.copy_(dense[name])
    return Pruned({name: masks[name] for name in parameters}, {name: weights[name] for name in parameters}, history)


def _choices(calibration: Calibration, goal: float | Masks) -> dict[str, Tensor | int]:
    """Say for each weight how many entries leave, or which stay."""
    parameters = calibration.parameters
    if not isinstance(goal, Mapping):
        sizes = [p.numel() for p in parameters.values()]
        count = removed_count(goal, sum(sizes))
        counts = largest_remainder([count * size / sum(sizes) for size in sizes], count)
        return dict(zip(parameters, counts, strict=True))
    for name, p in parameters.items():
        if name not in goal or goal[name].shape != p.shape:
            raise PruneLimitError(
                f"masks has no mask of shape {tuple(p.shape)} for {name!r}: give one per prunable parameter."
            )
    return {name: calibration.matrix(name, goal[name].to(p.device)) != 0 for name, p in parameters.items()}


def _sweep_groups(
    name: str, matrix: Tensor, gram: Tensor, choice: Tensor | int, settings: _Settings
) -> tuple[Tensor, Tensor]:
    """Sweep the matrices of a weight; ``choice`` is what is kept, or how many leave."""
    parts = _parts(matrix.shape[2], settings.block)
    counts: list[int] = []
    if isinstance(choice, int):
        quotas = [choice * len(range(*part.indices(matrix.shape[2]))) for _ in matrix for part in parts]
        counts = largest_remainder([quota / (matrix.shape[2] * len(matrix)) for quota in quotas], choice)
    new, kept = matrix.clone(), torch.ones_like(matrix, dtype=torch.bool)
    for group in range(len(matrix)):
        factor, dead = _factor(name, gram[group], settings.damping)
        for number, part in enumerate(parts):
            if isinstance(choice, int):
                score = torch.where(dead, 0.0, (new[group] / factor.diagonal()).square())[:, part]
                leaving = smallest(score.reshape(-1), counts[group * len(parts) + number])
                kept[group][:, part] = ~leaving.reshape(score.shape)
            else:
                kept[group][:, part] = choice[group][:, part]
            _sweep(new[group], kept[group], factor, part)
    return torch.where(kept, new, 0.0), kept


def _sweep(weights: Tensor, kept: Tensor, factor: Tensor, part: slice) -> None:
    """Remove the weights of one block of columns, in place, and update all columns to its right."""
    block, inner = weights[:, part], factor[part, part]
    errors = torch.zeros_like(block)
    for column in range(block.shape[1]):
        errors[:, column] = torch.where(kept[:, part][:, column], 0.0, block[:, column]) / inner[column, column]
        block[:, column:] -= errors[:, column, None] * inner[column, column:]
    weights[:, part.stop :] -= errors @ factor[part, part.stop :]


def _factor(name: str, gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return U with U'U the inverse of the damped H, upper triangular, and the inputs that are always zero."""
    diagonal = gram.diagonal()
    dead = diagonal == 0
    mean = float(diagonal.sum()) / max(1, int((~dead).sum())) or 1.0
    # An input that is always zero says nothing of its weights: any number will do, and they leave first.
    damped = gram + torch.diag(mean * (dead.to(gram) + damping))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True), dead
    except torch.linalg.LinAlgError as error:
        raise PruneLimitError(
            f"damping={damping!r} is too small for the inputs of {name!r}: raise it, or give more data."
        ) from error


def _parts(width: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, width)) for start in range(0, width, block)]
