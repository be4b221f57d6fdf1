r"""Curvature of a network whose parameters are sharded over processes, so that it need not fit on one device.

What is sharded. Every parameter becomes a ``torch.distributed.tensor.DTensor`` that is cut by its first dimension, as FSDP2
cuts it, and so is every vector of length D: directions, products, gradient, Lanczos basis, magnitudes, masks. A process holds
about D / W entries of each (W processes; ``width`` says how many), the slices of the parameters one after the other. Inner
products are summed over processes. The data are sharded at the same time: gradients and products leave each layer as sums
over processes. Buffers, and parameters without dimensions, are copied.
The network runs in evaluation mode.

What is gathered when. A parameter is whole only while a function of torch uses it: it is gathered when the function is called
in the forward pass and freed after it. The first backward pass gathers it again and calls the function again, because each use
needs a place of its own in the graph, whose gradients are scattered at once; in the second backward pass the graph asks for
it once more. A process holds its shards, about four slices of vectors, the activations, and the parameters and gradients of
one call. A weight that is transposed or cast by a call of its own, and then used by another, has its gradient kept whole for longer.

FSDP2 shards alike, but its hooks cannot be differentiated twice: with torch 2.13, ``autograd.grad`` does not reach its sharded
parameters, and the gradients that ``backward(create_graph=True)`` leaves have no graph.

Communication. A product of the Hessian gathers each prunable weight four times (forward pass, first backward pass, and the
second one for either of them) and the direction once; it scatters the gradient, and the product in two parts. These are eight
collectives of D numbers for each pass over a piece of the data, of which each process receives a share (W - 1) / W, so that
``batch_size`` should be as large as the activations allow. Other parameters are gathered alike, and never scattered. With
``rule="retained"`` the forward and the first backward pass are made only once.

All processes have to make the same calls, and a network must use the same parameters in the same order in each of them. If one
fails, the others wait: torchrun ends them. The code is the same for gloo and nccl; its tests run on gloo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, Shard

from prunelimit.curvature.data import Batches, Counted, LossFunction, as_batches, bare, has_rows, scalar_loss
from prunelimit.curvature.gathering import GATHERED, ShardedModule, shard_parameters
from prunelimit.curvature.lanczos import (
    LanczosRun,
    Tridiagonal,
    basis_bytes,
    inner,
    scrambled_seed,
    unit_rounding,
)
from prunelimit.curvature.memory import free_memory
from prunelimit.curvature.operator import CPU_ROWS, CurvatureOperator, GGNOperator, HessianOperator
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.curvature.rules import GaussNewtonRule, HessianRule, Rule
from prunelimit.curvature.slq import BASIS_SHARE
from prunelimit.errors import PruneLimitError
from prunelimit.processes import add_up, is_sharded, processes
from prunelimit.progress import ProgressLine
from prunelimit.pruning.magnitude import Masks, prunable_parameters, removed_count

__all__ = [
    "ShardedGGNOperator",
    "ShardedHessianOperator",
    "ShardedMagnitudePath",
    "ShardedOperator",
    "shard_parameters",
    "sharded_spectrum",
]

#: Numbers of a random vector that are drawn at a time; a multiple of the 16 that torch draws together.
_DRAWN = 2**20

#: Points of the curve R(s) at most; where there are more weights it is equally spaced.
CURVE = 2**20


class _Layout:
    """Which coordinates of a vector of length D are this process's."""

    def __init__(self, named: dict[str, Any]) -> None:
        self.parameters: list[Any] = list(named.values())
        self.ranges: list[tuple[int, int]] = []
        offset = 0
        for name, p in named.items():
            whole = isinstance(p, DTensor) and p.device_mesh.ndim == 1 and tuple(p.placements) == (Shard(0),)
            if not whole or p.device_mesh.size() != distributed.get_world_size():
                raise PruneLimitError(
                    f"prunable={name!r} is not sharded by its first dimension over all processes: call shard_parameters first."
                )
            length = math.ceil(p.shape[0] / p.device_mesh.size())
            row = p.numel() // max(p.shape[0], 1)
            first = min(p.device_mesh.get_local_rank() * length, p.shape[0])
            self.ranges.append((offset + first * row, offset + min(first + length, p.shape[0]) * row))
            offset += p.numel()
        self.sizes = [stop - start for start, stop in self.ranges]
        self.width, self.dimension = sum(self.sizes), offset
        self.device = self.parameters[0].device

    def cut(self, vector: Tensor) -> list[DTensor]:
        """View this process's slice of a vector as sharded tensors of the parameters' shapes."""
        return [self.placed(part, p) for part, p in zip(vector.split(self.sizes), self.parameters, strict=True)]

    @staticmethod
    def placed(part: Tensor, parameter: Any) -> DTensor:
        """View one parameter's part of a slice as a tensor that is sharded like it."""
        local = part.view(parameter.detach().to_local().shape)
        mesh, placements = parameter.device_mesh, parameter.placements
        shape, stride = parameter.shape, parameter.stride()
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)

    def normal(self, seed: int) -> Tensor:
        """Draw this process's slice of the normal vector that one process would draw, without ever holding it whole."""
        generator = torch.Generator().manual_seed(scrambled_seed(seed))
        kept: list[list[Tensor]] = [[] for _ in self.ranges]
        begin = 0
        while begin < self.dimension:
            # Torch draws the last 16 numbers of a vector anew, so that a piece must not be shorter.
            end = self.dimension if self.dimension - begin < _DRAWN + 16 else begin + _DRAWN
            piece = torch.randn(end - begin, generator=generator)
            for parts, (start, stop) in zip(kept, self.ranges, strict=True):
                low, high = max(start, begin), min(stop, end)
                if low < high:
                    parts.append(piece[low - begin : high - begin].clone())
            begin = end
        return torch.cat([torch.empty(0), *(part for parts in kept for part in parts)]).to(self.device)


