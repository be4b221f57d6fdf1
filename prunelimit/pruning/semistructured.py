"""n:m semi-structured masks: of every m consecutive input weights of an output at most n are kept, as in 2:4.

Consecutive are the weights of m input channels in a row; in a convolution, at the same place of the kernel. The last group of a
row may be shorter; at most n of it are kept as well, and a group of at most n weights is n:m already. With no mask in between,
groups turn n:m one after the other, so that there is a path from the dense network, and a limit on it: the share of groups that
may be n:m. If all weights are in whole groups, a share f of them means the sparsity (1 - n/m) f. A path has to go on to
sparsity one: once all groups are n:m, the weights that are left leave one by one.

Kernels for 2:4 matrices exist on recent GPUs only: ``torch.sparse.to_sparse_semi_structured`` takes no tensor on a CPU. A group
that is still dense keeps its whole layer from them; with ``compare="layer"`` all layers are done at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.models.parameters import output_dimension
from prunelimit.pruning.controls import split_masks
from prunelimit.pruning.layerwise import relative_ranks
from prunelimit.pruning.magnitude import Masks, check_sparsity, prunable_parameters, removed_count

#: Which groups the cost of a group is compared with.
COMPARE = ("global", "layer")


class SemiStructuredOrder:
    """Groups of m weights in the order in which they turn n:m; :meth:`masks` is a pruner for ``predict_limit``.

    In each group the n largest scores stay. The group that costs least turns first; its cost is the mean of the squares of the
    scores that it loses.

    Args:
        model: The network; its weights are read once, here.
        n: Most weights that a group keeps.
        m: Weights in a group.
        scores: Parameter name to non-negative scores of its shape, for example ``WandaOrder(...).scores``; by default the
            magnitudes.
        compare: ``"global"``: costs of all groups are compared; ``"layer"``: those of each layer, which all lose the same fraction.
        prunable: Names of the prunable parameters; by default those of ``scores``, or the weights of linear and
            convolution layers.

    Attributes:
        total: Number of prunable weights, D.
        groups: Number of groups of more than n weights.
        complete: Sparsity at which all groups are n:m: ``1 - n / m`` if m divides the inputs of every layer.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.

    Example:
        >>> layer = torch.nn.Linear(8, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[5.0, 6, 7, 8, 1, 4, 3, 2]]))
        >>> SemiStructuredOrder(layer).masks(0.25)["weight"]
        tensor([[1., 1., 1., 1., 0., 1., 1., 0.]])
    """

    def __init__(
        self,
        model: nn.Module,
        n: int = 2,
        m: int = 4,
        *,
        scores: Mapping[str, Tensor] | None = None,
        compare: str = "global",
        prunable: Sequence[str] | None = None,
    ) -> None:
        _check_pattern(n, m)
        if compare not in COMPARE:
            raise unknown_name("compare", compare, COMPARE)
        if prunable is None and scores is not None:
            prunable = list(scores)
        parameters = prunable_parameters(model, prunable)
        self._like = {name: p.detach() for name, p in parameters.items()}
        scores = self._like if scores is None else _checked(scores, parameters)
        layers = []
        for name, p in parameters.items():
            if p.ndim < 2:
                raise PruneLimitError(f"prunable={name!r} is no matrix: leave it out.")
            layers.append(_Layer(scores[name].detach().abs().double(), 1 - output_dimension(model, name), n, m))
        costs = [layer.cost for layer in layers]
        if compare == "layer":
            costs = [relative_ranks(cost.reshape(1, -1)).reshape(-1) if len(cost) else cost for cost in costs]
        self.total, self.groups = sum(p.numel() for p in parameters.values()), sum(map(len, costs))
        if not self.groups:
            raise PruneLimitError(
                f"n={n} and m={m}: no layer reads more than {n} inputs, so that no group can lose any."
            )
        order = torch.argsort(torch.cat(costs), stable=True)
        turn = torch.empty_like(order)
        turn[order] = torch.arange(self.groups, device=order.device)
        parts = turn.split([len(cost) for cost in costs])
        sizes = torch.cat([layer.size for layer in layers])[order]
        self._turn = torch.cat([layer.spread(part) for layer, part in zip(layers, parts, strict=True)])
        # What a group keeps leaves after all groups, by its score.
        rest = (self._turn < 0).nonzero().squeeze(1)
        left = torch.cat([layer.scores.reshape(-1) for layer in layers])[rest]
        self._turn[rest[torch.argsort(left, stable=True)]] = self.groups + torch.arange(len(rest), device=rest.device)
        self._reached = torch.cat([sizes, torch.ones_like(rest)]).cumsum(0)
        self.complete = float(sizes.sum()) / self.total

    def _turned(self, sparsity: float) -> int:
        wanted = removed_count(check_sparsity(sparsity), self.total)
        return int((self._reached < wanted).sum()) + 1 if wanted else 0

    def masks(self, sparsity: float) -> Masks:
        """Return the masks that turn the fewest groups for which at least ``ceil(s D)`` weights leave.

        Args:
            sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``; above :attr:`complete` single weights leave.

        Returns:
            Parameter name to a tensor of its shape and type, 1 where a weight is kept and 0 where it is removed.
        """
        return split_masks(self._like, self._turn >= self._turned(sparsity))

    def share(self, sparsity: float) -> float:
        """Return the fraction of the groups that the masks of a sparsity turn n:m."""
        return min(1.0, self._turned(sparsity) / self.groups)


def is_semistructured(mask: Tensor, n: int = 2, m: int = 4, *, axis: int = 1) -> bool:
    """Tell whether of every m consecutive entries at most n are non-zero.

    Args:
        mask: A mask or a weight.
        n: Most entries that may be non-zero.
        m: Entries in a group; the last one of a row may be shorter.
        axis: Dimension along which entries are consecutive: the inputs, which is 1 for linear and convolution layers.

    Returns:
        Whether it is n:m.

    Raises:
        PruneLimitError: If n and m are no pattern, or the mask has no such dimension.

    Example:
        >>> is_semistructured(torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]]))
        True
    """
    _check_pattern(n, m)
    if not -mask.ndim <= axis < mask.ndim:
        raise PruneLimitError(f"axis={axis!r} is no dimension of a mask of shape {tuple(mask.shape)}.")
    return bool((_grouped((mask != 0).long(), axis, m, 0).sum(-1) <= n).all())


class _Layer:
    """The groups of one weight."""

    def __init__(self, scores: Tensor, axis: int, n: int, m: int) -> None:
        self.scores, self._axis = scores, axis
        grouped = _grouped(scores, axis, m, -1.0)
        # What fills the last group up has the smallest score, and is first among those that leave.
        places = grouped.argsort(dim=-1, stable=True)[..., : m - n]
        leaving = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, places, True)
        self._leaving = leaving & (grouped >= 0)
        size = self._leaving.sum(-1)
        self._real = size > 0
        self.size = size[self._real]
        self.cost = torch.where(self._leaving, grouped.square(), 0.0).sum(-1)[self._real] / self.size

    def spread(self, turn: Tensor) -> Tensor:
        """Give each weight that leaves the turn of its group, and -1 to the others; flat, in the order of the parameter."""
        numbers = torch.full(self._real.shape, -1, dtype=turn.dtype, device=turn.device)
        numbers[self._real] = turn
        spread = torch.where(self._leaving, numbers.unsqueeze(-1), -1).flatten(-2)
        return spread[..., : self.scores.shape[self._axis]].movedim(-1, self._axis).reshape(-1)


def _grouped(values: Tensor, axis: int, m: int, fill: float) -> Tensor:
    """Cut one dimension into groups of m, which become the last dimension."""
    values = values.movedim(axis, -1)
    return functional.pad(values, (0, -values.shape[-1] % m), value=fill).unflatten(-1, (-1, m))


def _check_pattern(n: int, m: int) -> None:
    if not 1 <= n < m:
        raise PruneLimitError(f"n={n!r} and m={m!r}: of m weights at most n are kept, so 1 <= n < m, as in n=2, m=4.")


def _checked(scores: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Refuse scores that do not fit the parameters."""
    for name, p in parameters.items():
        if name not in scores:
            raise PruneLimitError(f"scores has none for {name!r}: give scores for every prunable parameter.")
        if scores[name].shape != p.shape:
            raise PruneLimitError(
                f"scores[{name!r}] has shape {tuple(scores[name].shape)}: give it the parameter's, {tuple(p.shape)}."
            )
        if not bool((scores[name].isfinite() & (scores[name] >= 0)).all()):
            raise PruneLimitError(f"scores[{name!r}] has entries that are negative or not finite: give finite sizes.")
    return scores
