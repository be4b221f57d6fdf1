"""Limits that follow the pruning path of one network, by bisection: second-order expansion and the loss itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from prunelimit.curvature.operator import Batches, CurvatureOperator, LossFunction, mean_loss
from prunelimit.errors import PruneLimitError
from prunelimit.limit import FlatError, PruningLimit, check_epsilon, dense_loss
from prunelimit.pruning.measured import Memo, no_memo
from prunelimit.pruning.paths import PruningPath


def check_tolerance(tolerance: float) -> float:
    """Return the tolerance, or say what is wrong with it.

    Args:
        tolerance: Width of the bracket in sparsity at which bisection stops.

    Returns:
        The same number.

    Raises:
        PruneLimitError: If it does not lie in ``[1e-9, 1)``.
    """
    if not isinstance(tolerance, (int, float)) or not 1e-9 <= tolerance < 1:
        raise PruneLimitError(f"tolerance={tolerance!r} must lie in [1e-9, 1): it is a width in sparsity.")
    return float(tolerance)


def _bisect(
    rise: Callable[[float], float], epsilon: float, tolerance: float
) -> tuple[float, float, list[tuple[float, float]]]:
    """Bracket the sparsity at which a rise reaches epsilon; gives the bracket and every point that was evaluated."""
    low, high, points = 0.0, 1.0, []
    while high - low > tolerance:
        middle = (low + high) / 2
        value = rise(middle)
        points.append((middle, value))
        low, high = (middle, high) if value <= epsilon else (low, middle)
    return low, high, sorted(points)


def search_limit(
    method: str,
    rise: Callable[[float], float],
    path: PruningPath,
    epsilon: float,
    tolerance: float,
    examples: int,
    memo: Memo = no_memo,
) -> PruningLimit:
    """Bisect a rise of the loss for epsilon and report the bracket as the interval.

    The rise need not be monotone along the path. Where it passes epsilon more than once, bisection brackets one of the
    crossings, and not always the first.

    Args:
        method: Name of the method, for the report.
        rise: Maps a sparsity to the rise that is compared with epsilon, in units of the loss.
        path: The sparse points.
        epsilon: Tolerated rise of the loss.
        tolerance: Width of the bracket in sparsity at which bisection stops.
        examples: Number of examples behind the rise, for the report.
        memo: Remembers each rise, so that an interrupted search goes on.

    Returns:
        The limit, with every rise on its curve and the cost left open.

    Raises:
        PruneLimitError: If epsilon is not positive or the tolerance cannot be used.
    """
    check_epsilon(epsilon)
    check_tolerance(tolerance)

    def remembered(sparsity: float) -> float:
        return float(memo(f"{method} {sparsity:.6f}", lambda: rise(sparsity)))

    low, high, points = _bisect(remembered, epsilon, tolerance)
    last = len(path.distance) - 1
    radius = [float(path.distance[math.ceil(s * last)]) for s, _ in points]
    curve = pd.DataFrame({"sparsity": [s for s, _ in points], "radius": radius, "rise": [r for _, r in points]})
    return PruningLimit(
        sparsity=low,
        interval=(low, high),
        epsilon=epsilon,
        lower=None,
        upper=None,
        radius=float(path.distance[math.ceil(low * last)]),
        dimension=None,
        curve=curve,
        cost={},
        method=method,
        total=path.total,
        examples=examples,
    )


def directional_limit(
    operator: CurvatureOperator,
    path: PruningPath,
    epsilon: float,
    *,
    gradient: Tensor | None = None,
    tolerance: float = 0.001,
    memo: Memo = no_memo,
) -> PruningLimit:
    """Solve g'd + d'Hd / 2 = epsilon along the pruning path, d = w(s) - w*.

    The gradient g stays in: training with L1 leaves it non-zero, and it points along the path.

    Args:
        operator: The Hessian.
        path: The sparse points.
        epsilon: Tolerated rise of the loss.
        gradient: ``(D,)`` gradient from more data than the Hessian is made of; by default the operator's own.
        tolerance: Width of the bracket at which bisection stops.
        memo: Remembers each rise, so that an interrupted search goes on.

    Returns:
        The limit; its interval is the bracket, which holds no error from the choice of the data.

    Raises:
        FlatError: If gradient and curvature vanish.
    """
    start, before = time.monotonic(), operator.products
    slope = (operator.gradient if gradient is None else gradient).double()

    def rise(sparsity: float) -> float:
        step = path.displacement(sparsity)
        curved = (operator @ step).double()
        return float(slope @ step.double() + step.double() @ curved / 2)

    limit = search_limit("directional", rise, path, epsilon, tolerance, operator.examples, memo)
    if limit.unbounded and limit.radius > 0 and not limit.curve.rise.any():
        raise FlatError
    limit.cost = {"products": operator.products - before, "seconds": time.monotonic() - start}
    return limit


def own_shard(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, which shares its memory; any other tensor as it is.

    Args:
        tensor: A parameter or a mask.

    Returns:
        The part, without a graph.
    """
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def measured_limit(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Batches,
    path: PruningPath,
    parameters: dict[str, nn.Parameter],
    epsilon: float,
    *,
    tolerance: float = 0.001,
    memo: Memo = no_memo,
) -> PruningLimit:
    """Prune for real, evaluate for real; the weights are put back whatever happens.

    Args:
        model: The network. If processes share its parameters, all of them evaluate all of the data.
        loss_fn: Maps output and targets to the batch's mean loss.
        batches: The data.
        path: The sparse points.
        parameters: The prunable parameters by name, in the order of the path.
        epsilon: Tolerated rise of the loss.
        tolerance: Width of the bracket in sparsity at which bisection stops.
        memo: Remembers each rise, so that an interrupted search goes on.

    Returns:
        The limit of one-shot pruning; its interval is the bracket.

    Raises:
        PruneLimitError: If the dense loss is not finite or epsilon is not positive.
    """
    start = time.monotonic()
    weights = [own_shard(p) for p in parameters.values()]
    kept = [w.clone() for w in weights]
    dense, _ = dense_loss(model, loss_fn, batches)

    def restore() -> None:
        for weight, trained in zip(weights, kept, strict=True):
            weight.copy_(trained)

    def rise(sparsity: float) -> float:
        restore()  # masks may look at the network, and must see the trained weights
        step = path.displacement(sparsity).split([w.numel() for w in weights])
        for weight, trained, part in zip(weights, kept, step, strict=True):
            weight.copy_(trained + part.reshape(trained.shape))
        return mean_loss(model, loss_fn, batches)[0] - dense

    try:
        limit = search_limit("measured", rise, path, epsilon, tolerance, sum(len(t) for _, t in batches), memo)
    finally:
        restore()
    limit.cost = {"products": 0, "evaluations": len(limit.curve) + 1, "seconds": time.monotonic() - start}
    return limit
