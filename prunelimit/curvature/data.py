"""What every curvature product needs around it: batches, evaluation mode, the mean loss and the free memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError

LossFunction = Callable[[Any, Tensor], Tensor]
Batches = list[tuple[Any, Tensor]]


def as_batches(data: Any, batch_size: int | None = 1000) -> Batches:
    """Bring data into a list of batches, and check them.

    Args:
        data: An iterable of ``(inputs, targets)`` batches, or one pair of tensors with N rows each.
        batch_size: Rows per batch into which a pair of tensors is cut; ``None`` leaves it whole.

    Returns:
        The batches.

    Raises:
        PruneLimitError: If there are none, one is empty, or inputs and targets differ in number.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = data
        if len(inputs) != len(targets):
            raise PruneLimitError(
                f"data has {len(inputs)} inputs and {len(targets)} targets: give one target per input."
            )
        batches = split_rows([(inputs, targets)], batch_size)
    else:
        try:
            batches = [(inputs, targets) for inputs, targets in data]
        except (TypeError, ValueError) as error:
            raise PruneLimitError(
                f"data={type(data).__name__} is neither a pair of tensors nor an iterable of (inputs, targets) batches."
            ) from error
    if not batches or not all(len(targets) for _, targets in batches):
        raise PruneLimitError("data is empty: give at least one batch with at least one example.")
    for number, (inputs, targets) in enumerate(batches):
        if isinstance(inputs, Tensor) and len(inputs) != len(targets):
            raise PruneLimitError(
                f"data batch {number} has {len(inputs)} inputs and {len(targets)} targets: give one target per input."
            )
    return batches


def has_rows(batch: tuple[Any, Any]) -> bool:
    """Tell whether a batch can be cut by rows: a pair of tensors."""
    return isinstance(batch[0], Tensor) and isinstance(batch[1], Tensor)


def split_rows(batches: Batches, rows: int | None) -> Batches:
    """Cut batches that are pairs of tensors into pieces; views, no copies.

    Args:
        batches: The batches; those that are not pairs of tensors stay whole.
        rows: The most rows of a piece; ``None`` cuts nothing.

    Returns:
        The pieces, in order.
    """
    pieces: Batches = []
    for inputs, targets in batches:
        if rows is None or not has_rows((inputs, targets)) or len(targets) <= rows:
            pieces.append((inputs, targets))
        else:
            pieces += zip(inputs.split(rows), targets.split(rows), strict=True)
    return pieces


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of a network into evaluation mode, and back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def scalar_loss(loss_fn: LossFunction, output: Any, targets: Tensor) -> Tensor:
    """Evaluate the loss, and refuse one that is not a scalar.

    Args:
        loss_fn: Maps output and targets to the batch's mean loss.
        output: What the network gave for the batch.
        targets: The batch's targets.

    Returns:
        The mean loss, without dimensions.

    Raises:
        PruneLimitError: If it has any.
    """
    loss = loss_fn(output, targets)
    if loss.ndim:
        raise PruneLimitError(f"loss_fn returned shape {tuple(loss.shape)}: return the mean loss, a scalar.")
    return loss


def mean_loss(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[tuple[Any, Tensor]]
) -> tuple[float, list[float]]:
    """Measure the loss over batches, each counted by its size, in evaluation mode.

    Args:
        model: The network.
        loss_fn: Maps output and targets to the batch's mean loss.
        batches: The data.

    Returns:
        Mean loss, and the loss of each batch.
    """
    losses, sizes = [], []
    with evaluation_mode(model), torch.no_grad():
        for inputs, targets in batches:
            losses.append(float(scalar_loss(loss_fn, model(inputs), targets)))
            sizes.append(len(targets))
    return sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes), losses


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of a batch's inputs, which may be nested in lists, tuples and dictionaries.

    Args:
        value: The inputs.
        change: What to do with each tensor.

    Returns:
        Inputs of the same structure; anything that is none of these is left as it is.
    """
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: map_tensors(part, change) for key, part in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map_tensors(part, change) for part in value)
    return value


def longest(batches: Sequence[tuple[Any, Tensor]]) -> int:
    """Return the most rows of any batch that can be cut, zero if none can."""
    return max((len(batch[1]) for batch in batches if has_rows(batch)), default=0)
