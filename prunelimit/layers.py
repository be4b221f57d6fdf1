"""Which layers hold a network back: a limit for each of them alone, and each one's part in the rise of a common cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from prunelimit.adapters import Adapted, adapt
from prunelimit.curvature.data import LossFunction
from prunelimit.errors import PruneLimitError
from prunelimit.limit import default_epsilon
from prunelimit.predict import CURVATURES, Settings, predict_adapted
from prunelimit.pruning.magnitude import MagnitudePath, prunable_parameters
from prunelimit.threads import suited_threads

Groups = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class LayerLimits:
    """A limit for each layer, given the others.

    Attributes:
        table: One row per layer, in the model's order: ``layer``, ``weights`` (their number), ``share`` (of all prunable
            weights), ``sparsity`` (the layer's limit, as a fraction of its own weights), ``low`` and ``high`` (its interval).
            With a common cut also ``removed`` (fraction of the layer that it removes) and ``rise`` (the layer's part
            in the second-order rise of the loss, in nats; the parts add up to all of it).
        epsilon: Tolerated rise of the training loss that every layer has for itself alone.
        method: Method of the limits, as in :func:`~prunelimit.predict_limit`.
        common: Sparsity of the common cut; ``None`` without one.
        cost: ``products``, ``evaluations`` and ``seconds``, of all layers together.
    """

    table: pd.DataFrame
    epsilon: float
    method: str
    common: float | None
    cost: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rest = {"epsilon": self.epsilon, "method": self.method, "common": self.common, "cost": self.cost}
        return rest | {"layers": self.table.to_dict("records")}

    def __repr__(self) -> str:
        """Show a line per layer."""
        lines = [f"Limits by {self.method} for each layer alone, epsilon {self.epsilon:.4g} nats"]
        width = max(len(name) for name in self.table.layer)
        for row in self.table.itertuples():
            line = f"  {row.layer:<{width}}  {row.sparsity:6.1%} of {row.weights:>11,} weights ({row.share:.1%} of all)"
            if self.common is not None:
                line += f"; a cut of {self.common:.1%} takes {row.removed:6.1%} of it, rise {row.rise:+.3g}"
            lines.append(line)
        return "\n".join(lines)


def layer_limits(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Any,
    *,
    groups: Groups | None = None,
    epsilon: float | None = None,
    prunable: Sequence[str] | None = None,
    curvature: str = "hessian",
    method: str = "directional",
    common: float | None = None,
    steps: int = 64,
    seed: int = 0,
    tolerance: float = 0.001,
) -> LayerLimits:
    """Predict how far each layer can be pruned if only it is pruned and all others stay as they are.

    Every layer has the whole of epsilon for itself, so the limits do not add up to that of the network: they say where
    there is room. To see which layers use up the room of a common magnitude cut, give ``common``.

    Args:
        model: As for :func:`~prunelimit.predict_limit`.
        loss_fn: As there.
        data: As there.
        groups: Name to parameters that count as one layer; by default each prunable parameter by itself.
        epsilon: Tolerated rise of the mean loss; by default its standard deviation over batches of 128.
        prunable: Names of the prunable parameters; by default those of the groups, or the weights of linear and
            convolution layers.
        curvature: ``"hessian"`` or ``"ggn"``.
        method: Any of :func:`~prunelimit.predict_limit`. ``"directional"`` takes one gradient and about ten curvature
            products per layer; ``"measured"`` takes no derivative at all.
        common: Sparsity of a global magnitude cut, whose rise is split over the layers at the price of one product.
        steps: Curvature products, for formula, cone and cut.
        seed: Seed of the probe.
        tolerance: Width of the bracket in sparsity at which bisection stops.

    Returns:
        The limits, in the model's order of the layers.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> data = torch.randn(32, 4), torch.randn(32, 1)
        >>> limits = layer_limits(model, torch.nn.functional.mse_loss, data, epsilon=0.1)
        >>> list(limits.table.layer)
        ['0.weight', '2.weight']
    """
    settings = Settings(prunable, curvature, method, steps, 1, seed, tolerance=tolerance, progress=False)
    return layers_adapted(adapt(model, loss_fn, data), epsilon, settings, groups, common)


def layers_adapted(
    adapted: Adapted, epsilon: float | None, settings: Settings, groups: Groups | None, common: float | None
) -> LayerLimits:
    """Predict a limit for each layer of a network whose model, loss and batches fit together already.

    Args:
        adapted: What :func:`~prunelimit.adapters.adapt` gives.
        epsilon: Tolerated rise of the mean loss.
        settings: The other arguments of :func:`~prunelimit.predict_limit`.
        groups: As for :func:`layer_limits`.
        common: As for :func:`layer_limits`.

    Returns:
        The limits.
    """
    groups = _checked(adapted.model, groups, settings.prunable)
    if epsilon is None:
        epsilon = default_epsilon(adapted.model, adapted.loss_fn, adapted.batches)
    named = dict(adapted.model.named_parameters())
    total = sum(named[name].numel() for names in groups.values() for name in names)
    rows, cost = [], {"products": 0.0, "evaluations": 0.0, "seconds": 0.0}
    for layer, names in groups.items():
        limit = predict_adapted(adapted, epsilon, dataclasses.replace(settings, prunable=list(names)))
        low, high = limit.interval
        row = {"layer": layer, "weights": limit.total, "share": limit.total / total}
        rows.append(row | {"sparsity": limit.sparsity, "low": low, "high": high})
        for name, value in limit.cost.items():
            cost[name] += value
    table = pd.DataFrame(rows)
    if common is not None:
        removed, rise = _common_cut(adapted, groups, common, settings.curvature)
        table = table.assign(removed=removed, rise=rise)
        cost["products"] += 1
    return LayerLimits(table, epsilon, settings.method, common, cost)


def _checked(model: nn.Module, groups: Groups | None, prunable: Sequence[str] | None) -> Groups:
    """Make every parameter a group if there are none; refuse a parameter in two of them."""
    if groups is None:
        return {name: [name] for name in prunable_parameters(model, prunable)}
    names = [name for group in groups.values() for name in group]
    if not groups or not all(groups.values()) or len(set(names)) < len(names):
        raise PruneLimitError("groups must have one parameter each at least, and no parameter twice.")
    prunable_parameters(model, names)
    return groups


def _common_cut(adapted: Adapted, groups: Groups, sparsity: float, curvature: str) -> tuple[list[float], list[float]]:
    """Split the rise g'd + d'Hd / 2 of a global cut over the layers: what each coordinate of d is multiplied by."""
    with suited_threads(adapted.model):
        path = MagnitudePath(adapted.model, [name for names in groups.values() for name in names])
        operator = CURVATURES[curvature](adapted.model, adapted.loss_fn, adapted.batches, prunable=path.names)
        step, masks = path.displacement(sparsity), path.masks(sparsity)
        curved = operator @ step
        parts = path.split(step.double() * (operator.gradient.double() + curved.double() / 2))
    removed = [float(torch.cat([1 - masks[name].reshape(-1) for name in names]).mean()) for names in groups.values()]
    return removed, [sum(float(parts[name].sum()) for name in names) for names in groups.values()]
