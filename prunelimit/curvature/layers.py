"""Convolutions and batch normalisation that are cheap to differentiate twice, and what torch cannot, or not rightly.

PyTorch differentiates the backward pass of a convolution by convolutions with the batch in the place of the channels and kernels
as large as an image, which no fast routine was written for. The three products of a convolution (forwards, backwards by the
input, backwards by the weight) are linear in each of their arguments, so that their derivatives are the same three products of
other tensors. Batch normalisation in evaluation mode is a multiplication and an addition per channel, and is written as such. Torch's
hard sigmoid, which MobileNetV3 is full of, has no second derivative; what it is made of has. Its weight normalisation along the
first dimension has a wrong one (torch 2.13 takes the norms for constants there); a quotient has the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: Stride, padding, dilation, whether the convolution is transposed, output padding, groups.
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]

Pair = tuple[Tensor | None, Tensor | None]


def _forwards(inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    return torch.ops.aten.convolution(inputs, weight, None, *geometry)


def _backwards(upper: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]) -> Pair:
    """Give the derivatives by the input and by the weight, where they are wanted."""
    if not any(wanted):
        return None, None
    found = torch.ops.aten.convolution_backward(upper, inputs, weight, None, *geometry, [*wanted, False])
    return found[0] if wanted[0] else None, found[1] if wanted[1] else None


class _Backward(Function):
    """The backward pass of a convolution."""

    @staticmethod
    def forward(
        ctx: Any, upper: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
    ) -> Pair:
        """Give the derivatives by the input and by the weight."""
        ctx.save_for_backward(upper, inputs, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _backwards(upper, inputs, weight, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, input_move: Tensor | None, weight_move: Tensor | None) -> tuple[Tensor | None, ...]:
        """Give the derivatives by the upper gradient, the input and the weight."""
        (upper, inputs, weight), geometry = ctx.saved_tensors, ctx.geometry
        by_upper, by_input, by_weight = ctx.needs_input_grad[:3]
        of_upper = of_input = of_weight = None
        if input_move is not None:
            of_upper = _forwards(input_move, weight, geometry) if by_upper else None
            of_weight = _backwards(upper, input_move, weight, geometry, (False, by_weight))[1]
        if weight_move is not None:
            moved = _forwards(inputs, weight_move, geometry) if by_upper else None
            of_upper = moved if of_upper is None or moved is None else of_upper + moved
            of_input = _backwards(upper, inputs, weight_move, geometry, (by_input, False))[0]
        return of_upper, of_input, of_weight, None, None


class _Convolution(Function):
    """A convolution without bias."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(inputs, weight)
        ctx.geometry = geometry
        return _forwards(inputs, weight, geometry)

    @staticmethod
    def backward(ctx: Any, upper: Tensor) -> tuple[Tensor | None, ...]:
        """Give the derivatives by the input and by the weight; with a graph of their own if one is wanted."""
        run: Callable[..., Pair] = _Backward.apply if torch.is_grad_enabled() else _backwards
        return (*run(upper, *ctx.saved_tensors, ctx.geometry, tuple(ctx.needs_input_grad[:2])), None)


def _convolve(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Convolve as ``torch.conv1d`` to ``torch.conv3d`` do; ``None`` for what only they know."""
    dimensions = weight.dim() - 2
    if isinstance(padding, str) or inputs.dim() != weight.dim():  # "same", or one image without a batch
        return None
    sizes = [[value] * dimensions if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    if any(len(size) != dimensions for size in sizes):
        return None
    output = _Convolution.apply(inputs, weight, (*sizes, False, [0] * dimensions, groups))
    return output if bias is None else output + bias.view(-1, *[1] * dimensions)


def _normalise(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise as ``functional.batch_norm`` does with known statistics; ``None`` without."""
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *[1] * (inputs.dim() - 2))
    return torch.addcmul(shift.view(shape), inputs, scale.view(shape))


def _hard_sigmoid(inputs: Tensor, inplace: bool = False) -> Tensor:
    """Map as ``functional.hardsigmoid`` does."""
    return functional.relu6(inputs + 3) / 6


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """Give a weight its length as ``torch._weight_norm`` does, under both kinds of ``weight_norm``."""
    return direction * (length / torch.norm_except_dim(direction, 2, dim))


_CHEAPER: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: _convolve,
    torch.conv2d: _convolve,
    torch.conv3d: _convolve,
    functional.batch_norm: _normalise,
    functional.hardsigmoid: _hard_sigmoid,
    torch._weight_norm: _weight_norm,
}


class CheapSecondDerivatives(TorchFunctionMode):
    """While it is active, convolutions and normalisations are computed by the functions of this module.

    Values and all derivatives are the same to rounding. Forward-mode differentiation, autocast and lazy or functional
    transformations are not for this mode.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute by the cheaper function where there is one."""
        cheaper = _CHEAPER.get(func)
        found = None if cheaper is None else cheaper(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found
