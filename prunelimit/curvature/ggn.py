r"""All eigenvalues of the generalised Gauss-Newton matrix at once, by its Gram matrix.

With :math:`J_n` the (C, D) Jacobian of the outputs for example n and :math:`H_n` the Hessian of its loss in the
outputs, :math:`G = \frac1N \sum_n J_n^T H_n J_n = A^T A`, where the rows of A are :math:`s_{nc}^T J_n / \sqrt N` and
:math:`H_n = \sum_c s_{nc} s_{nc}^T`. A has at most N C rows, so the eigenvalues of G that are not zero are those of the
(N C, N C) Gram matrix :math:`A A^T = \sum_p A_p A_p^T`, a sum over the parameters p. A itself is never held as a whole.

For the weight of a linear layer the rows are :math:`\delta_{nc} \otimes a_n`, so the entries of its part are
:math:`\langle \delta_{nc}, \delta_{md} \rangle \langle a_n, a_m \rangle`. All other parameters go through
``torch.func``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from prunelimit.curvature.operator import LossFunction, as_batches, evaluation_mode
from prunelimit.errors import PruneLimitError
from prunelimit.progress import ProgressLine
from prunelimit.pruning.magnitude import prunable_parameters

#: Largest number of examples times outputs: a Gram matrix of 1.2 GB, decomposed in a few minutes.
MAX_ROWS = 12_000

#: Bytes for a piece of A, beside the Gram matrix.
BLOCK_BYTES = 2**28

#: An output Hessian with an eigenvalue below minus this part of the largest is not convex, whatever the rounding.
NEGATIVE_TOLERANCE = 1e-5

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class GGNSpectrum:
    """The exact spectrum of a generalised Gauss-Newton matrix.

    Attributes:
        eigenvalues: ``(k,)`` float64, the ones that are not zero, in rising order; k is at most N C and at most D.
        dimension: Number of parameters, D.
        examples: Number of examples, N.
    """

    eigenvalues: np.ndarray
    dimension: int
    examples: int

    @property
    def nullity(self) -> int:
        """Number of zero eigenvalues, up to rounding."""
        return self.dimension - len(self.eigenvalues)

    def effective_dimension(self, mu: float | Sequence[float] | np.ndarray) -> np.ndarray:
        r"""Compute :math:`d(\mu) = \sum_i \lambda_i / (\lambda_i + \mu)`; it is exact, and has no interval.

        Args:
            mu: One or many positive numbers, in units of the eigenvalues.

        Returns:
            The values, of the shape of ``mu``, between 0 and ``len(eigenvalues)``.

        Raises:
            PruneLimitError: If a ``mu`` is not positive.
        """
        points = np.asarray(mu, dtype=float)
        if not np.all(points > 0):
            raise PruneLimitError(f"mu={mu!r} must be positive: it is 2 epsilon / R^2.")
        summands = [np.sum(self.eigenvalues / (self.eigenvalues + m)) for m in points.reshape(-1)]
        return np.array(summands).reshape(points.shape)


def ggn_eigenvalues(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    prunable: Sequence[str] | None = None,
    progress: bool | None = None,
) -> GGNSpectrum:
    """Compute the exact eigenvalues of the generalised Gauss-Newton matrix of the mean loss, in evaluation mode.

    All of it runs in float64, on a float64 copy of the weights, so that eigenvalues are right to about 1e-13 of the
    largest. With R = N C at most 12,000: memory is three times ``8 R^2`` bytes (3.5 GB at most) and about one gigabyte
    for pieces of A; the cost is ``4/3 R^3`` for the eigenvalues and, per layer, ``R^2 (in / C^2 + out)`` operations for
    a linear layer and ``R^2`` times its size for any other parameter. Cross entropy loses one row per example, because
    the logits may be shifted, and is cheaper by that much.

    The network must treat examples alone, as all common layers do in evaluation mode, and the loss must be a mean over
    examples that is convex in the outputs.

    Args:
        model: Any torch module that maps a batch of inputs to one output tensor; it is left as it was.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss.
        data: Iterable of ``(inputs, targets)`` batches, or a pair of tensors; N examples, batches count by their size.
        prunable: Names of the parameters to differentiate by; by default linear and convolution weights.
        progress: Whether to show a progress line.

    Returns:
        The spectrum.

    Raises:
        PruneLimitError: If N C is above 12,000, the loss is not convex or couples examples, or data, model or weights
            cannot be used; the message says which.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = torch.diag(torch.tensor([1.0, 3.0])), torch.zeros(2, 1)
        >>> ggn_eigenvalues(model, torch.nn.functional.mse_loss, data).eigenvalues
        array([1., 9.])
    """
    chosen = prunable_parameters(model, prunable)
    batches = [(_double(inputs), targets) for inputs, targets in as_batches(data)]
    with evaluation_mode(model), torch.enable_grad():
        gram = _Gram(model, loss_fn, batches, chosen)
        with ProgressLine(gram.title, len(chosen), progress) as line:
            gram.accumulate(line)
    largest_rank = min(len(gram.matrix), gram.dimension)
    eigenvalues = torch.linalg.eigvalsh(gram.matrix).cpu().numpy()[len(gram.matrix) - largest_rank :]
    rounding = len(gram.matrix) * np.finfo(float).eps * max(eigenvalues.max(initial=0.0), 0.0)
    return GGNSpectrum(eigenvalues[eigenvalues > rounding], gram.dimension, gram.examples)


def _double(inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise PruneLimitError(f"data has inputs of type {type(inputs).__name__}: give one tensor per batch.")
    return inputs.double() if inputs.is_floating_point() else inputs


class _Gram:
    """The Gram matrix, added up parameter by parameter."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: list[tuple[Tensor, Tensor]],
        chosen: dict[str, nn.Parameter],
    ) -> None:
        self.model, self.batches = model, batches
        self.examples = sum(len(targets) for _, targets in batches)
        self.dimension = sum(p.numel() for p in chosen.values())
        self.sizes = {name: p.numel() for name, p in chosen.items()}
        both = [*model.named_parameters(), *model.named_buffers()]
        self.tensors = {name: t.detach().double() if t.is_floating_point() else t.detach() for name, t in both}
        self._check_model(batches[0][0])
        #: Per batch, the factors s of the output Hessians, (n, C, r): r is the largest rank over all examples.
        self.factors = _trim([self._factor(loss_fn, *batch) for batch in batches])
        self.rank = self.factors[0].shape[2]
        rows = self.examples * self.rank
        self.title = f"GGN, Gram matrix {rows} x {rows}, {24e-9 * rows**2:.2g} GB"
        self.matrix = torch.zeros(rows, rows, dtype=torch.float64, device=self.factors[0].device)

    def _call(self, inputs: Tensor, replaced: Tensors | None = None) -> Tensor:
        output = functional_call(self.model, {**self.tensors, **(replaced or {})}, (inputs,))
        if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(inputs):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise PruneLimitError(
                f"model returned {got} for {len(inputs)} inputs: return one row of outputs per input."
            )
        return output

    def _check_model(self, inputs: Tensor) -> None:
        """Refuse too many rows before any work, and a network whose output for an example depends on its batch."""
        with torch.no_grad():
            alone = self._call(inputs[:1])
        outputs = alone.numel()
        if self.examples * outputs > MAX_ROWS:
            raise PruneLimitError(
                f"data has {self.examples} examples with {outputs} outputs each, and their product is above "
                f"{MAX_ROWS}: give at most {MAX_ROWS // outputs} examples, or use Lanczos."
            )

        with torch.no_grad():
            together = self._call(inputs)[:1]
        if not torch.allclose(alone, together, rtol=1e-6, atol=1e-8 * float(together.abs().max()), equal_nan=True):
            raise PruneLimitError(
                "model gives an example another output alone than in a batch: replace what mixes examples or is random "
                "in evaluation mode, such as batch norm without running statistics."
            )

    def _factor(self, loss_fn: LossFunction, inputs: Tensor, targets: Tensor) -> Tensor:
        """Factor a batch's output Hessians, times its share of the examples: ``(n, C, C)``, weakest column first."""
        with torch.no_grad():
            output = self._call(inputs)
        blocks = _output_hessians(loss_fn, output, targets) * (len(targets) / self.examples)
        values, vectors = torch.linalg.eigh(blocks)
        if float(values.min()) < -NEGATIVE_TOLERANCE * float(values.abs().max()):
            raise PruneLimitError(
                f"loss_fn is not convex in the outputs (eigenvalue {float(values.min()):.3g} of its Hessian there): "
                "use a convex one, such as cross entropy or the squared error, or curvature='hessian'."
            )
        return vectors * values.clamp(min=0).sqrt()[:, None, :]

    def accumulate(self, line: ProgressLine) -> None:
        """Add up the parts of all parameters."""
        linear = self._kronecker_layers()
        budget = BLOCK_BYTES // 8
        widths = {name: self.examples * (m.in_features + self.rank * m.out_features) for name, m in linear.items()}
        done = 0
        for group in _groups(widths, budget):
            self._add_linear({name: linear[name] for name in group})
            done += len(group)
            line.update(done)
        rest = {name: size for name, size in self.sizes.items() if name not in linear}
        rows = len(self.matrix)
        columns = max(budget // rows, rows)  # a piece of A may take as much memory as the Gram matrix
        for group in _groups(rest, columns):
            for start in range(0, sum(rest[name] for name in group), columns):
                self._add_any(group, start, columns)
            done += len(group)
            line.update(done)

    def _kronecker_layers(self) -> dict[str, nn.Linear]:
        """Find the linear layers that are used once, on one vector per example, and by nobody behind their back."""
        found = {
            f"{name}.weight" if name else "weight": module
            for name, module in self.model.named_modules()
            if type(module) is nn.Linear
        }
        linear = {name: module for name, module in found.items() if name in self.sizes}
        if not linear:
            return {}
        inputs = self.batches[0][0][:8]
        output, calls, weights = self._tape(linear, inputs)
        plain = {
            name: calls[name][0]
            for name in linear
            if len(calls[name]) == 1
            and calls[name][0][1].requires_grad
            and _is_row_per_example(calls[name][0][0], inputs)
        }
        if not plain or not output.requires_grad:
            return {}
        # Weights may be used elsewhere too, by a second module or a function: then the true gradient is another one.
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
        wanted = [weights[name] for name in plain] + [z for _, z in plain.values()]
        grads = torch.autograd.grad(output, wanted, cotangent, materialize_grads=True)
        true, deltas = grads[: len(plain)], grads[len(plain) :]
        good = {}
        for (name, (a, _)), gradient, delta in zip(plain.items(), true, deltas, strict=True):
            if torch.allclose(gradient, delta.T @ a, rtol=1e-8, atol=1e-10 * float(gradient.abs().max())):
                good[name] = linear[name]
        return good

    def _tape(
        self, linear: dict[str, nn.Linear], inputs: Tensor
    ) -> tuple[Tensor, dict[str, list[tuple[Tensor, Tensor]]], Tensors]:
        """Run the network, keeping the input and the output of every call of some linear layers."""
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in linear}
        weights = {name: self.tensors[name].clone().requires_grad_() for name in linear}

        def keep(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
                calls[name].append((arguments[0].detach().clone(), output))
                return output.clone()  # what follows may work in place

            return hook

        with _hooks([(module, keep(name)) for name, module in linear.items()]):
            output = self._call(inputs, weights)
        return output, calls, weights

    def _add_linear(self, linear: dict[str, nn.Linear]) -> None:
        """Add the parts of linear layers: products of inner products, a block of rows at a time."""
        inputs: dict[str, list[Tensor]] = {name: [] for name in linear}
        deltas: dict[str, list[Tensor]] = {name: [] for name in linear}
        for (batch, _), factor in zip(self.batches, self.factors, strict=True):
            output, calls, _ = self._tape(linear, batch)
            outs = [calls[name][0][1] for name in linear]
            columns = [
                torch.autograd.grad(
                    output, outs, column.reshape(output.shape), retain_graph=True, materialize_grads=True
                )
                for column in factor.unbind(2)
            ]
            for k, name in enumerate(linear):
                inputs[name].append(calls[name][0][0])
                deltas[name].append(torch.stack([column[k] for column in columns], 1))
        n, r = self.examples, self.rank
        view = self.matrix.view(n, r, n, r)
        height = max(1, BLOCK_BYTES // (8 * n * r * r))
        for name in linear:
            a, delta = torch.cat(inputs.pop(name)), torch.cat(deltas.pop(name)).flatten(0, 1)
            for start in range(0, n, height):
                stop = min(start + height, n)
                part = (delta[start * r : stop * r] @ delta.T).view(stop - start, r, n, r)
                view[start:stop] += part.mul_((a[start:stop] @ a.T)[:, None, :, None])

    def _add_any(self, names: list[str], start: int, columns: int) -> None:
        """Add ``columns`` columns from ``start`` of the rows of some parameters, by vectorised reverse products."""
        width = sum(self.sizes[name] for name in names)
        piece = torch.empty(
            len(self.matrix), min(columns, width - start), dtype=torch.float64, device=self.matrix.device
        )
        weights = {name: self.tensors[name] for name in names}

        def rows(example: Tensor, factor: Tensor) -> Tensor:
            pull = vjp(lambda replaced: self._call(example[None], replaced).flatten(), weights)[1]
            parts = vmap(lambda cotangent: pull(cotangent)[0])(factor.T)
            return torch.cat([parts[name].flatten(1) for name in names], 1)

        height, row = max(1, BLOCK_BYTES // (8 * self.rank * width)), 0
        for (inputs, _), factor in zip(self.batches, self.factors, strict=True):
            for some, some_factors in zip(inputs.split(height), factor.split(height), strict=True):
                try:
                    found = vmap(rows)(some, some_factors).flatten(0, 1)
                except RuntimeError as error:
                    if "vmap" not in str(error):
                        raise
                    raise PruneLimitError(
                        f"model cannot be run for many examples at once by torch.vmap: {error}"
                    ) from error
                piece[row : row + len(found)] = found[:, start : start + piece.shape[1]]
                row += len(found)
        self.matrix.addmm_(piece, piece.T)


def _output_hessians(loss_fn: LossFunction, output: Tensor, targets: Tensor) -> Tensor:
    """Compute the blocks of the loss's Hessian in the outputs, ``(n, C, C)``; between examples it must be zero."""
    n, out = len(output), output.detach().requires_grad_()
    loss = loss_fn(out, targets.double() if targets.is_floating_point() else targets)
    if loss.ndim:
        raise PruneLimitError(f"loss_fn returned shape {tuple(loss.shape)}: return the mean loss, a scalar.")
    if not bool(torch.isfinite(loss)):
        raise PruneLimitError(f"loss_fn returned {loss.item()}: check the data and the weights for NaN.")
    count = out[0].numel()
    blocks = torch.zeros(n, count, count, dtype=torch.float64, device=out.device)
    (slope,) = torch.autograd.grad(loss, out, create_graph=True)
    if not slope.requires_grad:  # a loss that is linear in the outputs
        return blocks

    def product(cotangent: Tensor) -> Tensor:
        (column,) = torch.autograd.grad(
            slope, out, cotangent.reshape(out.shape), retain_graph=True, materialize_grads=True
        )
        return column.reshape(n, count)

    for c in range(count):
        unit = torch.zeros(n, count, dtype=torch.float64, device=out.device)
        unit[:, c] = 1
        blocks[:, :, c] = product(unit)
    if not bool(torch.isfinite(blocks).all()):
        raise PruneLimitError(
            "loss_fn has a second derivative that is NaN or infinite: check the loss at these outputs."
        )
    probe = torch.randn(n, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out.device)
    error = (product(probe) - torch.einsum("nab,nb->na", blocks, probe)).abs().max()
    if float(error) > 1e-6 * float(blocks.abs().max()):
        raise PruneLimitError("loss_fn couples the examples of a batch: give a loss that is a mean over examples.")
    return (blocks + blocks.mT) / 2


def _is_row_per_example(a: Tensor, inputs: Tensor) -> bool:
    return a.ndim == 2 and len(a) == len(inputs)


def _trim(factors: list[Tensor]) -> list[Tensor]:
    """Drop the leading columns that are zero up to rounding in all examples; at least one is left."""
    squares = torch.stack([factor.square().sum(1).amax(0) for factor in factors]).amax(0)
    small = squares <= 8 * len(squares) * torch.finfo(torch.float64).eps * squares.max()
    dropped = min(int(small.long().cumprod(0).sum()), len(squares) - 1)
    return [factor[:, :, dropped:].contiguous() for factor in factors]


def _groups(sizes: dict[str, int], budget: int) -> Iterator[list[str]]:
    """Put names together, in order, until their sizes would exceed the budget; a larger one stands alone."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[other] for other in group) + size > budget:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


@contextmanager
def _hooks(pairs: list[tuple[nn.Module, Callable[..., Tensor]]]) -> Iterator[None]:
    """Attach forward hooks for a while."""
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
