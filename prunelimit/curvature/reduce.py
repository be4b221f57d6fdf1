"""An MLP on its data, made smaller without changing its loss: what is known about the null space before any product.

Two things are exact. A weight of the first layer acts through inner products with the inputs only, so with N examples of p
entries, N < p, everything outside the N-dimensional row space of the inputs lies in the null space of the Hessian: p - N
directions for each unit. And a ReLU unit that is zero on every example has no say in the loss, with all its weights. The
smaller network on rotated inputs has the same outputs, and its Hessian has the remaining eigenvalues: its products cost less
and its probes are not spent on zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.curvature.mlp import linear_chain
from prunelimit.curvature.operator import Batches, CurvatureOperator, LossFunction, as_batches
from prunelimit.pruning.magnitude import prunable_parameters


@dataclasses.dataclass(frozen=True)
class Reduced:
    """A smaller network with the same loss.

    Attributes:
        model: The network, on flat inputs; its own copy of the weights.
        batches: The data in its coordinates.
        prunable: Names of its prunable parameters.
        nullity: Eigenvalues that are zero and were left behind.
        inputs: Input dimensions before and after.
        dead: Hidden units that were removed, per layer.
        maps: Per prunable parameter, its shape before, the rows that are left and what its columns are multiplied by or
            which of them are left; ``None`` for all.
    """

    model: nn.Sequential
    batches: Batches
    prunable: list[str]
    nullity: int
    inputs: tuple[int, int]
    dead: tuple[int, ...]
    maps: list[tuple[torch.Size, Tensor | None, Tensor | None]]

    def restrict(self, vectors: Tensor) -> Tensor:
        """Bring vectors of the whole network into the coordinates of the smaller one.

        Args:
            vectors: ``(..., D)``.

        Returns:
            ``(..., D - nullity)``; what is lost lies in the null space.
        """
        parts = []
        for part, (shape, rows, columns) in zip(
            vectors.split([shape.numel() for shape, _, _ in self.maps], -1), self.maps, strict=True
        ):
            block = part.reshape(*vectors.shape[:-1], *shape)
            if columns is not None:
                block = block[..., columns] if columns.dtype == torch.bool else block @ columns.to(block)
            if rows is not None:
                block = block[..., rows, :] if len(shape) == 2 else block[..., rows]
            parts.append(block.flatten(vectors.ndim - 1))
        return torch.cat(parts, -1)


@torch.no_grad()
def reduce_mlp(model: nn.Module, data: Any, prunable: Sequence[str] | None = None) -> Reduced | None:
    """Remove the input directions that the data do not span, and the units that are never active.

    Args:
        model: Any torch module; not changed.
        data: Iterable of ``(inputs, targets)`` batches, or a pair of tensors.
        prunable: Names of the prunable parameters; by default linear and convolution weights.

    Returns:
        The smaller network, or ``None`` if the module is no plain MLP or nothing can be removed.
    """
    chain = linear_chain(model)
    if chain is None:
        return None
    batches = as_batches(data)
    wanted = {id(p) for p in prunable_parameters(model, prunable).values()}
    if not all(isinstance(inputs, Tensor) and inputs.layout == torch.strided for inputs, _ in batches):
        return None
    first = chain[0][0]
    rows = [inputs.reshape(len(inputs), -1) for inputs, _ in batches]
    if any(part.shape[1] != first.in_features for part in rows):  # sequences of vectors: leave them alone
        return None
    flat = torch.cat(rows).to(first.weight)
    alive = _active_units(chain, flat)
    weights: list[Tensor] = [linear.weight.detach() for linear, _ in chain]
    rotation = None
    if len(flat) < first.in_features:
        # In float64: the coordinates must reproduce every inner product to the last digit of float32.
        rotation, triangle = torch.linalg.qr(flat.T.double())
        flat, weights[0] = triangle.T.to(flat), (weights[0].double() @ rotation).to(flat)
    if flat.shape[1] == first.in_features and all(bool(keep.all()) for keep in alive):
        return None
    modules: list[nn.Module] = []
    names: list[str] = []
    maps: list[tuple[torch.Size, Tensor | None, Tensor | None]] = []
    before = None
    for (linear, activation), whole, keep in zip(chain, weights, [*alive, None], strict=True):
        weight = whole if before is None else whole[:, before]
        bias: Tensor | None = linear.bias
        if keep is not None:
            weight, bias = weight[keep], None if bias is None else bias[keep]
        small = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        small.weight = nn.Parameter(weight.clone())
        if bias is not None:
            small.bias = nn.Parameter(bias.detach().clone())
        for name, parameter in linear.named_parameters():
            if id(parameter) in wanted:
                names.append(f"{len(modules)}.{name}")
                columns = rotation if before is None else before
                maps.append((parameter.shape, keep, columns if parameter.ndim == 2 else None))
        modules += [small] if activation is None else [small, activation]
        before = keep
    smaller = nn.Sequential(*modules).train(model.training)
    parameters = dict(smaller.named_parameters())
    total = sum(p.numel() for p in model.parameters() if id(p) in wanted)
    return Reduced(
        model=smaller,
        batches=list(zip(flat.split([len(part) for part in rows]), [targets for _, targets in batches], strict=True)),
        prunable=names,
        nullity=total - sum(parameters[name].numel() for name in names),
        inputs=(first.in_features, flat.shape[1]),
        dead=tuple(int((~keep).sum()) for keep in alive),
        maps=maps,
    )


def reduced_operator(
    kind: type[CurvatureOperator],
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    prunable: Sequence[str] | None = None,
    **options: Any,
) -> tuple[CurvatureOperator, Reduced | None]:
    """Make the curvature of a network, by way of a smaller one if one has the same loss.

    Args:
        kind: :class:`HessianOperator` or :class:`GGNOperator`.
        model: Any torch module; not changed.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss.
        data: Iterable of ``(inputs, targets)`` batches, or a pair of tensors.
        prunable: Names of the prunable parameters; by default linear and convolution weights.
        **options: Further arguments of the operator.

    Returns:
        The operator, and what was reduced; give its nullity to :func:`~prunelimit.curvature.spectrum`.
    """
    reduced = reduce_mlp(model, data, prunable)
    if reduced is None:
        return kind(model, loss_fn, data, prunable=prunable, **options), None
    return kind(reduced.model, loss_fn, reduced.batches, prunable=reduced.prunable, **options), reduced


def _active_units(chain: list[tuple[nn.Linear, nn.Module | None]], flat: Tensor) -> list[Tensor]:
    """Find, for each hidden layer, which units are positive on at least one example; all, unless it is ReLU."""
    found = []
    for linear, activation in chain[:-1]:
        flat = nn.functional.linear(flat, linear.weight, linear.bias)
        if activation is not None:
            flat = activation(flat)
        ones = torch.ones(flat.shape[1], dtype=torch.bool, device=flat.device)
        keep = (flat > 0).any(0) if type(activation) is nn.ReLU else ones
        found.append(keep if bool(keep.any()) else ones)
    return found