class _Weighted(nn.Module):
    """A loss times the share of its batch: gradients are summed over processes, whose batches may differ in size."""

    def __init__(self, loss_fn: LossFunction) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, output: Any, pair: tuple[Any, float]) -> Tensor:
        """Weight the loss."""
        return scalar_loss(self.loss_fn, output, pair[0]) * pair[1]


class ShardedOperator(CurvatureOperator):
    """A curvature matrix that multiplies slices of vectors; use one of its two subclasses.

    Args:
        model: What :func:`shard_parameters` gave.
        loss_fn: As for :class:`~prunelimit.curvature.operator.CurvatureOperator`, like everything that follows.
        data: All of the data in every process; each takes its part.
        prunable: Names of the parameters to differentiate by.
        batch_size: The most rows per pass, by default 1000; the memory of a pass is not measured.
        rule: ``"fresh"`` (``"auto"`` means it) or ``"retained"``, which keeps activations but no gathered parameters.
        dtype: ``None``, ``torch.float32`` or ``torch.float64``.

    Attributes:
        width: Entries of this process's slices; :attr:`dimension` is D, and :attr:`gradient` a slice.

    Raises:
        PruneLimitError: If the network is not sharded, or an argument cannot be used.
    """

    _slices = True

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
    ) -> None:
        if not (isinstance(model, ShardedModule) and is_sharded(model)):
            raise PruneLimitError("model has no sharded parameters: give what shard_parameters(model) returns.")
        if rule == "mlp" or dtype == torch.bfloat16:  # copies in bfloat16 would stay in the graph
            raise PruneLimitError("rule='mlp' and dtype=torch.bfloat16 are not for sharded parameters: leave them out.")
        batches = as_batches(data, None)
        inputs, targets = batches[0]
        row = (inputs[:1], targets[:1]) if has_rows(batches[0]) else (inputs, bare(targets))
        self._spare = row[0], Counted(row[1], 0)
        self._layout = _Layout(prunable_parameters(model, prunable))
        super().__init__(
            model,
            _Weighted(loss_fn),
            batches,
            prunable=prunable,
            batch_size=batch_size or CPU_ROWS,
            rule=rule,
            dtype=dtype,
            shard=True,
        )
        self.width, self._keep = self._layout.width, bool(self._keep)
        passes = torch.tensor(len(super().batches), device=self.device)
        distributed.all_reduce(passes, distributed.ReduceOp.MAX)
        self._passes = int(passes)

    @property
    def batches(self) -> Batches:
        """This process's pieces; as many as any other process has, by repeating a row that does not count."""
        own = super().batches
        own += [self._spare] * (self._passes - len(own))
        pairs = [(inputs, (bare(targets), len(targets) / self.examples)) for inputs, targets in own]
        return [(inputs, Counted(pair, self.examples)) for inputs, pair in pairs]

    def _analytic(self) -> None:
        return None

    def _ready_engine(self) -> Rule:
        if self._engine is None:
            self._engine = HessianRule(self._network) if self._hessian else GaussNewtonRule(self._network, double=True)
        return self._engine

    def _cut(self, row: Tensor) -> list[Tensor]:
        return list(self._layout.cut(row))

    def _shared(self, rows: Tensor) -> Tensor:
        """Multiply slices; sums over processes are made where gradients leave the gathered parameters."""
        fresh, mine = self._loss is None, {id(p) for p in self._network.parameters}
        others = [p for p in self._network.module.parameters() if p.requires_grad and id(p) not in mine]
        try:
            for p in others:  # whose gradients would be summed over processes for nothing
                p.requires_grad_(False)
            with GATHERED.notes():
                result = self._accumulate(rows)
        finally:
            for p in others:
                p.requires_grad_(True)
        if fresh:
            self._loss = float(add_up(torch.tensor([self._loss], dtype=torch.float64, device=self.device)))
        if not math.isfinite(self.add_slices(result.sum().double())):  # let all processes refuse it together
            result.fill_(math.nan)
        return result

    def add_slices(self, part: Tensor) -> Tensor:
        """Sum over processes what each has summed over its slice, in place."""
        return add_up(part)

    def normal(self, seed: int) -> Tensor:
        """Draw this process's slice of a random normal vector, the same for every number of processes."""
        return self._layout.normal(seed)

    def expansion(self, step: Tensor) -> float:
        """Return the second-order change of the loss, g'd + d'Hd / 2.

        Args:
            step: ``(width,)`` this process's slice of d.

        Returns:
            The change in units of the loss.
        """
        step = step.to(self.device, self.dtype)
        return float(self.add_slices(inner(self.gradient, step) + inner(step, self @ step) / 2))


