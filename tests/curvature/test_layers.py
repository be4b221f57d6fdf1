"""Convolutions and normalisations that are cheap to differentiate twice: against PyTorch's own, to the second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature.layers import CheapSecondDerivatives

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def derivatives(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Value, gradient of a random function of it, and that gradient's own in a random direction."""
    value = function()
    goal = (
        torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=value.dtype) * value.tanh()
    ).sum()
    first = torch.autograd.grad(goal, leaves, create_graph=True)
    moves = [torch.randn(g.shape, generator=torch.Generator().manual_seed(i)).to(g) for i, g in enumerate(first)]
    second = torch.autograd.grad(first, leaves, moves)
    return [value, *first, *second]


def compare(function: Callable[[], Tensor], leaves: list[Tensor]) -> Tensor:
    """Hold everything against PyTorch's own; returns the mode's value."""

    def cheaply() -> Tensor:
        with CheapSecondDerivatives():
            return function()

    found = derivatives(cheaply, leaves)
    for mine, theirs in zip(found, derivatives(function, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    return found[0]


def names(value: Tensor) -> set[str]:
    """All functions in the graph of a tensor."""
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


@settings(max_examples=60, deadline=None)
@given(
    dimensions=st.integers(1, 3),
    groups=st.integers(1, 2),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kernel=st.integers(1, 3),
    bias=st.booleans(),
    size=st.integers(5, 7),
)
def test_convolutions_agree_to_the_second_derivative(
    dimensions: int, groups: int, stride: int, padding: int, dilation: int, kernel: int, bias: bool, size: int
) -> None:
    inputs = draw(2, 2 * groups, *[size] * dimensions, seed=1)
    weight = draw(3 * groups, 2, *[kernel] * dimensions, seed=2)
    offset = draw(3 * groups, seed=3) if bias else None
    leaves = [inputs, weight] + ([offset] if offset is not None else [])
    convolve: Any = CONVOLUTIONS[dimensions]
    value = compare(lambda: convolve(inputs, weight, offset, stride, padding, dilation, groups), leaves)
    assert any("_Convolution" in name for name in names(value))


@pytest.mark.parametrize("leaf", ["inputs", "weight"])
def test_only_what_is_asked_for_is_differentiated(leaf: str) -> None:
    tensors = {"inputs": draw(2, 2, 5, 5, seed=1), "weight": draw(3, 2, 3, 3, seed=2)}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == leaf)
    compare(lambda: functional.conv2d(tensors["inputs"], tensors["weight"]), [tensors[leaf]])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 4)])
def test_normalisation_agrees_to_the_second_derivative(shape: tuple[int, ...], affine: bool) -> None:
    inputs, weight, bias = draw(*shape, seed=1), draw(3, seed=2), draw(3, seed=3)
    mean, variance = draw(3, seed=4).detach(), draw(3, seed=5).detach().exp()
    scale, shift = (weight, bias) if affine else (None, None)
    value = compare(
        lambda: functional.batch_norm(inputs, mean, variance, scale, shift),
        [inputs, weight, bias] if affine else [inputs],
    )
    assert not any("BatchNorm" in name for name in names(value))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5)),
        (nn.Conv2d(2, 3, 3), (2, 5, 5)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
        (nn.ConvTranspose2d(2, 3, 3), (2, 2, 5, 5)),
        (nn.BatchNorm2d(2), (3, 2, 4, 4)),
        (nn.BatchNorm2d(2, track_running_stats=False).eval(), (3, 2, 4, 4)),
    ],
    ids=["same", "no batch", "circular", "transposed", "training", "no statistics"],
)
def test_what_only_pytorch_knows_is_left_to_it(module: nn.Module, shape: tuple[int, ...]) -> None:
    inputs, module = draw(*shape, seed=1), module.double()
    compare(lambda: module(inputs), [inputs, *module.parameters()])


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_normalisation_has_a_right_second_derivative(dim: int) -> None:
    # Once wrong along the first dimension: torch's own takes the norms for constants there.
    direction = draw(4, 3, seed=1)
    length = draw(*[size if place == dim else 1 for place, size in enumerate((4, 3))], seed=2)

    def function(*values: Tensor) -> Tensor:
        with CheapSecondDerivatives():
            return torch._weight_norm(*values, dim)

    torch.testing.assert_close(function(direction, length), torch._weight_norm(direction, length, dim))
    assert torch.autograd.gradgradcheck(function, (direction, length))


def test_wrong_arguments_raise_pytorchs_error() -> None:
    with pytest.raises(RuntimeError, match="channels"), CheapSecondDerivatives():
        functional.conv2d(torch.ones(1, 2, 5, 5), torch.ones(3, 4, 3, 3))


def test_a_third_derivative_is_right_too() -> None:
    inputs, weight = draw(1, 1, 4, 4, seed=1), draw(1, 1, 3, 3, seed=2)

    def function(x: Tensor, w: Tensor) -> Tensor:
        with CheapSecondDerivatives():
            slopes = torch.autograd.grad(functional.conv2d(x, w).tanh().sum(), [x, w], create_graph=True)
        return slopes[0].sum() + slopes[1].sum()

    assert torch.autograd.gradgradcheck(function, (inputs, weight))


def test_hard_sigmoid_has_a_second_derivative() -> None:
    """Torch's own has none; values and gradients are the same, and it is piecewise linear."""
    inputs = torch.linspace(-4, 4, 33, dtype=torch.float64).requires_grad_()
    with pytest.raises(RuntimeError, match="hardsigmoid_backward"):
        derivatives(lambda: functional.hardsigmoid(inputs), [inputs])
    with CheapSecondDerivatives():
        value, first, second = derivatives(lambda: nn.Hardsigmoid()(inputs), [inputs])
    plain = functional.hardsigmoid(inputs)
    (slope,) = torch.autograd.grad(plain.sum(), inputs)
    torch.testing.assert_close(value, plain)
    goal = torch.randn(33, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    torch.testing.assert_close(first, goal * (1 - plain.tanh() ** 2) * slope)
    move = torch.randn(33, generator=torch.Generator().manual_seed(0)).to(first)
    curve = -2 * plain.tanh() * (1 - plain.tanh() ** 2)
    torch.testing.assert_close(second, goal * curve * slope**2 * move)
