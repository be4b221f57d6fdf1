"""Per-example gradients and the empirical Fisher matrix that they span, never formed where it would be large.

With the gradients of N examples as the rows of G, the damped empirical Fisher matrix of d weights is

    F = damping I + A' A,   A = G / sqrt(N).

Everything that the second-order pruners need of it goes through the smaller of two Cholesky factors: that of F itself
(d x d), or, by the Woodbury identity, that of damping I + A A' (N x N). Factors are float64, whatever G is: entries of
the inverse are differences of nearly equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from prunelimit.errors import PruneLimitError
from prunelimit.threads import suited_threads

#: Numbers in one piece of a matrix that is turned to float64 or differentiated at once: 256 MB.
PIECE = 2**25

#: Most bytes that gradients and factors may take together: 8 GiB.
MEMORY = 2**33

#: Most examples that are differentiated at once; a convolution keeps the activations of all of them.
MOST_EXAMPLES = 256


def gradient_bytes(examples: int, weights: int, item: int = 4) -> int:
    """Return the memory that N x d gradients and the smaller Cholesky factor with a copy need, in bytes."""
    return examples * weights * item + 2 * 8 * min(examples, weights) ** 2


def per_example_gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    names: Sequence[str],
    columns: Tensor | None = None,
) -> Tensor:
    """Compute the gradient of the cross-entropy of each example alone, in evaluation mode.

    Args:
        model: The network; its mode is restored afterwards.
        inputs: ``(N, ...)`` normalised inputs.
        targets: ``(N,)`` labels.
        names: Parameters to differentiate by.
        columns: ``(D,)`` bool, the entries of these parameters, one after the other, that are wanted; ``None`` for all.

    Returns:
        ``(N, d)``, in the parameters' type and on their device.

    Raises:
        PruneLimitError: If the matrix would take more than ``MEMORY``, or a gradient is not finite.
    """
    everything = {name: p.detach() for name, p in model.named_parameters()}
    rest = {**everything, **dict(model.named_buffers())}
    chosen = {name: rest.pop(name) for name in names}
    first = next(iter(chosen.values()))
    total = sum(p.numel() for p in chosen.values())
    width = total if columns is None else int(columns.sum())
    needed = gradient_bytes(len(inputs), width, first.element_size())
    if needed > MEMORY:
        raise PruneLimitError(
            f"examples={len(inputs)} gradients of {width:,} weights need {needed / 2**30:.1f} GiB, more than the "
            f"{MEMORY / 2**30:.0f} GiB allowed: take fewer examples, or WoodFisher by blocks (block=2000)."
        )

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**rest, **parameters}, (image.unsqueeze(0),))
        return functional.cross_entropy(logits, label.unsqueeze(0))

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    found = torch.empty(len(inputs), width, dtype=first.dtype, device=first.device)
    size = max(1, min(MOST_EXAMPLES, PIECE // total))
    was_training = model.training
    model.eval()
    try:
        with suited_threads(model):
            for start in range(0, len(inputs), size):
                piece = slice(start, start + size)
                parts = gradients(chosen, inputs[piece].to(first), targets[piece])
                rows = torch.cat([parts[name].flatten(1) for name in chosen], dim=1)
                found[piece] = rows if columns is None else rows[:, columns]
    finally:
        model.train(was_training)
    if not bool(torch.isfinite(found).all()):
        raise PruneLimitError("model has a gradient that is not finite on these examples: lower lr and train again.")
    return found


class EmpiricalFisher:
    """The damped empirical Fisher matrix of some weights.

    Args:
        gradients: ``(N, d)``, one gradient per row.
        damping: What is added to the diagonal, in units of the loss per squared weight; positive.

    Raises:
        PruneLimitError: If there is no gradient, or the damping is not positive.
    """

    def __init__(self, gradients: Tensor, damping: float) -> None:
        if not (math.isfinite(damping) and damping > 0):
            raise PruneLimitError(f"damping={damping!r} must be a positive number, for example 1e-5.")
        if len(gradients) == 0:
            raise PruneLimitError("gradients has no row: give at least one example.")
        self.gradients, self.damping = gradients, damping
        self.examples, self.weights = gradients.shape
        self._scale = 1 / math.sqrt(self.examples)
        self._all = torch.arange(self.weights, device=gradients.device)
        self._factor: Tensor | None = None

    def forward(self, step: Tensor) -> Tensor:
        """Return A times a ``(d,)`` step: the ``(N,)`` change of each example's loss to first order, over sqrt(N)."""
        return (self.gradients @ step.to(self.gradients)).double() * self._scale

    def backward(self, values: Tensor) -> Tensor:
        """Return A' times ``(N,)`` values, ``(d,)``."""
        return (self.gradients.T @ values.to(self.gradients)).double() * self._scale

    def diagonal(self) -> Tensor:
        """Return the diagonal of F, ``(d,)``."""
        parts = [(g.double() ** 2).mean(0) for g in self.gradients.split(max(1, PIECE // self.examples), dim=1)]
        return torch.cat(parts) + self.damping if parts else self._all.double()

    def columns(self, places: Tensor) -> Tensor:
        """Return the columns of A at some places as float64, ``(N, len(places))``."""
        return self.gradients[:, places].double() * self._scale

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of the inverse of F, ``(d,)``, in about ``N^2 d`` or ``d^3`` operations."""
        factor = self._whole_factor()
        if self.weights <= self.examples:
            found = torch.cholesky_inverse(factor).diagonal().clone()
        else:
            explained = [
                torch.linalg.solve_triangular(factor, part, upper=False).square().sum(0)
                for _, part in self._pieces(self._all)
            ]
            found = (1 - torch.cat(explained)) / self.damping
        # Rounding could leave a stiff weight with a negative entry; 1 / F_qq is a lower bound of the true one.
        return torch.maximum(found, 1 / self.diagonal())

    def inverse_product(self, vector: Tensor) -> Tensor:
        """Return the inverse of F times a ``(d,)`` vector."""
        factor = self._whole_factor()
        if self.weights <= self.examples:
            return torch.cholesky_solve(vector.double().unsqueeze(1), factor).squeeze(1)
        inner = self._times(self._all, vector.double())
        solved = torch.cholesky_solve(inner.unsqueeze(1), factor).squeeze(1)
        return (vector.double() - self._transposed_times(self._all, solved)) / self.damping

    def refit(self, weights: Tensor, kept: Tensor, first_order: float = 0.0) -> Tensor:
        r"""Move the kept weights to where the quadratic model is smallest, the others being zero.

        This is the optimal brain surgeon's update for a whole set of weights at once. With the step
        :math:`\Delta = b - w`, the removed set R and the kept set K it minimises

        .. math:: c\, g^\top \Delta + \tfrac12 \Delta^\top F \Delta,\qquad \Delta_R = -w_R,

        where g is the mean of the gradients and c is ``first_order``; the solution is
        :math:`\Delta_K = F_{KK}^{-1} (F_{KR} w_R - c\, g_K)`. The same numbers come out of the published form
        :math:`w - F^{-1} E (E^\top F^{-1} E)^{-1} E^\top w` (Hassibi and Stork 1993, for several weights) and of ridge
        regression on the kept columns (Benbaki et al. 2023).

        Args:
            weights: ``(d,)`` weights at which the gradients were taken.
            kept: ``(d,)`` bool.
            first_order: Factor c of the linear term; zero takes the network for converged.

        Returns:
            New weights, ``(d,)`` float64, exactly zero where nothing is kept.
        """
        weights = weights.double()
        places = self._all[kept]
        shift = first_order * self._scale
        pull = self._times(self._all[~kept], weights[~kept]) - shift  # A_R w_R - c 1 / sqrt(N)
        found = torch.zeros_like(weights)
        if len(places) <= self.examples:
            factor = torch.linalg.cholesky(self._normal(places))
            right = self._transposed_times(places, pull)
            step = torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
        else:
            factor = torch.linalg.cholesky(self._gram(places))
            step = self._transposed_times(places, torch.cholesky_solve(pull.unsqueeze(1), factor).squeeze(1))
        found[kept] = weights[kept] + step
        return found

    def loss_rise(self, step: Tensor, first_order: float = 0.0) -> float:
        """Return the quadratic model's rise of the loss after a ``(d,)`` step, ``c g' step + step' F step / 2``."""
        moved = self.forward(step)
        curved = moved @ moved + self.damping * step.double() @ step.double()
        return float(first_order * self._scale * moved.sum() + curved / 2)

    def _whole_factor(self) -> Tensor:
        if self._factor is None:
            small = self._normal if self.weights <= self.examples else self._gram
            self._factor = torch.linalg.cholesky(small(self._all))
        return self._factor

    def _pieces(self, places: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Give the columns of A at some places, piece by piece, in float64."""
        size = max(1, PIECE // self.examples)
        for start in range(0, len(places), size):
            piece = slice(start, start + size)
            yield piece, self.columns(places[piece])

    def _times(self, places: Tensor, values: Tensor) -> Tensor:
        result = torch.zeros(self.examples, dtype=torch.float64, device=values.device)
        for piece, part in self._pieces(places):
            result += part @ values[piece]
        return result

    def _transposed_times(self, places: Tensor, values: Tensor) -> Tensor:
        parts = [part.T @ values for _, part in self._pieces(places)]
        return torch.cat(parts) if parts else values[:0]

    def _gram(self, places: Tensor) -> Tensor:
        """Return the lower triangle of damping I + A_K A_K', N x N."""
        result = self._damped_zeros(self.examples)
        for _, part in self._pieces(places):
            _add_lower(result, part, part.T)
        return result

    def _normal(self, places: Tensor) -> Tensor:
        """Return the lower triangle of damping I + A_K' A_K, one row and column per place."""
        result = self._damped_zeros(len(places))
        for rows in self.gradients.split(max(1, PIECE // max(1, len(places)))):
            part = rows[:, places].double() * self._scale
            _add_lower(result, part.T, part)
        return result

    def _damped_zeros(self, size: int) -> Tensor:
        return torch.diag(torch.full((size,), self.damping, dtype=torch.float64, device=self.gradients.device))


def _add_lower(target: Tensor, left: Tensor, right: Tensor, panels: int = 8) -> None:
    """Add a symmetric product to a matrix, its lower triangle only: almost half of the work saved."""
    size = -(-len(target) // panels) or 1
    for start in range(0, len(target), size):
        stop = min(start + size, len(target))
        target[start:stop, :stop] += left[start:stop] @ right[:, :stop]
