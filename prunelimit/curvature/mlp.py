r"""Curvature products of plain MLPs by an analytic rule, without a graph.

For :math:`z_l = W_l a_{l-1} + b_l`, :math:`a_l = \sigma(z_l)` and :math:`\delta_l = \partial L / \partial z_l`, moving the
weights along V gives (Pearlmutter 1994, the R-operator)

.. math::

    \dot z_l = V_l a_{l-1} + W_l \dot a_{l-1}, \qquad
    \dot\delta_l = \sigma'(z_l) \circ (W_{l+1}^T \dot\delta_{l+1} + V_{l+1}^T \delta_{l+1})
                   + \sigma''(z_l) \circ \dot z_l \circ W_{l+1}^T \delta_{l+1}, \qquad
    (HV)_l = \dot\delta_l a_{l-1}^T + \delta_l \dot a_{l-1}^T .

The activations and the :math:`\delta_l` do not depend on V: they are computed once. What is left is six matrix products per
layer where a gradient has three, and two for the first layer, where a gradient has two as well. Without the terms in
:math:`\delta_l` it is the product of the generalised Gauss-Newton matrix.

Inputs in the coordinates of :func:`~prunelimit.curvature.reduce.reduce_mlp` are lower triangular. What lies right of a
staircase is zero, and both products of the first layer leave it out: that is up to half of their work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.curvature.data import scalar_loss
from prunelimit.curvature.matmul import add_matmul, matmul
from prunelimit.errors import PruneLimitError

#: Modules that do nothing in evaluation mode.
_SILENT = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)

#: Rows, or columns, per step of a staircase: fewer make the matrix products slow, more leave zeros in.
_STEP = 256

#: A staircase pays if it leaves out at least this share of the inputs.
_WORTH = 0.1

#: Activations whose second derivative is zero, given as what they multiply negative inputs with.
_PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU)

#: Elementwise activations with a second derivative.
_SMOOTH = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One linear layer: its modules, and where its weight and bias stand among the chosen parameters."""

    linear: nn.Linear
    activation: nn.Module | None
    weight: int | None
    bias: int | None


