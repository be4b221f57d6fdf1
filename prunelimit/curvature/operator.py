r"""Products of curvature matrices with vectors, for any torch module and loss.

The matrix is the Hessian of the mean loss over the data, :math:`H = \nabla^2 L(w)`, or its generalised Gauss-Newton part,
:math:`G = \frac1N \sum_i J_i^T \, \nabla^2_z \ell_i \, J_i`, in evaluation mode and restricted to the prunable parameters. It
is never formed: one product costs about two gradients when states are kept between products, three when not.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.curvature.data import (
    Batches,
    LossFunction,
    as_batches,
    evaluation_mode,
    has_rows,
    longest,
    mean_loss,
    split_rows,
)
from prunelimit.curvature.distributed import own_part
from prunelimit.curvature.memory import free_memory, is_out_of_memory, state_memory
from prunelimit.curvature.network import Network
from prunelimit.curvature.rules import AnalyticRule, GaussNewtonRule, HessianRule, Rule, TwiceError
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.processes import add_up, all_or_none, is_sharded, processes
from prunelimit.pruning.magnitude import prunable_parameters

__all__ = [
    "Batches",
    "CurvatureOperator",
    "GGNOperator",
    "HessianOperator",
    "LossFunction",
    "as_batches",
    "evaluation_mode",
    "free_memory",
    "mean_loss",
]

RULES = ("auto", "mlp", "retained", "fresh")

#: Share of the free memory that kept states may take, and one pass on its own.
RETAIN_SHARE, PASS_SHARE = 0.5, 0.25

#: The most rows per pass on a CPU, whose caches a larger one leaves.
CPU_ROWS = 1000

#: The same for convolutions, in bytes of the rows' states, whatever the network; and, of one with many weights, as a multiple
#: of theirs, which are read anew in each pass.
CPU_CONVOLUTION_BYTES, STATES_PER_WEIGHTS = 2**26, 10

#: Up to this many rows a matrix is formed.
DENSE_ROWS = 20_000

_log = logging.getLogger("prunelimit")

#: Networks of which it was said already that the loss does not depend on all their parameters.
_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class DisconnectedError(PruneLimitError):
    """The loss has no gradient by any of the parameters."""


class CurvatureOperator:
    """A curvature matrix of a network's mean loss as a linear operator; use one of its two subclasses.

    Args:
        model: Any torch module; its mode, its gradients and its weights are left as they were.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss.
        data: Iterable of ``(inputs, targets)`` batches, or a pair of tensors. Batches count by their size, so that a
            short last one does not count too much.
        prunable: Names of the parameters to differentiate by; by default linear and convolution weights.
        batch_size: The most rows per pass, for data in tensors; by default as many as fit into a quarter of the free
            memory, halved when memory runs out.
        rule: ``"mlp"`` is an analytic rule for plain MLPs, ``"retained"`` keeps the graph of the gradient between
            products (memory grows with the data), ``"fresh"`` builds it for each product, ``"auto"`` takes the first of
            them that applies and fits into half of the free memory.
        dtype: Type to compute in: by default that of the parameters, ``torch.float64`` or ``torch.float32`` on a
            converted copy of the network, ``torch.bfloat16`` under autocast with sums in the parameters' type.
        shard: Whether processes share the data, each with all of ``data`` given to it; by default they do if
            ``torch.distributed`` is initialised. All of them have to make the same calls.

    Attributes:
        shape: ``(D, D)``.
        dimension: D.
        width: Entries of a vector that this process holds: D, or fewer if the parameters are sharded.
        dtype: Type of the products.
        device: Device of the products.
        examples: Number of examples N.
        names: The prunable parameters, in the order of a vector's entries.
        parameters: The same as tensors.
        products: Products made so far, one per vector.
        reserve: Bytes of memory that others will need, which kept states must leave free.

    Raises:
        PruneLimitError: If data, weights or loss cannot be used; the message says which.
    """

    _hessian: bool
    _slices = False

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        *,
        prunable: Sequence[str] | None = None,
        batch_size: int | None = None,
        rule: str = "auto",
        dtype: torch.dtype | None = None,
        shard: bool | None = None,
    ) -> None:
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise PruneLimitError(f"batch_size={batch_size!r} must be at least 1: it is the rows per pass.")
        if is_sharded(model) and not self._slices:
            raise PruneLimitError("model has sharded parameters: use the operators of prunelimit.curvature.sharded.")
        self._rank, self._world = processes(shard)
        batches = as_batches(data, None)
        named = prunable_parameters(model, prunable)
        self.model, self.loss_fn = model, loss_fn
        self.names, self.parameters = list(named), list(named.values())
        self.examples = sum(len(targets) for _, targets in batches)
        self.dimension = sum(p.numel() for p in self.parameters)
        self.shape = (self.dimension, self.dimension)
        self.width = self.dimension
        self.products, self.reserve = 0, 0
        self._network = Network(model, loss_fn, self.names, dtype)
        self.dtype, self.device = self._network.dtype, self._network.device
        self._source = own_part(batches, self._rank, self._world)
        self._rows, self._sized = batch_size, batch_size is not None
        self._wanted, self._keep = rule, {"retained": True, "fresh": False}.get(rule)
        self._versions = self._network.versions()
        self._forget()

    def _forget(self) -> None:
        """Drop all that belongs to earlier weights."""
        self._kept: list[tuple[Any, Any]] | None = None
        self._held: list[tuple[float, Any]] = []
        self._loss: float | None = None
        self._gradient: Tensor | None = None
        self._engine: Rule | None = self._analytic()

    def _analytic(self) -> AnalyticRule | None:
        if self._wanted not in {"auto", "mlp"}:
            return None
        from prunelimit.curvature.mlp import mlp_rule

        network = self._network
        plain = not network.half and all(
            isinstance(inputs, Tensor) and inputs.layout == torch.strided for inputs, _ in self._source
        )
        found = None if not plain else mlp_rule(network.module, network.loss_fn, network.parameters)
        if found is None and self._wanted == "mlp":
            raise PruneLimitError(
                "rule='mlp' needs a chain of linear layers and activations, not in bfloat16: leave rule out."
            )
        return None if found is None else AnalyticRule(found, self._hessian)

    @property
    def rounding(self) -> float:
        """Relative rounding of the products."""
        return torch.finfo(torch.bfloat16 if self._network.half else self.dtype).eps

    @property
    def rule(self) -> str | None:
        """The rule in use; ``None`` while it waits for the first product to measure the memory."""
        if isinstance(self._engine, AnalyticRule):
            return "mlp"
        return None if self._keep is None else "retained" if self._keep else "fresh"

    @property
    def batches(self) -> Batches:
        """This process's data, cut into the pieces of one pass each."""
        return split_rows(self._source, self._rows)

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
        self._follow_weights()
        if self._loss is None or self._gradient is None:
            self._shared(torch.empty(0, self.width, dtype=self.dtype, device=self.device))
        assert self._loss is not None
        assert self._gradient is not None
        return self._loss, self._gradient

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by a vector or a block of vectors.

        Args:
            vectors: ``(D,)`` or ``(D, k)``.

        Returns:
            The matrix times them, of the same shape.

        Raises:
            PruneLimitError: If the number of rows is not D.
        """
        if vectors.ndim not in {1, 2} or vectors.shape[0] != self.width:
            raise PruneLimitError(
                f"vectors has shape {tuple(vectors.shape)}: give ({self.width},) or ({self.width}, k)."
            )
        with torch.inference_mode(False), torch.no_grad():
            rows = vectors.detach().to(self.device, self.dtype).reshape(self.width, -1).T.contiguous()
            if rows.is_inference():
                rows = rows.clone()
            self._follow_weights()
            result = self._shared(rows)
        if not math.isfinite(result.sum()) and not bool(torch.isfinite(result).all()):
            raise PruneLimitError(
                "the curvature product is NaN or infinite: use dtype float64, or check weights and data."
            )
        self.products += len(rows)
        return result.T if vectors.ndim == 2 else result[0]

    def _follow_weights(self) -> None:
        """Start anew if the weights have changed: autograd would not always notice that kept graphs are of old ones."""
        versions = self._network.versions()
        if versions != self._versions:
            self._network.refresh()
            named = dict(self.model.named_parameters())
            self.parameters = [named[name] for name in self.names]
            self._forget()
            self._versions = versions

    def _shared(self, rows: Tensor) -> Tensor:
        """Multiply ``(k, D)`` vectors, adding up the parts of all processes; know loss and gradient afterwards."""
        fresh = self._loss is None
        result = all_or_none(lambda: self._with_less_memory(rows), self._world, self.device)
        if self._world > 1:
            if fresh:
                assert self._loss is not None
                assert self._gradient is not None
                total = torch.tensor([self._loss], dtype=torch.float64, device=self.device)
                self._loss = float(add_up(total))
                add_up(self._gradient)
            if len(rows):
                add_up(result)
        return result

    def _with_less_memory(self, rows: Tensor) -> Tensor:
        """Repeat this process's part until it fits into memory; what an attempt summed before it failed is not used."""
        note = ""
        while True:
            try:
                result = self._accumulate(rows)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                note = self._save_memory(error)
            finally:
                self._held = []
            # Out of the handler, whose traceback holds the tensors of the attempt.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if note:
            _log.warning("Out of memory: products go on with %s.", note)
        return result

    def _save_memory(self, error: Exception) -> str:
        """Keep nothing between products, or else take half the rows; say which."""
        rows = min(self._rows or longest(self._source), longest(self._source))
        if self._held or self._kept is not None:
            self._keep, self._kept = False, None
            return f"nothing kept between them and {rows} rows per pass"
        if rows < 2:
            raise PruneLimitError(
                "data: a batch that cannot be cut further does not fit into memory; give smaller batches or prunable=."
            ) from error
        self._rows, self._sized = rows // 2, True
        return f"{rows // 2} rows per pass"

    def _accumulate(self, rows: Tensor) -> Tensor:
        """Sum this process's part of the products of ``(k, D)`` vectors; of loss and gradient, if they are unknown."""
        known, kept = self._loss is not None, self._kept
        result = torch.zeros_like(rows)
        columns, targets = [self._cut(row) for row in rows], [self._cut(row) for row in result]
        gradient = None if known else torch.zeros(self.width, dtype=self.dtype, device=self.device)
        slope = [] if gradient is None else self._cut(gradient)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        untouched = set() if known or not self._source else set(self.names)
        with nullcontext() if kept is not None else self._network.ready():
            engine = self._ready_engine()
            self._held = []
            for number, (first, second) in enumerate(self.batches if kept is None else kept):
                if kept is None:
                    share, state = len(second) / self.examples, engine.state(*self._network.place(first, second))
                else:
                    share, state = first, second
                if not known:
                    if number == 0:
                        engine.check(state)
                    loss += share * state.loss
                    untouched -= {n for n, part in zip(self.names, state.gradients, strict=True) if part is not None}
                    _add(slope, state.gradients, share)
                if self._keep and kept is None:
                    self._held.append((share, state))
                for k, (column, target) in enumerate(zip(columns, targets, strict=True)):
                    last = not self._keep and k + 1 == len(columns)
                    _add(target, engine.product(state, column, last=last), share)
                del state
        if not known:
            # One look at the end instead of one per batch, which would stop a GPU each time.
            if not math.isfinite(loss):
                raise PruneLimitError(f"loss_fn returned {loss.item()}: check the data and the weights for NaN.")
            if len(untouched) == len(self.names):
                raise DisconnectedError(
                    "the loss does not depend on the prunable weights: a forward pass or loss_fn without gradients (no_grad, "
                    "detach, argmax, reentrant checkpointing) has no curvature; mend it, or choose method='measured'."
                )
            if untouched and self._world == 1:  # another process's part may use them
                self._tell_untouched(untouched)
            self._loss, self._gradient = float(loss), gradient
        if self._keep:
            self._kept = self._held if kept is None else kept
        return result

    def _tell_untouched(self, names: set[str]) -> None:
        """Warn, once per network, of parameters that the loss does not depend on: without curvature they count as removable."""
        if self.model in _told:
            return
        _told.add(self.model)
        count = sum(p.numel() for name, p in zip(self.names, self.parameters, strict=True) if name in names)
        _log.warning(
            "The loss does not depend on %s (%s of %s weights): no method sees a reason to keep them; leave them out by "
            "prunable= unless that is meant.",
            ", ".join(name for name in self.names if name in names),
            f"{count:,}",
            f"{self.dimension:,}",
        )

    def _cut(self, row: Tensor) -> list[Tensor]:
        """View a vector as tensors of the parameters' shapes."""
        parts = row.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _ready_engine(self) -> Rule:
        """Settle what is left to choose: the rule, the rows per pass, and whether states are kept."""
        if self._keep is None or not self._sized:
            fixed, slope = self._measure() if self._source else (0.0, 0.0)
            free = free_memory(self.device) - self.reserve
            rows = sum(len(targets) for _, targets in self._source)
            if not self._sized:
                most = max(1, longest(self._source))
                fitting = max(1, int((PASS_SHARE * free - fixed) / max(slope, 1) / 2))
                fitting = min(fitting, most, self._most_rows(slope))
                self._rows, self._sized = math.ceil(most / math.ceil(most / fitting)), True
            if self._keep is None:
                self._keep = fixed * len(self.batches) + slope * rows < RETAIN_SHARE * free
        if self._engine is None:
            self._engine = self._graph_rule(double=bool(self._keep))
        return self._engine

    def _most_rows(self, row_bytes: float) -> int:
        """Say how many rows a pass is fastest with at most, given the bytes of a row's state."""
        if self.device.type != "cpu":
            return longest(self._source)
        if not any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in self._network.module.modules()):
            return CPU_ROWS
        weights = sum(p.numel() * p.element_size() for p in self.parameters)
        return min(CPU_ROWS, int(max(CPU_CONVOLUTION_BYTES, STATES_PER_WEIGHTS * weights) / max(row_bytes, 1)))

    def _graph_rule(self, double: bool) -> Rule:
        return HessianRule(self._network) if self._hessian else GaussNewtonRule(self._network, double)

    def _measure(self) -> tuple[float, float]:
        """Measure the memory of a state: bytes that each takes, and bytes per row."""
        if isinstance(self._engine, AnalyticRule):
            return 0.0, float(self._engine.row_bytes)
        batch = next((batch for batch in self._source if has_rows(batch)), self._source[0])
        try:
            return state_memory(self._graph_rule(double=True), self._network, batch)
        except TwiceError:
            if self._hessian or self._wanted == "retained":
                raise
            self._keep = False  # forward mode may still do
            fixed, slope = state_memory(self._graph_rule(double=False), self._network, batch)
            return fixed, 2 * slope

    def dense(self) -> Tensor:
        """Form the whole ``(D, D)`` matrix, for networks of a few thousand parameters.

        Returns:
            The symmetric matrix, float64.

        Raises:
            PruneLimitError: If it would have more than 20,000 rows.
        """
        if self.dimension > DENSE_ROWS:
            raise PruneLimitError(
                f"model has {self.dimension} prunable weights: a dense Hessian is made up to {DENSE_ROWS} only."
            )
        matrix = torch.empty(self.shape, dtype=torch.float64, device=self.device)
        for start in range(0, self.dimension, 512):
            width = min(512, self.dimension - start)
            block = torch.zeros(width, self.dimension, dtype=self.dtype, device=self.device)
            block[:, start : start + width] = torch.eye(width, dtype=self.dtype, device=self.device)
            matrix[start : start + width] = (self @ block.T).T
        return (matrix + matrix.T) / 2


def _add(targets: Sequence[Tensor], parts: Sequence[Tensor | None], share: float) -> None:
    """Add a batch's share to a sum; no entry means zero."""
    with torch.no_grad():
        for target, part in zip(targets, parts, strict=True):
            if part is not None:
                target.add_(part.detach(), alpha=share)


class HessianOperator(CurvatureOperator):
    """The Hessian of a network's mean loss as a linear operator; arguments as for :class:`CurvatureOperator`.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> inputs, targets = torch.eye(2), torch.zeros(2, 1)
        >>> operator = HessianOperator(model, torch.nn.functional.mse_loss, (inputs, targets))
        >>> operator @ torch.tensor([1.0, 3.0])
        tensor([1., 3.])
    """

    _hessian = True


class GGNOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix of a network's mean loss; arguments as for :class:`CurvatureOperator`.

    It is the Hessian without the second derivative of the network itself, and positive semidefinite if the loss is convex
    in the network's output, which has to be one tensor. Use it where negative curvature is in the way.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Tanh())
        >>> _ = torch.nn.init.zeros_(model[0].weight)
        >>> operator = GGNOperator(model, torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> operator @ torch.tensor([1.0, 3.0])
        tensor([1., 3.])
    """

    _hessian = False