class ShardedHessianOperator(ShardedOperator, HessianOperator):
    """The Hessian of the mean loss of a sharded network, for slices of vectors; arguments as for its base class."""


class ShardedGGNOperator(ShardedOperator, GGNOperator):
    """The generalised Gauss-Newton matrix of a sharded network, for slices of vectors; arguments as for its base class."""


def sharded_spectrum(
    operator: ShardedOperator,
    *,
    steps: int = 64,
    probes: int = 1,
    seed: int = 0,
    low_memory: bool = False,
    progress: bool | None = None,
) -> Spectrum:
    """Probe the spectrum as :func:`~prunelimit.curvature.spectrum` does, with the same probes; the basis is sharded.

    Args:
        operator: The operator.
        steps: Products per probe.
        probes: Random start vectors, one after the other.
        seed: Seed of the first one.
        low_memory: Whether to do without the basis.
        progress: Whether the first process shows a progress line.

    Returns:
        The spectrum, the same in all processes.

    Raises:
        PruneLimitError: If ``steps`` or ``probes`` is less than one, or the basis does not fit into memory.
    """
    if min(steps, probes) < 1:
        raise PruneLimitError(f"steps={steps!r} and probes={probes!r} must be at least 1.")
    size, room = (
        basis_bytes(operator.width, 3 if low_memory else steps, 1, operator.dtype),
        free_memory(operator.device),
    )
    if size > BASIS_SHARE * room:
        raise PruneLimitError(
            f"steps={steps} needs {size / 2**30:.1f} GiB in this process for its part of the Lanczos basis, and "
            f"{room / 2**30:.1f} GiB are free: take more processes, fewer steps, or low_memory=True."
        )
    found: list[Tridiagonal] = []
    active: Tensor | None = None
    shown = progress if distributed.get_rank() == 0 else False
    for probe in range(probes):
        start, first = operator.normal(seed + probe).to(operator.dtype), None
        if active is None:
            first = operator @ start
            # Zero rows are zero columns: a start vector without them never gets there.
            active = first != 0
            rows = int(operator.add_slices(active.sum().double()))
            if not rows:
                active, rows = torch.ones_like(active), operator.dimension
        run = LanczosRun(operator, start * active, reorthogonalise=not low_memory, first=first)
        with ProgressLine(f"Lanczos, probe {probe + 1} of {probes}", min(steps, rows), shown) as line:
            found += run.extend(min(steps, rows), line.update).tridiagonals
    spectrum = Spectrum(operator.dimension, tuple(found), seed, operator.dimension - rows)
    return spectrum.rounded(unit_rounding(operator))


