"""Which layers hold a network back: a limit for each alone, its part in the rise of a common cut; and what has no part at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from prunelimit.adapters import Adapted, adapt
from prunelimit.curvature.data import LossFunction
from prunelimit.curvature.operator import DisconnectedError
from prunelimit.errors import PruneLimitError
from prunelimit.limit import FlatError, default_epsilon
from prunelimit.path_limits import own_shard
from prunelimit.predict import Settings, curvature_operator, predict_adapted
from prunelimit.processes import add_up, is_sharded
from prunelimit.pruning.magnitude import MagnitudePath, Masks, prunable_parameters
from prunelimit.pruning.paths import MaskPath, PruningPath
from prunelimit.pruning.structured import UnitOrder, Units, named_units
from prunelimit.threads import suited_threads

Groups = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class LayerLimits:
    """A limit for each layer, given the others.

    Attributes:
        table: One row per layer, in the model's order: ``layer``, ``weights`` (their number), ``share`` (of all prunable
            weights), ``sparsity`` (the layer's limit, as a fraction of its own weights), ``low`` and ``high`` (its interval).
            With a common cut also ``removed`` (fraction of the layer that it removes) and ``rise`` (the layer's part
            in the second-order rise of the loss, in its units; the parts add up to all of it).
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
        lines = [f"Limits by {self.method} for each layer alone, epsilon {self.epsilon:.4g}"]
        width = max(len(name) for name in self.table.layer)
        for row in self.table.itertuples():
            line = f"  {row.layer:<{width}}  {row.sparsity:6.1%} of {row.weights:>11,} weights ({row.share:.1%} of all)"
            if self.common is not None:
                line += f"; a cut of {self.common:.1%} takes {row.removed:6.1%} of it, rise {row.rise:+.3g}"
            lines.append(line)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return self.table.style.hide(axis="index").format(_LOOK, na_rep="—").to_html()


#: How numbers of the tables are written.
_LOOK: dict[Any, Any] = dict.fromkeys(("share", "sparsity", "low", "high", "removed"), "{:.1%}")
_LOOK |= {"weights": "{:,}", "rise": "{:+.3g}"}


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
    units: Units | None = None,
    steps: int = 64,
    seed: int = 0,
    low_memory: bool = False,
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
        units: What leaves together, as for :class:`~prunelimit.pruning.UnitOrder`; by default single weights.
        steps: Curvature products, for formula, cone and cut.
        seed: Seed of the probe.
        low_memory: As for :func:`~prunelimit.predict_limit`.
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
    settings = Settings(
        prunable, curvature, method, steps, 1, seed, low_memory=low_memory, tolerance=tolerance, progress=False
    )
    adapted = adapt(model, loss_fn, data)
    units, prunable = units_and_names(adapted.model, units, prunable, groups)
    settings = dataclasses.replace(settings, prunable=prunable)
    return layers_adapted(adapted, epsilon, settings, groups, common, units)


def layers_adapted(
    adapted: Adapted,
    epsilon: float | None,
    settings: Settings,
    groups: Groups | None,
    common: float | None,
    units: Units | None = None,
) -> LayerLimits:
    """Predict a limit for each layer of a network whose model, loss and batches fit together already.

    Args:
        adapted: What :func:`~prunelimit.adapters.adapt` gives.
        epsilon: Tolerated rise of the mean loss.
        settings: The other arguments of :func:`~prunelimit.predict_limit`.
        groups: As for :func:`layer_limits`.
        common: As for :func:`layer_limits`.
        units: As for :func:`layer_limits`.

    Returns:
        The limits.
    """
    groups = _checked(adapted.model, groups, settings.prunable)
    if epsilon is None:
        epsilon = default_epsilon(adapted.model, adapted.loss_fn, adapted.batches)
    named = dict(adapted.model.named_parameters())
    total = sum(named[name].numel() for names in groups.values() for name in names)
    rows, cost = [], {"products": 0.0, "evaluations": 0.0, "seconds": 0.0}
    apart = 0
    for layer, names in groups.items():
        own = dataclasses.replace(settings, prunable=list(names), masks=unit_masks(adapted.model, units, names))
        try:
            limit = predict_adapted(adapted, epsilon, own)
        except DisconnectedError:
            apart += 1
            if apart == len(groups):  # not layers that the network does not use, but a pass without gradients
                raise
            limit = predict_adapted(adapted, epsilon, dataclasses.replace(own, method="measured"))
        except FlatError:
            limit = predict_adapted(adapted, epsilon, dataclasses.replace(own, method="measured"))
        low, high = limit.interval
        row = {"layer": layer, "weights": limit.total, "share": limit.total / total}
        rows.append(row | {"sparsity": limit.sparsity, "low": low, "high": high})
        for name, value in limit.cost.items():
            cost[name] += value
    table = pd.DataFrame(rows)
    if common is not None:
        removed, rise = _common_cut(adapted, groups, common, settings.curvature, units)
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


def units_and_names(
    model: nn.Module, units: Units | None, prunable: Sequence[str] | None, groups: Groups | None = None
) -> tuple[Units | None, Sequence[str] | None]:
    """Look units up by their name, and name the parameters that groups or numbered units choose.

    Args:
        model: The network.
        units: As for :class:`~prunelimit.pruning.UnitOrder`; ``None`` for single weights.
        prunable: Names of the prunable parameters, if they are given.
        groups: As for :func:`layer_limits`.

    Returns:
        The units, and the names; ``None`` where nothing chooses.

    Raises:
        PruneLimitError: If the network has no such units, or its parameters are sharded.
    """
    if prunable is None and groups is not None:
        prunable = [name for group in groups.values() for name in group]
    if units is None:
        return None, prunable
    if is_sharded(model):
        raise PruneLimitError("units= with sharded parameters: leave units out, or call it in one process.")
    units = named_units(model, units, prunable)
    return units, list(units) if prunable is None and isinstance(units, Mapping) else prunable


def unit_masks(model: nn.Module, units: Units | None, names: Sequence[str]) -> Callable[[float], Masks] | None:
    """Return the pruner that removes whole units of some parameters.

    Args:
        model: The network.
        units: As for :class:`~prunelimit.pruning.UnitOrder`; numbers of other parameters are left out.
        names: The parameters.

    Returns:
        Maps a sparsity to masks; ``None`` for single weights.
    """
    if isinstance(units, Mapping):
        units = {name: units[name] for name in names if name in units}
    return None if units is None else UnitOrder(model, units, list(names)).masks


def unit_path(model: nn.Module, units: Units | None, names: Sequence[str] | None) -> PruningPath:
    """Return the sparse points of one global cut, by single weights or whole units.

    Args:
        model: The network.
        units: As for :func:`unit_masks`.
        names: The prunable parameters; by default the weights of linear and convolution layers.

    Returns:
        The path.
    """
    parameters = prunable_parameters(model, names)
    masks = unit_masks(model, units, list(parameters))
    if is_sharded(model):
        from prunelimit.curvature.sharded import ShardedMagnitudePath  # which takes seconds to import

        return ShardedMagnitudePath(model, names)  # type: ignore[return-value]  # of the same form
    if masks is None:
        return MagnitudePath(model, names)
    return MaskPath(list(parameters), list(parameters.values()), masks)


def _common_cut(
    adapted: Adapted, groups: Groups, sparsity: float, curvature: str, units: Units | None
) -> tuple[list[float], list[float]]:
    """Split the rise g'd + d'Hd / 2 of a global cut over the layers: what each coordinate of d is multiplied by."""
    with suited_threads(adapted.model):
        parameters = prunable_parameters(adapted.model, [name for names in groups.values() for name in names])
        path = unit_path(adapted.model, units, list(parameters))
        operator = curvature_operator(adapted, curvature, list(parameters))
        step, masks = path.displacement(sparsity), path.masks(sparsity)
        curved = operator @ step
        flat = step.double() * (operator.gradient.double() + curved.double() / 2)
        parts = flat.split([own_shard(p).numel() for p in parameters.values()])
        gone = [(own_shard(masks[name]) == 0).sum() for name in parameters]
        sums = torch.stack([torch.stack(gone).to(flat), torch.stack([part.sum() for part in parts])])
        if is_sharded(adapted.model):
            add_up(sums)
    removed, rise = (dict(zip(parameters, row, strict=True)) for row in sums.tolist())
    sizes = [sum(parameters[name].numel() for name in names) for names in groups.values()]
    counts = (sum(removed[name] for name in names) for names in groups.values())
    shares = [count / size for count, size in zip(counts, sizes, strict=True)]
    return shares, [sum(rise[name] for name in names) for names in groups.values()]


#: Reasons of :func:`left_out`, and the words for them.
REASONS = {
    "kind": "in no linear or convolution layer",
    "unnamed": "not in prunable",
    "frozen": "frozen",
    "vector": "biases and normalisation",
}


def left_out(model: nn.Module, prunable: Sequence[str] | None = None) -> pd.DataFrame:
    """List the parameters that do not count as prunable, and why.

    Args:
        model: Any torch module.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.

    Returns:
        One row per parameter, in the model's order: ``parameter``, ``weights`` (their number), ``module`` (the class that it
        belongs to) and ``why``, one of the values of ``REASONS``.
    """
    chosen = prunable_parameters(model, prunable)
    rows = []
    for name, p in model.named_parameters():
        if name in chosen:
            continue
        why = "frozen" if not p.requires_grad else "vector" if p.ndim < 2 else "kind" if prunable is None else "unnamed"
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        rows.append((name, p.numel(), owner, REASONS[why]))
    return pd.DataFrame(rows, columns=["parameter", "weights", "module", "why"])


def left_out_line(table: pd.DataFrame, total: int, most: int = 3) -> str:
    """Say in one line what does not count as prunable, why, and how to include it.

    Args:
        table: What :func:`left_out` gives.
        total: Number of weights that do count.
        most: How many parameters are named for each reason.

    Returns:
        The line; empty if there is nothing to say.
    """
    if table.empty:
        return ""
    parts = []
    for why in REASONS.values():
        found = table[table.why == why].sort_values("weights", ascending=False, kind="stable")
        named = [f"{row.parameter} ({row.module}, {row.weights:,})" for row in found[:most].itertuples()]
        if len(found) and why == REASONS["vector"]:
            parts.append(f"{why}: {found.weights.sum():,}")
        elif len(found):
            more = [f"{len(found) - most} more"] * (len(found) > most)
            parts.append(f"{why}: {', '.join(named + more)}")
    count = int(table.weights.sum())
    fix = "To include one, name it in prunable= beside the others (on the command line: `--prunable default,NAME`)."
    needs = bool((table.why == REASONS["kind"]).any())  # who named the others knows how
    line = f"Not counted as prunable: {count:,} of {count + total:,} parameters; {'; '.join(parts)}."
    return f"{line} {fix}" if needs else line


def left_out_values(table: pd.DataFrame) -> dict[str, Any]:
    """Return what does not count as prunable as plain JSON values.

    Args:
        table: What :func:`left_out` gives.

    Returns:
        Reason to ``weights`` (their number) and ``parameters`` (names).
    """
    return {
        str(why): {"weights": int(part.weights.sum()), "parameters": part.parameter.tolist()}
        for why, part in table.groupby("why")
    }
