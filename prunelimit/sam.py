"""Sharpness-aware minimisation: a step takes its gradient where the loss nearby is highest, to first order.

SAM (Foret et al. 2021) looks within a ball of radius ``rho`` around the weights, adaptive SAM (ASAM, Kwon et al. 2021) within
an ellipsoid whose axes are as long as the weights are large. The ascent follows the gradient of the task loss alone: L1 and L2
have no part in it and join the step at the weights themselves, as in plain SGD. Masked weights are not moved, and their
gradient does not count in the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunelimit.throughput import Forward

LEAST_NORM = 1e-12


def perturbation(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, *, adaptive: bool) -> list[Tensor]:
    """Return the step to the highest point nearby of the loss's linear model.

    It is ``rho g / ||g||`` (Foret et al. 2021, for the Euclidean norm). With ``adaptive`` it is ``rho w^2 g / || |w| g ||``,
    entry by entry (Kwon et al. 2021). Kwon et al. may add a constant eta to ``|w|``, and their code leaves biases out of the
    scaling. We do neither: every parameter is scaled by its own size, and one that is exactly zero is not moved.

    Args:
        weights: The parameters.
        gradients: For each parameter the gradient, of its shape; the norms are over all of them together.
        rho: Radius.
        adaptive: Whether the radius is measured in units of the weights.

    Returns:
        What to add to each parameter. A norm below ``LEAST_NORM`` counts as that much, so that no gradient is no step.
    """
    steps, sizes = list(gradients), list(weights)
    if adaptive:
        sizes = [weight.abs() for weight in weights]
        steps = list(torch._foreach_mul(steps, sizes))
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(steps)))
    if adaptive:
        steps = list(torch._foreach_mul(steps, sizes))
    return list(torch._foreach_mul(steps, rho / norm.clamp_min(LEAST_NORM)))


class SharpnessAware:
    """The second half of a sharpness-aware gradient; it keeps nothing from one step to the next.

    Args:
        forward: Gives the mean loss of a batch.
        parameters: What is trained.
        masks: Pairs of a parameter and its 0-1 mask.
        rho: Radius.
        adaptive: Whether the radius is measured in units of the weights.
    """

    def __init__(
        self,
        forward: Forward,
        parameters: Sequence[Tensor],
        masks: Sequence[tuple[Tensor, Tensor]],
        rho: float,
        *,
        adaptive: bool,
    ) -> None:
        self.forward, self.parameters, self.masks = forward, parameters, dict(masks)
        self.rho, self.adaptive = rho, adaptive

    def __call__(self, images: Tensor, labels: Tensor, backward: Callable[[Tensor], None] = Tensor.backward) -> None:
        """Put the gradient at the perturbed weights in place of the one at the weights.

        Afterwards weights and buffers have the bits that they had before, so that batch normalisation counts the batch once,
        with the statistics of the first pass. Dropout draws anew.

        Args:
            images: The batch whose gradient the parameters hold.
            labels: Its labels.
            backward: Gives the parameters the gradient of a loss.
        """
        moved = [p for p in self.parameters if p.grad is not None]
        kept = [*moved, *self.forward.model.buffers()]
        with torch.no_grad():
            before = [tensor.clone() for tensor in kept]
            gradients = [p.grad * self.masks[p] if p in self.masks else p.grad for p in moved if p.grad is not None]
            torch._foreach_add_(moved, perturbation(moved, gradients, self.rho, adaptive=self.adaptive))
        for p in moved:
            p.grad = None
        try:
            backward(self.forward(images, labels)[0])
        finally:
            # From copies: subtracting the perturbation again would leave its rounding behind.
            with torch.no_grad():
                torch._foreach_copy_(kept, before)