class ShardedMagnitudePath:
    """The path of :class:`~prunelimit.pruning.magnitude.MagnitudePath` for a sharded network, with the same masks.

    Each process sorts its own magnitudes and keeps their squares' sums, 16 bytes for each of its D / W weights in float32.
    The m-th smallest of all is found by bisection over the bits of a number, which asks all processes how many are smaller.

    Args:
        model: What :func:`shard_parameters` gave.
        prunable: Names of the prunable parameters.

    Attributes:
        total: Number of prunable weights, D.
        names: Their parameters.
        distance: ``(min(D, CURVE) + 1,)`` float64 distances R at equally spaced sparsities from 0 to 1, in units of the
            weights; exact, and at every weight if there are no more than ``CURVE``.
    """

    def __init__(self, model: nn.Module, prunable: Sequence[str] | None = None) -> None:
        named = prunable_parameters(model, prunable)
        self._layout, self.names = _Layout(named), list(named)
        self.total, self.device = self._layout.dimension, self._layout.device
        self._weights = torch.cat([p.detach().to_local().reshape(-1) for p in self._layout.parameters])
        if self._weights.dtype not in {torch.float32, torch.float64}:
            self._weights = self._weights.float()
        self._sorted = np.sort(self._bits().cpu().numpy())
        self._sums = np.concatenate([[0.0], np.cumsum(self._values(self._sorted) ** 2)])
        points = min(self.total, CURVE)
        counts = np.round(np.arange(points + 1) * (self.total / points)).astype(np.int64)
        bits, below = self._thresholds(counts)
        squares = self._all(self._sums[np.searchsorted(self._sorted, bits, "left")])
        self.distance = np.sqrt(squares + (counts - below) * self._values(bits) ** 2)

    def _bits(self) -> Tensor:
        """Read magnitudes as whole numbers, which have the same order."""
        return self._weights.abs().view(torch.int32 if self._weights.dtype == torch.float32 else torch.int64)

    @staticmethod
    def _values(bits: np.ndarray) -> np.ndarray:
        return bits.view(np.float32 if bits.dtype == np.int32 else np.float64).astype(float)

    def _all(self, part: np.ndarray) -> np.ndarray:
        """Add up over processes."""
        return add_up(torch.from_numpy(part).to(self.device)).cpu().numpy()

    def _thresholds(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the bits of the m-th smallest magnitudes of all, and how many magnitudes are smaller."""
        low = np.zeros(len(counts), self._sorted.dtype)
        high = np.full(len(counts), np.iinfo(self._sorted.dtype).max)
        while (low < high).any():
            middle = low + (high - low) // 2
            enough = self._all(np.searchsorted(self._sorted, middle, "right")) >= counts
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        return low, self._all(np.searchsorted(self._sorted, low, "left"))

    def _removed(self, sparsity: float) -> list[Tensor]:
        """Tell for each parameter which weights of this process go; equal magnitudes go in the order of the model."""
        count = removed_count(sparsity, self.total)
        bits, below = self._thresholds(np.array([count]))
        rank, world = processes(None)
        parts = self._bits().split(self._layout.sizes)
        ties = np.zeros((len(parts), world), np.int64)
        ties[:, rank] = [int((part == int(bits[0])).sum()) for part in parts]
        ties = self._all(ties)
        earlier = (np.cumsum(ties) - ties.reshape(-1)).reshape(ties.shape)[:, rank]
        removed = []
        for part, before in zip(parts, earlier, strict=True):
            gone, equal = part < int(bits[0]), part == int(bits[0])
            removed.append(gone | (equal & (equal.cumsum(0) + int(before) <= count - int(below[0]))))
        return removed

    def masks(self, sparsity: float) -> Masks:
        """Return the masks that remove exactly ``ceil(s D)`` weights, sharded like the parameters.

        Args:
            sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.

        Returns:
            Parameter name to a DTensor, 1 where a weight is kept and 0 where it is removed.
        """
        kept = torch.cat(self._removed(sparsity)).logical_not().to(self._layout.parameters[0].dtype)
        return dict(zip(self.names, self._layout.cut(kept), strict=True))

    def displacement(self, sparsity: float) -> Tensor:
        """Return this process's slice of the step from the trained to the pruned weights, ``(width,)``."""
        return -self._weights * torch.cat(self._removed(sparsity))
