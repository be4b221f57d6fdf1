r"""The limit when the kept weights may move, to make up for the pruned ones, mask fixed.

Pruning fixes the step d_p = -w_p on the pruned coordinates; z on the kept ones lowers the loss. Where the quadratic
:math:`q(d) = g^T d + d^T H d / 2` holds and H is positive definite on the kept coordinates, the best z leaves
:math:`d_p^T (H_{pp} - H_{pk} H_{kk}^{-1} H_{kp}) d_p / 2` plus gradient terms: the optimal brain surgeon for the whole
support at once. A trained network's H is indefinite and the quadratic soon ends, so z is a trust-region step: its first
radius is R(s) = ||d_p||, the only length in the problem, and the real loss decides whether a radius is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prunelimit.curvature.operator import Batches, CurvatureOperator, mean_loss
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.limit import PruningLimit, dense_loss
from prunelimit.path_limits import search_limit
from prunelimit.pruning.magnitude import flatten
from prunelimit.pruning.paths import PruningPath
from prunelimit.trust_region import SteihaugPath, trusted_step

CONTROLS = ("stationary", "step", "none")

#: Most trust-region steps per sparsity; between 8 and 20 the limits of six small networks moved by two points at most.
ROUNDS = 12

#: Relative residual at which conjugate gradients stop; as a rule the radius stops them earlier.
ACCURACY = 0.1


class _Weights:
    """The network's prunable weights, moved to w* + d, with every evaluation counted."""

    def __init__(self, operator: CurvatureOperator, batches: Batches) -> None:
        self.operator, self.batches = operator, batches
        self._trained = [p.detach().clone() for p in operator.parameters]
        self.evaluations = 0

    @torch.no_grad()
    def move(self, step: Tensor | None) -> None:
        """Put the weights at w* + step, ``(D,)``, or back at w*."""
        parts = [None] * len(self._trained) if step is None else step.split([w.numel() for w in self._trained])
        for parameter, trained, part in zip(self.operator.parameters, self._trained, parts, strict=True):
            parameter.copy_(trained if part is None else trained + part.reshape(trained.shape).to(trained))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the weights back, whatever happens."""
        try:
            yield
        finally:
            self.move(None)

    def loss(self, step: Tensor) -> float:
        """Measure the mean loss at w* + step, and leave the weights there."""
        self.move(step)
        self.evaluations += 1
        return mean_loss(self.operator.model, self.operator.loss_fn, self.batches)[0]

    def slope(self) -> Tensor:
        """Take the ``(D,)`` gradient where the weights are."""
        self.evaluations += 1
        return self.operator.gradient.double()

    def multiply(self, vector: Tensor) -> Tensor:
        """Multiply by the curvature where the weights are."""
        return (self.operator @ vector).double()


class _Refit:
    """Lower the objective L(w* + d) - tilt'd over the kept coordinates. Rises count from L(w*)."""

    def __init__(self, weights: _Weights, tilt: Tensor, dense: float, accuracy: float) -> None:
        self.weights, self.tilt, self.dense, self.accuracy = weights, tilt, dense, accuracy

    def rise(self, displacement: Tensor) -> float:
        """Measure L(w* + d) - L(w*)."""
        return self.weights.loss(displacement) - self.dense

    def _step(
        self, place: Tensor, slope: Tensor, keep: Tensor, rise: float, radius: float
    ) -> tuple[Tensor | None, float, float, float]:
        """Make one accepted step from w* + place, with the curvature of where the weights are now.

        Gives the step, the change of the objective that was promised, the next radius, and the rise that is reached.
        """
        path = SteihaugPath(
            lambda v: self.weights.multiply(v) * keep, (slope - self.tilt) * keep, accuracy=self.accuracy
        )
        path.step(radius)  # every product is made here, before a trial moves the weights
        reached = rise

        def reduction(step: Tensor) -> float:
            nonlocal reached
            reached = self.rise(place + step)
            return rise - reached + float(self.tilt @ step)

        step, change, radius = trusted_step(path, radius, reduction)
        return step, change, radius, rise if step is None else reached

    def once(self, pruned: Tensor, keep: Tensor, radius: float) -> tuple[float, float]:
        """Make one step in the quadratic at w*; gives the rise that it predicts and the rise that is reached."""
        rise = self.rise(pruned)
        self.weights.move(None)
        slope, curved = self.weights.slope(), self.weights.multiply(pruned)
        predicted = float(slope @ pruned + pruned @ curved / 2)
        step, change, _, reached = self._step(pruned, slope + curved, keep, rise, radius)
        # What the quadratic of the loss itself says: the change of the objective holds the tilt as well.
        return predicted if step is None else predicted + change + float(self.tilt @ step), reached

    def renewed(self, pruned: Tensor, keep: Tensor, radius: float, rounds: int, goal: float) -> tuple[float, float]:
        """Make several steps, each in the quadratic of where the last one led, until the rise is at most ``goal``.

        Gives the lowest rise on the way, twice: nothing is predicted here.
        """
        place, rise = pruned, self.rise(pruned)
        lowest = rise
        for _ in range(rounds):
            if lowest <= goal:
                break
            self.weights.move(place)
            step, _, radius, rise = self._step(place, self.weights.slope(), keep, rise, radius)
            if step is None:
                break
            place, lowest = place + step, min(lowest, rise)
        return lowest, lowest


