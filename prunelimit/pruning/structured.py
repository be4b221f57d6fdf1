"""Structured magnitude pruning: whole channels, heads or other groups of weights leave together.

What counts: a unit is a set of prunable weights, and every prunable weight belongs to exactly one. Units leave in the order
of their root mean square, the smallest first, so that large and small units can be compared. A sparsity s removes the fewest
units that hold at least ceil(s D) of the D prunable weights: never less than was asked for, and more by less than one unit.
An output channel is a unit by the weights that lead to it. Its bias, its normalisation and what the next layer reads from it
are neither masked nor counted, as everywhere in this library. A head of attention is a unit by the weights of
:func:`~prunelimit.pruning.heads.head_units`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.models.parameters import output_dimension
from prunelimit.pruning.heads import head_units
from prunelimit.pruning.magnitude import Masks, check_sparsity, prunable_parameters, removed_count

#: Kinds of units that have a name, in the singular; the plural means the same.
UNITS = ("channel", "input", "head")

Units = str | Mapping[str, Tensor]


class UnitOrder:
    """The units of a network in the order in which they leave; its :meth:`masks` is a pruner for ``predict_limit``.

    With heads or numbered units, give ``predict_limit`` ``prunable=order.names`` as well.

    Args:
        model: The network; its weights are read once, here.
        unit: ``"channel"``: the weights that lead to one output of a layer, the rows of a linear layer; ``"input"``: those
            that read one input of a layer; ``"head"``: the heads of attention, see :mod:`~prunelimit.pruning.heads`; or
            parameter name to integers that broadcast to the parameter's shape, where weights with equal numbers, of
            whatever parameters, form a unit. ``h`` heads of size ``d``, for example, are
            ``torch.arange(h).repeat_interleave(d)[:, None]`` for the rows of the query, key and value weights, and the same with
            ``[None, :]`` for the columns of the output weights.
        prunable: Names of the prunable parameters; by default those of ``unit``, for heads all weights of attention, else the
            weights of linear and convolution layers.

    Attributes:
        names: The prunable parameters, in the model's order.
        total: Number of prunable weights, D.
        sizes: ``(units,)`` weights of each unit, in the order in which they leave.

    Raises:
        PruneLimitError: If the units are unknown or do not fit the parameters.

    Example:
        >>> layer = torch.nn.Linear(4, 3, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 1.0)
        >>> with torch.no_grad():
        ...     layer.weight[1] /= 2
        >>> UnitOrder(layer).masks(0.2)["weight"].sum(1)
        tensor([4., 0., 4.])
    """

    def __init__(self, model: nn.Module, unit: Units = "channel", prunable: Sequence[str] | None = None) -> None:
        unit = named_units(model, unit, prunable)
        if isinstance(unit, Mapping):
            parameters = prunable_parameters(model, list(unit) if prunable is None else prunable)
            self._units = _numbered(unit, parameters)
        else:
            parameters = prunable_parameters(model, prunable)
            self._units = _layer_units(model, parameters, inputs=unit == "input")
        self.names = list(parameters)
        self._like = {name: p.detach() for name, p in parameters.items()}
        flat = torch.cat([units.reshape(-1) for units in self._units.values()])
        weights = torch.cat([p.detach().reshape(-1).double().to(flat.device) for p in parameters.values()])
        sizes = torch.bincount(flat)
        squares = torch.zeros(len(sizes), dtype=torch.float64, device=flat.device).index_add_(0, flat, weights**2)
        mean = squares / sizes
        # Stable, so that equal units leave in the order of the model.
        self._order = torch.argsort(mean, stable=True)
        self.total, self.sizes = weights.numel(), sizes[self._order]
        self._reached = self.sizes.cumsum(0)

    def masks(self, sparsity: float) -> Masks:
        """Return the masks that remove the fewest units with at least ``ceil(s D)`` weights.

        Args:
            sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.

        Returns:
            Parameter name to a tensor of its shape and type, 1 where a weight is kept and 0 where it is removed.
        """
        wanted = removed_count(check_sparsity(sparsity), self.total)
        count = int((self._reached < wanted).sum()) + 1 if wanted else 0
        keep = torch.ones(len(self._order), dtype=torch.bool, device=self._order.device)
        keep[self._order[:count]] = False
        return {name: keep[units].to(self._like[name]) for name, units in self._units.items()}


def named_units(model: nn.Module, unit: Units, prunable: Sequence[str] | None = None) -> Units:
    """Look units up by their name; those of which not every prunable weight is a part are numbered.

    Args:
        model: Any torch module.
        unit: As for :class:`UnitOrder`.
        prunable: Names of the prunable parameters, which are numbered; by default those of the units.

    Returns:
        ``"channel"``, ``"input"``, or parameter name to integers.

    Raises:
        PruneLimitError: If the name is unknown, or the network has no such units.
    """
    if isinstance(unit, Mapping):
        return unit
    name = unit.removesuffix("s")
    if name not in UNITS:
        raise unknown_name("unit", unit, UNITS)
    return head_units(model, prunable) if name == "head" else name


def _layer_units(model: nn.Module, parameters: dict[str, nn.Parameter], *, inputs: bool) -> dict[str, Tensor]:
    """Number the outputs, or the inputs, of every layer."""
    found, first = {}, 0
    for name, p in parameters.items():
        if p.ndim < 2:
            raise PruneLimitError(f"prunable={name!r} is no matrix: number its units yourself, unit={{{name!r}: ...}}.")
        axis = output_dimension(model, name)
        axis = 1 - axis if inputs else axis
        # The second dimension of a convolution in groups counts within the group, which the first one tells.
        groups = int(getattr(model.get_submodule(name.rpartition(".")[0]), "groups", 1)) if axis == 1 else 1
        own = torch.arange(first, first + groups * p.shape[axis], device=p.device).reshape(groups, -1)
        rows = own.repeat_interleave(p.shape[0] // groups, 0) if axis == 1 else own.T
        found[name] = rows.reshape(*rows.shape, *[1] * (p.ndim - 2)).expand(p.shape)
        first += own.numel()
    return found


def _numbered(unit: Mapping[str, Tensor], parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Check given numbers, and renumber them without gaps."""
    if set(unit) != set(parameters):
        odd = sorted(set(unit) ^ set(parameters))[0]
        raise PruneLimitError(f"unit and prunable differ in {odd!r}: number the weights of every prunable parameter.")
    spread = {}
    for name, p in parameters.items():
        numbers = torch.as_tensor(unit[name])
        if numbers.is_floating_point() or numbers.is_complex():
            raise PruneLimitError(f"unit[{name!r}] has type {numbers.dtype}: give integers.")
        try:
            spread[name] = numbers.expand(p.shape)
        except RuntimeError as error:
            raise PruneLimitError(
                f"unit[{name!r}] has shape {tuple(numbers.shape)}: give numbers that broadcast to {tuple(p.shape)}."
            ) from error
    device = next(iter(parameters.values())).device
    flat = torch.cat([numbers.reshape(-1).to(device, torch.int64) for numbers in spread.values()])
    _, dense = flat.unique(return_inverse=True)
    parts = dense.split([p.numel() for p in parameters.values()])
    return {name: part.reshape(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
