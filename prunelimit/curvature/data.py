"""What every curvature product needs around it: batches, evaluation mode, the mean loss and the free memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError

LossFunction = Callable[[Any, Any], Tensor]

#: Buffers with up to this many entries are put back if a pass changes them: counters, observers, statistics. Larger ones,
#: masks and packed weights, are not worth a copy.
SMALL_BUFFER = 2**16
#: Inputs and targets of each batch; ``len(targets)`` is how many terms the batch's mean loss is over.
Batches = list[tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How a network is called on one batch, where that is not ``model(inputs)``.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        unpack: Takes what the loss needs out of what the network returns; ``None`` leaves it as it is.
        rows: Whether the batch can be cut: every tensor has one row per target, and the loss is a mean over rows.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    unpack: Callable[[Any], Any] | None = None
    rows: bool = False

    def change(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """Change every tensor."""
        args, kwargs = map_tensors(self.args, change), map_tensors(self.kwargs, change)
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    def __getitem__(self, rows: slice) -> Arguments:
        """Take some rows."""
        return self.change(lambda tensor: tensor[rows])


@dataclasses.dataclass(frozen=True)
class Counted:
    """Targets whose batch's mean loss is over so many terms, for example the tokens that are not ignored.

    Attributes:
        value: The targets, as the loss takes them.
        count: Number of terms, which ``len`` returns.
    """

    value: Any
    count: int

    def __len__(self) -> int:
        return self.count


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """Run a network on a batch's inputs.

    Args:
        model: The network, or a function that stands for it.
        inputs: One argument, or :class:`Arguments`.

    Returns:
        What the loss takes.
    """
    if not isinstance(inputs, Arguments):
        return model(inputs)
    output = model(*inputs.args, **inputs.kwargs)
    return output if inputs.unpack is None else inputs.unpack(output)


def bare(targets: Any) -> Any:
    """Return targets as the loss takes them."""
    return targets.value if isinstance(targets, Counted) else targets


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
            parts = list(data)
            if any(isinstance(part, Mapping) for part in parts):
                raise TypeError
            batches = [(inputs, targets) for inputs, targets in parts]
        except (TypeError, ValueError) as error:
            raise PruneLimitError(
                f"data={type(data).__name__} is neither a pair of tensors nor an iterable of (inputs, targets) batches."
            ) from error
    if not batches or not all(len(targets) for _, targets in batches):
        raise PruneLimitError("data is empty: give at least one batch with at least one example.")
    for number, (inputs, targets) in enumerate(batches):
        if isinstance(inputs, Tensor) and not isinstance(targets, Counted) and len(inputs) != len(targets):
            raise PruneLimitError(
                f"data batch {number} has {len(inputs)} inputs and {len(targets)} targets: give one target per input, along the "
                "first dimension, and of single examples make batches, by DataLoader(data, batch_size=128)."
            )
    return batches


def has_rows(batch: tuple[Any, Any]) -> bool:
    """Tell whether a batch can be cut by rows: a pair of tensors, or arguments that say so."""
    inputs, targets = batch
    return isinstance(targets, Tensor) and (
        inputs.layout == torch.strided  # a sparse tensor has no slices
        if isinstance(inputs, Tensor)
        else isinstance(inputs, Arguments) and inputs.rows
    )


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
            for start in range(0, len(targets), rows):
                pieces.append((inputs[start : start + rows], targets[start : start + rows]))
    return pieces


def joined(batches: Batches) -> tuple[Any, Tensor] | None:
    """Put batches that can be cut together into one.

    Args:
        batches: The batches.

    Returns:
        One batch with all rows, or ``None`` if some cannot be cut or their shapes differ.
    """
    if not all(has_rows(batch) for batch in batches) or len({type(inputs) for inputs, _ in batches}) > 1:
        return None
    first = batches[0][0]
    parts: list[list[Tensor]] = []
    for inputs, _ in batches:
        parts.append([])
        map_tensors(inputs, parts[-1].append)  # type: ignore[arg-type]
    if len({tuple(part.shape[1:] for part in row) for row in parts}) > 1:
        return None
    columns = iter([torch.cat(column) for column in zip(*parts, strict=True)])
    return map_tensors(first, lambda _: next(columns)), torch.cat([targets for _, targets in batches])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of a network into evaluation mode, and back into its own mode afterwards."""
    try:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
    except (AttributeError, NotImplementedError) as error:  # frozen TorchScript, exported programs
        raise PruneLimitError(
            f"model={type(model).__name__} has no evaluation mode: give the module that it was made from."
        ) from error
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for forward passes; put modes back afterwards, and small buffers that they changed."""
    buffers = _small_buffers(model)
    try:
        with evaluation_mode(model):
            yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
                if owner._buffers[name] is not buffer:
                    owner._buffers[name] = buffer


def _small_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor, int, Tensor]]:
    """List the buffers that a forward pass may change, whatever the mode: their owners, names, versions and values."""
    return [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which makes a new object at each look
        for name, buffer in module._buffers.items()
        if buffer is not None
        and not isinstance(buffer, nn.parameter.UninitializedBuffer)
        and not buffer.is_inference()
        and buffer.device.type != "meta"
        and buffer.numel() <= SMALL_BUFFER
    ]


def scalar_loss(loss_fn: LossFunction, output: Any, targets: Tensor) -> Tensor:
    """Evaluate the loss, and refuse one that is not a scalar.

    Args:
        loss_fn: Maps output and targets to the batch's mean loss.
        output: What the network gave for the batch.
        targets: The batch's targets, on any device.

    Returns:
        The mean loss, without dimensions.

    Raises:
        PruneLimitError: If it has any.
    """
    loss = loss_fn(output, bare(targets))
    if not isinstance(loss, Tensor):
        raise PruneLimitError(f"loss_fn returned {type(loss).__name__}: return the mean loss, a scalar tensor.")
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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with unchanged(model), torch.no_grad():
        for batch in batches:
            inputs, targets = (map_tensors(part, lambda tensor: tensor.to(device)) for part in batch)
            losses.append(float(scalar_loss(loss_fn, call_model(model, inputs), targets)))
            sizes.append(len(targets))
    return sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes), losses


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of a batch's inputs or targets, which may be nested in lists, tuples and dictionaries.

    Args:
        value: The inputs.
        change: What to do with each tensor.

    Returns:
        Inputs of the same structure; anything that is none of these is left as it is.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Arguments):
        return value.change(change)
    if isinstance(value, Counted):
        return Counted(map_tensors(value.value, change), value.count)
    if type(value) is dict:
        return {key: map_tensors(part, change) for key, part in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map_tensors(part, change) for part in value)
    return value


def longest(batches: Sequence[tuple[Any, Tensor]]) -> int:
    """Return the most rows of any batch that can be cut, zero if none can."""
    return max((len(batch[1]) for batch in batches if has_rows(batch)), default=0)