def _flat_modules(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is nn.Sequential:
        for child in model:
            yield from _flat_modules(child)
    else:
        yield model


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def linear_chain(model: nn.Module) -> list[tuple[nn.Linear, nn.Module | None]] | None:
    """Take a plain MLP apart: linear layers in order, each with the activation that follows.

    Args:
        model: Any torch module.

    Returns:
        The layers, or ``None`` if the module is anything but flattening, linear layers, elementwise activations between
        them and dropout, chained by ``nn.Sequential``, each layer once and without hooks.
    """
    if any(_hooked(module) for module in model.modules()):
        return None
    chain: list[tuple[nn.Linear, nn.Module | None]] = []
    for module in _flat_modules(model):
        if type(module) is nn.Linear:
            if chain and chain[-1][1] is None and chain[-1][0].out_features != module.in_features:
                return None
            chain.append((module, None))
        elif type(module) in _PIECEWISE_LINEAR + _SMOOTH and chain and chain[-1][1] is None:
            chain[-1] = (chain[-1][0], module)
        elif type(module) is nn.Flatten and not chain and (module.start_dim, module.end_dim) == (1, -1):
            continue
        elif type(module) not in _SILENT:
            return None
    parameters = [p for linear, _ in chain for p in (linear.weight, linear.bias) if p is not None]
    plain = chain and chain[-1][1] is None and len({id(p) for p in parameters}) == len(parameters)
    return chain if plain else None


def mlp_rule(model: nn.Module, loss_fn: Any, parameters: Sequence[Tensor]) -> MLPRule | None:
    """Find out whether the analytic rule applies.

    Args:
        model: Any torch module.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss.
        parameters: The parameters to differentiate by, in the order of the vectors.

    Returns:
        The rule, or ``None`` if the module is not a plain MLP or a parameter is not one of its weights and biases.
    """
    chain = linear_chain(model)
    if chain is None:
        return None
    place = {id(p): k for k, p in enumerate(parameters)}
    layers = [
        _Layer(linear, activation, place.get(id(linear.weight)), place.get(id(linear.bias)))
        for linear, activation in chain
    ]
    found = [k for layer in layers for k in (layer.weight, layer.bias) if k is not None]
    if sorted(found) != list(range(len(parameters))):
        return None
    flattens = any(type(module) is nn.Flatten for module in _flat_modules(model))
    return MLPRule(layers, loss_fn, flattens)


@dataclasses.dataclass
class MLPState:
    """What one batch leaves for any number of products at the same weights.

    Attributes:
        loss: Mean loss of the batch, without dimensions.
        gradients: Its gradient, cut like the parameters.
        inputs: Per layer, ``(rows, in)`` what goes into it.
        deltas: Per layer, ``(rows, out)`` derivative of the loss by what comes out of it.
        slopes: Per hidden layer, first derivative of a smooth activation; ``None`` for ReLU, whose output tells it.
        bends: Per hidden layer, second derivative of a smooth activation times the derivative of the loss by its output.
        output: Logits as a leaf, ``(rows, out)``.
        output_gradient: Derivative of the loss by them, differentiable.
        rows: Slices of the rows of the first inputs, each with the columns that are not all zero.
        columns: Slices of their columns, each with the rows that are not all zero.
    """

    loss: Tensor
    gradients: tuple[Tensor, ...]
    inputs: list[Tensor]
    deltas: list[Tensor]
    slopes: list[Tensor | None]
    bends: list[Tensor | None]
    output: Tensor
    output_gradient: Tensor
    rows: list[tuple[slice, slice]]
    columns: list[tuple[slice, slice]]

    @property
    def nbytes(self) -> int:
        """Memory of the state in bytes."""
        kept = [*self.gradients, *self.inputs, *self.deltas, *self.slopes, *self.bends, self.output]
        return sum(t.nbytes for t in kept if t is not None)


class MLPRule:
    """Products for a chain of linear layers; see :func:`mlp_rule`, which makes it."""

    def __init__(self, layers: list[_Layer], loss_fn: Any, flattens: bool) -> None:
        self.layers, self.loss_fn, self.flattens = layers, loss_fn, flattens

    @property
    def row_bytes(self) -> int:
        """Memory of a state per example, in bytes."""
        widths = [layer.linear.in_features + 3 * layer.linear.out_features for layer in self.layers]
        return sum(widths) * self.layers[0].linear.weight.element_size()

    @torch.no_grad()
    def state(self, inputs: Tensor, targets: Tensor) -> MLPState:
        """Run one batch forwards and backwards.

        Args:
            inputs: ``(n, ...)`` examples.
            targets: Their targets.

        Returns:
            What the products need.

        Raises:
            PruneLimitError: If the loss is not a scalar.
        """
        hidden = inputs.flatten(1) if self.flattens else inputs
        lead = hidden.shape[:-1]
        a = hidden.reshape(-1, hidden.shape[-1])
        kept, slopes, curves = [], [], []
        for layer in self.layers:
            kept.append(a)
            z = nn.functional.linear(a, layer.linear.weight, layer.linear.bias)
            a, slope, curve = _activate(layer.activation, z)
            slopes.append(slope)
            curves.append(curve)
        with torch.enable_grad():
            output = z.detach().requires_grad_()
            loss = scalar_loss(self.loss_fn, output.reshape(*lead, output.shape[-1]), targets)
            if not loss.requires_grad:
                raise PruneLimitError(
                    "loss_fn returned a loss without gradient: leave out detach, item and argmax, or choose method='measured'."
                )
            (upper,) = torch.autograd.grad(loss, output, create_graph=True)
        delta = upper.detach()
        deltas: list[Tensor] = [delta]
        bends: list[Tensor | None] = [None]
        gradients: list[Tensor | None] = [None] * sum(
            (y.weight is not None) + (y.bias is not None) for y in self.layers
        )
        for k in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[k]
            if layer.weight is not None:
                gradients[layer.weight] = matmul(delta.T, kept[k])
            if layer.bias is not None:
                gradients[layer.bias] = delta.sum(0)
            if k:
                back = matmul(delta, layer.linear.weight)
                curve = curves[k - 1]
                bends.insert(0, None if curve is None else curve.mul_(back))
                delta = _through(self.layers[k - 1].activation, back, kept[k], slopes[k - 1])
                deltas.insert(0, delta)
        stairs = _staircase(kept[0]), _staircase(kept[0].T)
        return MLPState(loss.detach(), tuple(gradients), kept, deltas, slopes, bends, output, upper, *stairs)  # type: ignore[arg-type]

    @torch.no_grad()
    def product(self, state: MLPState, column: Sequence[Tensor], *, hessian: bool) -> tuple[Tensor, ...]:
        """Multiply the curvature of the batch's mean loss by one vector.

        Args:
            state: The batch's state at the present weights.
            column: The vector, cut like the parameters.
            hessian: Whether to multiply by the Hessian; else by the generalised Gauss-Newton matrix.

        Returns:
            The product, cut like the parameters.
        """
        moved, bent = self._forward(state, column)
        upper = state.output_gradient
        result: list[Tensor | None] = [None] * len(column)
        if moved[-1] is None or not upper.requires_grad:  # a loss that is linear in the output
            u = torch.zeros_like(state.output)
        else:
            (u,) = torch.autograd.grad(upper, state.output, moved[-1], retain_graph=True)
        for k in range(len(self.layers) - 1, -1, -1):
            layer, before = self.layers[k], moved[k - 1] if k else None
            if layer.weight is not None:
                rows = matmul(u.T, state.inputs[k]) if k else _outer(u, state)
                if hessian and before is not None:
                    add_matmul(rows, state.deltas[k].T, before)
                result[layer.weight] = rows
            if layer.bias is not None:
                result[layer.bias] = u.sum(0)
            if k == 0:
                break
            u = matmul(u, layer.linear.weight)
            if hessian and layer.weight is not None:
                add_matmul(u, state.deltas[k], column[layer.weight])
            u = _through(self.layers[k - 1].activation, u, state.inputs[k], state.slopes[k - 1])
            bend, z = state.bends[k - 1], bent[k - 1]
            if hessian and bend is not None and z is not None:
                u.addcmul_(bend, z)
        return tuple(result)  # type: ignore[arg-type]

    def _forward(self, state: MLPState, column: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Move every layer's output along the vector: what leaves the activations, and what enters smooth ones."""
        moved: list[Tensor | None] = []
        bent: list[Tensor | None] = []
        before: Tensor | None = None
        for k, layer in enumerate(self.layers):
            z: Tensor | None = None
            if layer.weight is not None:
                weight = column[layer.weight]
                z = matmul(state.inputs[k], weight.T) if k else _moved_by(weight, state)
            if before is not None:
                own = layer.linear.weight.T
                z = matmul(before, own) if z is None else add_matmul(z, before, own)
            if layer.bias is not None:
                z = (
                    column[layer.bias].expand(len(state.output), -1).clone()
                    if z is None
                    else z.add_(column[layer.bias])
                )
            last = k + 1 == len(self.layers)
            keeps = not last and state.bends[k] is not None
            bent.append(z.clone() if keeps and z is not None else None)
            if z is not None and not last:
                z = _through(layer.activation, z, state.inputs[k + 1], state.slopes[k])
            moved.append(z)
            before = z
        return moved, bent


def _staircase(matrix: Tensor) -> list[tuple[slice, slice]]:
    """Cut the rows into steps, each with the columns that it needs; one step if hardly anything is zero."""
    total, width = matrix.shape
    steps, held = [], 0
    for start in range(0, total, _STEP):
        rows = slice(start, min(start + _STEP, total))
        used = matrix[rows].any(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
        steps.append((rows, columns))
        held += (rows.stop - rows.start) * (columns.stop - columns.start)
    return steps if held <= (1 - _WORTH) * total * width else [(slice(0, total), slice(0, width))]


def _moved_by(weight: Tensor, state: MLPState) -> Tensor:
    """Multiply the first inputs by the transpose of a weight."""
    inputs = state.inputs[0]
    if len(state.rows) == 1:
        return matmul(inputs, weight.T)
    return torch.cat([matmul(inputs[rows, columns], weight[:, columns].T) for rows, columns in state.rows])


def _outer(u: Tensor, state: MLPState) -> Tensor:
    """Multiply the transpose of ``(rows, out)`` by the first inputs."""
    inputs = state.inputs[0]
    if len(state.columns) == 1:
        return matmul(u.T, inputs)
    turned = u.T.contiguous()
    return torch.cat([matmul(turned[:, rows], inputs[rows, columns]) for columns, rows in state.columns], 1)


def _activate(activation: nn.Module | None, z: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Apply an activation; give its output and, if it is smooth, its first and second derivative."""
    if activation is None:
        return z, None, None
    if type(activation) in _PIECEWISE_LINEAR:
        # On a copy: an activation that works in place would overwrite what is still needed.
        return nn.functional.leaky_relu(z, getattr(activation, "negative_slope", 0.0)), None, None
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        value = activation(leaf.clone())  # cloned once more, because the activation may work in place
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), leaf)
    return value.detach(), slope.detach(), curve


def _through(activation: nn.Module | None, u: Tensor, output: Tensor, slope: Tensor | None) -> Tensor:
    """Multiply by the activation's first derivative, which for ReLU its output tells; may change ``u``."""
    if activation is None:
        return u
    if slope is not None:
        return u.mul_(slope)
    leak = getattr(activation, "negative_slope", 0.0)
    if leak:
        return torch.where(output > 0, u, u * leak)
    return torch.ops.aten.threshold_backward(u, output, 0.0)
