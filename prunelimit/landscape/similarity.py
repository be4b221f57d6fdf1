r"""Similarity of representations: centred kernel alignment with a linear kernel.

A representation is an :math:`N \times p` matrix X, one row per example; its kernel is :math:`K = X X^T`, and :math:`K_c` the
same after the mean row was taken off. Rotations, scaling and shifts of a representation change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from prunelimit.curvature.data import evaluation_mode
from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.precision import full_float32

#: Images that the three-regime paper's released code compares outputs on: 101 batches of 64.
EXAMPLES = 6464

#: A representation whose variation is smaller than so many roundings of its size is constant.
ROUNDINGS = 16


def _centred(values: Tensor | np.ndarray, name: str, least: int) -> Tensor:
    """Give a representation in float64 without its mean; zeros, and no rounding errors, if it is constant."""
    matrix = torch.as_tensor(values).detach().double()
    if matrix.ndim != 2 or len(matrix) < least:
        raise PruneLimitError(
            f"{name} has shape {tuple(matrix.shape)}: give a matrix of at least {least} examples by features."
        )
    if not bool(torch.isfinite(matrix).all()):
        raise PruneLimitError(f"{name} is NaN or infinite somewhere: check the network and the data.")
    centred = matrix - matrix.mean(dim=0)
    rounding = ROUNDINGS * torch.finfo(torch.float64).eps * float(matrix.norm())
    return centred if float(centred.norm()) > rounding else torch.zeros_like(centred)


def _pair(first: Tensor | np.ndarray, second: Tensor | np.ndarray, least: int) -> tuple[Tensor, Tensor]:
    one, other = _centred(first, "first", least), _centred(second, "second", least)
    if len(one) != len(other):
        raise PruneLimitError(
            f"first has {len(one)} examples and second {len(other)}: give representations of the same examples."
        )
    return one, other


def _alignment(one: Tensor, other: Tensor) -> float:
    """Compute the inner product of two kernels by whichever is smaller, their features or their examples."""
    if one.shape[1] * other.shape[1] <= len(one) ** 2:
        return float((one.T @ other).square().sum())
    return float(((one @ one.T) * (other @ other.T)).sum())


def linear_cka(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> float:
    r"""Compute linear CKA, :math:`\langle K_c, L_c \rangle_F / (\|K_c\|_F \|L_c\|_F)` (Kornblith et al. 2019), in float64.

    This is the biased form that the three-regime paper uses: with few examples for the number of features it is too high.
    It is :math:`\|X^T Y\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)` of the centred matrices, so that no N by N matrix is needed.

    Args:
        first: ``(N, p1)`` representation.
        second: ``(N, p2)`` representation of the same examples.

    Returns:
        A number between 0 and 1; NaN if a representation is the same for all examples, and then has no direction.

    Raises:
        PruneLimitError: If shapes do not fit, there are fewer than two examples, or a value is not finite.

    Example:
        >>> points = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 3.0]])
        >>> turned = 3 * points @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 7
        >>> round(linear_cka(points, turned), 12)
        1.0
    """
    one, other = _pair(first, second, 2)
    sizes = one.norm(), other.norm()
    if not min(sizes) > 0:
        return math.nan
    one, other = one / sizes[0], other / sizes[1]
    return min(_alignment(one, other) / math.sqrt(_alignment(one, one) * _alignment(other, other)), 1.0)


def _hsic(one: Tensor, other: Tensor) -> float:
    """Estimate HSIC from two kernels with zero diagonals, without bias (Song et al. 2012)."""
    n = len(one)
    rows, columns = one.sum(dim=0), other.sum(dim=0)
    inner = float((one * other).sum())
    means = float(rows.sum()) * float(columns.sum()) / ((n - 1) * (n - 2))
    return (inner + means - 2 * float(rows @ columns) / (n - 2)) / (n * (n - 3))


def unbiased_cka(batches: Iterable[tuple[Tensor | np.ndarray, Tensor | np.ndarray]]) -> float:
    r"""Compute linear CKA from mini-batches, with an unbiased estimate of HSIC in each (Nguyen et al. 2021).

    The three HSICs are averaged over the batches, each batch counting the same, before the quotient is taken. Their
    expectations do not depend on the batch size; that of the quotient does, less the more batches there are.

    Args:
        batches: Pairs of ``(n, p1)`` and ``(n, p2)`` representations of the same examples, at least four per batch.

    Returns:
        A number that may be slightly negative or exceed one; NaN if a representation shows no variation.

    Raises:
        PruneLimitError: If there are no batches, a batch is too small, shapes do not fit, or a value is not finite.
    """
    sums, count = np.zeros(3), 0
    for first, second in batches:
        # HSIC does not see a shift, but rounding does: the kernels are those of the centred representations.
        one, other = ((x @ x.T).fill_diagonal_(0) for x in _pair(first, second, 4))
        sums += [_hsic(one, other), _hsic(one, one), _hsic(other, other)]
        count += 1
    if not count:
        raise PruneLimitError("batches is empty: give at least one pair of representations.")
    return float(sums[0] / math.sqrt(sums[1] * sums[2])) if sums[1] > 0 and sums[2] > 0 else math.nan


def representations(
    model: nn.Module, data: DeviceSplit, layer: str = "softmax", examples: int = EXAMPLES, batch_size: int = 2000
) -> Tensor:
    """Collect what a network makes of the first images, in evaluation mode and full float32.

    Args:
        model: The network, on the device of ``data``; its mode is restored afterwards.
        data: Un-augmented images.
        layer: ``"softmax"`` for the predicted probabilities, ``"logits"``, or the name of a module as in
            ``model.named_modules()``, whose output (of its last call in a pass) is flattened.
        examples: The first so many images; all of them if there are fewer.
        batch_size: Images per pass.

    Returns:
        ``(N, p)``, on the device of ``data``; probabilities in float64.

    Raises:
        PruneLimitError: If the layer is unknown, is never called, or gives no tensor with one row per image.
    """
    if examples < 1 or batch_size < 1:
        raise PruneLimitError(f"examples={examples!r}, batch_size={batch_size!r}: both must be at least 1.")
    modules = {name: module for name, module in model.named_modules() if name}
    inner = layer not in {"softmax", "logits"}
    if inner and layer not in modules:
        raise unknown_name("layer", layer, ["softmax", "logits", *modules])
    seen: list[object] = []

    def collect(_: nn.Module, __: object, output: object) -> None:
        # A copy, because the next module may work in place.
        seen[:] = [output.clone() if isinstance(output, Tensor) else output]

    handle = modules[layer].register_forward_hook(collect) if inner else None
    parts = []
    count = min(examples, len(data))
    try:
        with evaluation_mode(model), torch.no_grad(), full_float32(data.device):
            for start in range(0, count, batch_size):
                images = data.normalise(data.images[start : min(start + batch_size, count)])
                seen.clear()
                output = model(images)
                if inner:
                    output = seen[-1] if seen else None
                if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images):
                    raise PruneLimitError(
                        f"layer={layer!r} gave no tensor with one row per image: name a module that the network calls."
                    )
                parts.append(output.double().softmax(dim=1) if layer == "softmax" else output.flatten(1))
    finally:
        if handle is not None:
            handle.remove()
    return torch.cat(parts)


def output_similarity(
    first: nn.Module,
    second: nn.Module,
    data: DeviceSplit,
    *,
    layer: str = "softmax",
    examples: int = EXAMPLES,
    batch_size: int = 2000,
) -> float:
    """Compute the linear CKA of two networks; with the defaults, that of the three-regime paper.

    Args:
        first: A network, on the device of ``data``.
        second: Another one, of any architecture that has the layer.
        data: Un-augmented training images.
        layer: What to compare, see :func:`representations`.
        examples: The first so many images.
        batch_size: Images per pass.

    Returns:
        A number between 0 and 1; NaN if a network gives the same for all images.
    """
    one, other = (representations(model, data, layer, examples, batch_size) for model in (first, second))
    return linear_cka(one, other)
