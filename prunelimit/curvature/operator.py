"""Products of the Hessian with vectors, for any torch module and loss.

H is the Hessian of the mean loss over the data, in evaluation mode, restricted to the prunable parameters. It is never
formed: one product costs about two gradients when the graph of the gradient is kept, three when it is built anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.pruning.magnitude import prunable_parameters

LossFunction = Callable[[Any, Tensor], Tensor]
Batches = list[tuple[Any, Tensor]]

GRAPHS = ("auto", "retained", "fresh")

#: Share of the free memory that kept graphs may take.
RETAIN_SHARE = 0.25


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _SavedBytes:
    """Count the bytes that autograd keeps for a graph, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def as_batches(data: Any, batch_size: int = 1000) -> Batches:
    """Bring data into a list of batches, and check them.

    Args:
        data: An iterable of ``(inputs, targets)`` batches, or one pair of tensors with N rows each.
        batch_size: Rows per batch into which a pair of tensors is cut.

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
        batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
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


def _scalar_loss(model: nn.Module, loss_fn: LossFunction, inputs: Any, targets: Tensor) -> Tensor:
    loss = loss_fn(model(inputs), targets)
    if loss.ndim:
        raise PruneLimitError(f"loss_fn returned shape {tuple(loss.shape)}: return the mean loss, a scalar.")
    return loss


def _twice_error(what: object) -> PruneLimitError:
    return PruneLimitError(
        f"model uses an operation that cannot be differentiated twice ({what}): replace it, for example by its plain math version."
    )


def _refuse_once_differentiable(grads: Sequence[Tensor | None]) -> None:
    """Look through the gradient's graph for a node that would raise, if only ``autograd.grad`` ever came to it."""
    stack = [g.grad_fn for g in grads if g is not None and g.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if any(word in node.name() for word in ("DelayedError", "NotImplemented", "autograd::Error")):
            raise _twice_error(node.name())
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


class HessianOperator:
    """The Hessian of a network's mean loss as a linear operator.

    Args:
        model: Any torch module; its mode, its gradients and its weights are left as they were.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss.
        data: Iterable of ``(inputs, targets)`` batches, or a pair of tensors. Batches count by their size, so that a
            short last one does not count too much.
        prunable: Names of the parameters to differentiate by; by default linear and convolution weights.
        batch_size: Rows per batch into which a pair of tensors is cut.
        graph: ``"retained"`` keeps the graph of the gradient between products (fastest, memory grows with the data),
            ``"fresh"`` builds it for each product, ``"auto"`` keeps it if it fits into a quarter of the free memory.

    Attributes:
        shape: ``(D, D)``.
        dtype: Type of the products, that of the parameters.
        examples: Number of examples N.
        products: Products made so far, one per vector.

    Raises:
        PruneLimitError: If data, weights or loss cannot be used; the message says which.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> inputs, targets = torch.eye(2), torch.zeros(2, 1)
        >>> operator = HessianOperator(model, torch.nn.functional.mse_loss, (inputs, targets))
        >>> operator @ torch.tensor([1.0, 3.0])
        tensor([1., 3.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        *,
        prunable: Sequence[str] | None = None,
        batch_size: int = 1000,
        graph: str = "auto",
    ) -> None:
        if graph not in GRAPHS:
            raise unknown_name("graph", graph, GRAPHS)
        self.model, self.loss_fn = model, loss_fn
        self.batches = as_batches(data, batch_size)
        named = prunable_parameters(model, prunable)
        self.names, self.parameters = list(named), list(named.values())
        self.examples = sum(len(targets) for _, targets in self.batches)
        self.dimension = sum(p.numel() for p in self.parameters)
        self.shape = (self.dimension, self.dimension)
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        self.products = 0
        self._graph, self._retain = graph, graph != "fresh"
        self._kept: list[tuple[float, tuple[Tensor, ...]]] | None = None
        self._kept_versions: list[tuple[int, int]] = []
        self._gradient: Tensor | None = None
        self._loss: float | None = None

    def _gradients(self) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
        """Give each batch's weight n/N and differentiable gradient, from memory if they were kept."""
        versions = self._weight_versions()
        if self._kept is not None and versions == self._kept_versions:
            yield from self._kept
            return
        # Kept graphs of other weights are worthless, and autograd may not notice: the hooks that count bytes hide it.
        self._kept, self._kept_versions = None, versions
        kept = []
        with evaluation_mode(self.model), torch.enable_grad():
            loss_sum, gradient = 0.0, torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
            for number, (inputs, targets) in enumerate(self.batches):
                # Counting calls back for every saved tensor, so it is done once, not in every product.
                first, saved = number == 0 and self._gradient is None, _SavedBytes()
                counting = first and self._graph == "auto"
                with saved.hooks if counting else nullcontext():
                    loss = _scalar_loss(self.model, self.loss_fn, inputs, targets)
                if not bool(torch.isfinite(loss)):
                    raise PruneLimitError(f"loss_fn returned {loss.item()}: check the data and the weights for NaN.")
                share = len(targets) / self.examples
                with saved.hooks if counting else nullcontext():
                    grads = self._differentiate(loss, create_graph=True)
                if first:
                    _refuse_once_differentiable(grads)
                if counting:
                    self._retain = saved.total / share < RETAIN_SHARE * free_memory(self.device)
                loss_sum += share * float(loss.detach())
                gradient += share * self._flat(grads)
                if self._retain:
                    kept.append((share, grads))
                yield share, grads
        self._loss, self._gradient = loss_sum, gradient
        if self._retain:
            self._kept = kept

    def _weight_versions(self) -> list[tuple[int, int]]:
        """Fingerprint the weights and buffers: memory address and number of in-place changes."""
        return [(t.data_ptr(), t._version) for t in (*self.model.parameters(), *self.model.buffers())]

    def _differentiate(self, value: Tensor, **options: Any) -> tuple[Tensor, ...]:
        try:
            return torch.autograd.grad(value, self.parameters, allow_unused=True, **options)
        except RuntimeError as error:
            if "does not require grad" in str(error):  # the gradient does not depend on the weights: a linear loss
                return tuple(torch.zeros_like(p) for p in self.parameters)
            if "derivative" in str(error):
                raise _twice_error(error) from error
            raise

    def _flat(self, grads: Sequence[Tensor | None]) -> Tensor:
        filled = (torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.parameters, strict=True))
        return torch.cat([g.detach().reshape(-1) for g in filled])

    @property
    def loss(self) -> float:
        """Mean loss over the data."""
        return self._first_order()[0]

    @property
    def gradient(self) -> Tensor:
        """Gradient of the mean loss, ``(D,)``."""
        return self._first_order()[1]

    def _first_order(self) -> tuple[float, Tensor]:
        """Give loss and gradient at the present weights, from the last pass over the data if it was made there."""
        if self._gradient is None or self._weight_versions() != self._kept_versions:
            for _ in self._gradients():
                pass
        assert self._loss is not None
        assert self._gradient is not None
        return self._loss, self._gradient

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by a vector or a block of vectors.

        Args:
            vectors: ``(D,)`` or ``(D, k)``.

        Returns:
            H times them, of the same shape.

        Raises:
            PruneLimitError: If the number of rows is not D.
        """
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.dimension:
            raise PruneLimitError(
                f"vectors has shape {tuple(vectors.shape)}: give ({self.dimension},) or ({self.dimension}, k)."
            )
        columns = vectors.to(self.device, self.dtype).reshape(self.dimension, -1)
        sizes = [p.numel() for p in self.parameters]
        split = [
            [part.reshape(p.shape) for part, p in zip(column.split(sizes), self.parameters, strict=True)]
            for column in columns.T.contiguous()
        ]
        result = torch.zeros_like(columns)
        for share, grads in self._gradients():
            used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
            for k, column in enumerate(split):
                if not used:
                    continue
                more = self._kept is not None or self._retain or k + 1 < len(split)
                try:
                    rows = torch.autograd.grad(
                        [grads[i] for i in used],
                        self.parameters,
                        [column[i] for i in used],
                        retain_graph=more,
                        allow_unused=True,
                    )
                except RuntimeError as error:
                    raise _twice_error(error) from error
                result[:, k] += share * self._flat(rows)
        self.products += columns.shape[1]
        if not bool(torch.isfinite(result).all()):
            raise PruneLimitError(
                "the Hessian product is NaN or infinite: use dtype float64, or check weights and data."
            )
        return result.reshape(vectors.shape)

    def dense(self) -> Tensor:
        """Form the whole ``(D, D)`` matrix, for networks of a few thousand parameters.

        Returns:
            The symmetric matrix, float64.

        Raises:
            PruneLimitError: If it would have more than 20,000 rows.
        """
        if self.dimension > 20_000:
            raise PruneLimitError(
                f"model has {self.dimension} prunable weights: a dense Hessian is made up to 20000 only."
            )
        blocks = []
        for start in range(0, self.dimension, 512):
            width = min(512, self.dimension - start)
            block = torch.zeros(self.dimension, width, dtype=self.dtype, device=self.device)
            block[start : start + width] = torch.eye(width, dtype=self.dtype, device=self.device)
            blocks.append((self @ block).double())
        matrix = torch.cat(blocks, 1)
        return (matrix + matrix.T) / 2


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
            losses.append(float(_scalar_loss(model, loss_fn, inputs, targets)))
            sizes.append(len(targets))
    return sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes), losses