def refit_limit(
    operator: CurvatureOperator,
    path: PruningPath,
    epsilon: float,
    *,
    control: str = "stationary",
    rounds: int = ROUNDS,
    accuracy: float = ACCURACY,
    batches: Batches | None = None,
    tolerance: float = 0.001,
) -> PruningLimit:
    r"""Find how far a network can be pruned if its kept weights are refitted, by trust-region steps without a setting.

    At each sparsity the kept weights start where they were trained to. A step minimises the quadratic by truncated
    conjugate gradients (Steihaug, Toint) within a radius, first R(s) = ||d_p||; it counts if the real loss falls by at
    least a quarter of what the quadratic promises, and the radius shrinks otherwise. Each later step has a gradient
    and a curvature of its own. A sparsity passes if the loss of some point on the way is within epsilon, which proves
    that the sublevel set holds a point of the sparse subspace; that no point was found proves nothing, so the limit is
    one that can be reached and may be too low. More rounds never find less at a sparsity.

    With ``rounds=0`` only one step is made and nothing is renewed: the limit is the root of what the quadratic at w*
    predicts. That is cheaper by a factor of about five and not reliable: near the limit the pruned point itself lies
    outside the domain of that quadratic.

    When to use it: to predict the fine-tuned limit of this one network without choosing an optimiser, a rate or a
    number of epochs. It is no saving: a few hundred products and forward passes may cost more than fine-tuning.
    Biases and normalisation parameters stay as they are. What is found need not fall steadily with the sparsity, so
    bisection finds one of several crossings where the loss is rugged.

    Args:
        operator: The curvature; its network is moved and put back.
        path: The sparse points.
        epsilon: Tolerated rise of the mean loss.
        control: What the loss is compared with. A network trained with a penalty lowers its loss at once if the penalty
            is dropped, pruned or not, and only what pruning causes should count. ``"stationary"``: the network is
            taken to be stationary for the objective it was trained with, so the penalty's slope is -g(w*), and the
            kept weights lower L(w* + d) - g'd: the dense network then stays where it is and is its own control. A
            network that is still learning is not stationary, and its limit is not reliable: on small residual networks
            after 30 epochs it missed the fine-tuned one by 13 points, either way.
            ``"step"``: they lower L itself, and what the dense network gains by the same kind of steps, with the same
            first radius, is subtracted from the loss allowed. ``"none"``: they lower L itself, compared with L(w*):
            the theorem's own question, whether a point of the sparse subspace lies in the sublevel set.
        rounds: Most steps per sparsity.
        accuracy: Relative residual at which conjugate gradients stop.
        batches: Data of the loss that decides; by default the operator's own.
        tolerance: Width of the bracket in sparsity at which bisection stops.

    Returns:
        The limit; its interval is the bracket. The curve has ``rise``, which is compared with epsilon (predicted for
        ``rounds=0``, and less the control), and ``reached``, the loss really reached less L(w*). A search ends as soon
        as it is within epsilon, so lower sparsities may have room left. Cost: ``products``, ``evaluations`` of
        the loss or its gradient, ``seconds``.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.
    """
    if control not in CONTROLS:
        raise unknown_name("control", control, CONTROLS)
    if rounds < 0:
        raise PruneLimitError(f"rounds={rounds!r} must be at least 0: the most trust-region steps per sparsity.")
    if not 0 < accuracy < 1:
        raise PruneLimitError(f"accuracy={accuracy!r} must lie in (0, 1): it is a relative residual.")
    start, before = time.monotonic(), operator.products
    weights = _Weights(operator, operator.batches if batches is None else batches)
    reached: list[tuple[float, float]] = []
    with weights.restored():
        dense, _ = dense_loss(operator.model, operator.loss_fn, weights.batches)
        slope = weights.slope()
        tilt = slope if control == "stationary" else torch.zeros_like(slope)
        refit = _Refit(weights, tilt, dense, accuracy)

        def solve(pruned: Tensor, keep: Tensor, radius: float, goal: float) -> tuple[float, float]:
            if rounds == 0:
                return refit.once(pruned, keep, radius)
            return refit.renewed(pruned, keep, radius, rounds, goal)

        def rise(sparsity: float) -> float:
            weights.move(None)  # masks may look at the network, and must see the trained weights
            pruned, masks = path.displacement(sparsity).double(), path.masks(sparsity)
            keep = flatten([masks[name] for name in operator.names]).to(pruned)
            radius, gain = float(pruned.norm()), 0.0
            if control == "step":
                gain = solve(torch.zeros_like(pruned), torch.ones_like(keep), radius, -math.inf)[0]
            found, real = solve(pruned, keep, radius, epsilon + gain)
            reached.append((sparsity, real))
            return found - gain

        limit = search_limit("refit", rise, path, epsilon, tolerance, operator.examples)
    limit.curve["reached"] = [value for _, value in sorted(reached)]
    limit.cost = {
        "products": operator.products - before,
        "evaluations": weights.evaluations + 1,
        "seconds": time.monotonic() - start,
    }
    return limit
