"""The frame of the second-order pruners: gradients of a sample, one method's choice and update, once or in stages."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.checkpoints import check_settings, load_checkpoint, save_checkpoint
from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.progress import ProgressLine
from prunelimit.pruning.base import Pruned, PrunerSpec
from prunelimit.pruning.controls import split_masks
from prunelimit.pruning.fisher import EmpiricalFisher, per_example_gradients
from prunelimit.pruning.magnitude import flatten, prunable_parameters, removed_count
from prunelimit.specs import part_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondOrderSpec(PrunerSpec):
    """What the second-order pruners have in common.

    Attributes:
        examples: Number N of training images, drawn at random, behind the empirical Fisher matrix; all of them if there
            are fewer.
        damping: What is added to its diagonal.
        stages: Cuts on the way to the sparsity. The gradients are taken anew before each, the density falls by the same
            factor in each, and a weight once removed stays removed. One is the one-shot method.
    """

    examples: int = 8000
    damping: float = 1e-5
    stages: int = 1

    def __post_init__(self) -> None:
        """Refuse values that cannot prune anything."""
        super().__post_init__()
        for name in ("examples", "stages"):
            if getattr(self, name) < 1:
                raise PruneLimitError(f"{name}={getattr(self, name)!r} must be at least 1.")
        if not self.damping > 0:
            raise PruneLimitError(f"damping={self.damping!r} must be a positive number, for example 1e-5.")


@dataclasses.dataclass
class Cut:
    """One cut: what a method knows when it chooses.

    Attributes:
        weights: ``(d,)`` float64, the weights that are still there.
        keep: How many of them stay.
        spec: The method's settings.
        generator: Source of randomness, on the CPU.
        model: The network as it is now, in evaluation mode.
        sample: Normalised inputs and labels.
        there: Name of each prunable parameter to a bool tensor of its size, flat: which entries are still there.
    """

    weights: Tensor
    keep: int
    spec: Any
    generator: torch.Generator
    model: nn.Module
    sample: tuple[Tensor, Tensor]
    there: dict[str, Tensor]

    def fisher(self) -> EmpiricalFisher:
        """Return the empirical Fisher matrix of all weights that are still there."""
        columns = torch.cat(list(self.there.values()))
        return EmpiricalFisher(
            per_example_gradients(self.model, *self.sample, list(self.there), columns), self.spec.damping
        )

    def blocks(self, size: int) -> Iterator[tuple[slice, EmpiricalFisher]]:
        """Give the blocks of its block-diagonal form, in the order of the weights.

        Args:
            size: Most weights in a block; blocks are runs of consecutive weights inside one layer.

        Yields:
            Which of the weights, and the Fisher matrix of these.
        """
        start = 0
        for name, there in self.there.items():
            gradients = per_example_gradients(self.model, *self.sample, [name], there)
            for part in gradients.split(size, dim=1):
                if part.shape[1]:
                    yield slice(start, start + part.shape[1]), EmpiricalFisher(part, self.spec.damping)
                start += part.shape[1]


#: A method: from a cut to the ``(d,)`` bool of what is kept, the new weights and what there is to report.
Choice = Callable[[Cut], tuple[Tensor, Tensor, dict[str, Any]]]


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` smallest of some scores, the earlier one of two equals, in a bool tensor."""
    marked = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    marked[torch.argsort(scores, stable=True)[:count]] = True
    return marked


def counts(total: int, keep: int, stages: int) -> list[int]:
    """Return how many weights stay after each stage: equal factors from ``total`` to ``keep``."""
    ratio = max(keep, 1) / total
    return [max(keep, round(total * ratio ** (stage / stages))) for stage in range(1, stages)] + [keep]


class _State:
    """Weights and what is kept of them, between two stages."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval()
        self.parameters = prunable_parameters(self.model)
        self.weights = flatten(list(self.parameters.values())).double()
        self.kept = torch.ones_like(self.weights, dtype=torch.bool)
        self.history: list[dict[str, Any]] = []

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([p.numel() for p in self.parameters.values()])
        return dict(zip(self.parameters, parts, strict=True))

    @torch.no_grad()
    def write(self) -> None:
        """Put the weights into the network."""
        for name, part in self.split(self.weights).items():
            self.parameters[name].copy_(part.reshape(self.parameters[name].shape))

    def result(self) -> Pruned:
        self.write()
        masks = split_masks(self.parameters, self.kept)
        return Pruned(masks, {name: p.detach().clone() for name, p in self.parameters.items()}, self.history)


def prune_in_stages(
    choose: Choice,
    title: str,
    model: nn.Module,
    data: DeviceSplit,
    sparsity: float,
    spec: SecondOrderSpec,
    *,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Pruned | None:
    """Prune by a second-order method.

    Args:
        choose: The method; a cut that removes nothing does not reach it.
        title: Its name on the progress line.
        model: The trained network; left as it was.
        data: Training images and labels.
        sparsity: Fraction of the prunable weights to remove.
        spec: The method's settings.
        folder: Where to save the weights after each stage, the last one included, and to look for them.
        deadline: Value of ``time.monotonic()`` after which no further stage is begun.
        progress: Whether to show a progress line.

    Returns:
        Masks and weights, or ``None`` if the deadline passed before the last stage.

    Raises:
        PruneLimitError: If the folder holds another run, or the method left a weight that is not finite.
    """
    state = _State(model)
    total = len(state.weights)
    goals = counts(total, total - removed_count(sparsity, total), spec.stages)
    settings = {"spec": spec.to_dict(), "type": type(spec).__name__, "sparsity": sparsity, "total": total}
    if folder is not None:
        _load(state, folder, settings)
    with ProgressLine(title, spec.stages, progress) as line:
        for stage in range(len(state.history), spec.stages):
            if deadline is not None and time.monotonic() > deadline:
                return None
            start, report = time.monotonic(), {}
            if goals[stage] < int(state.kept.sum()):
                report = _stage(state, choose, data, spec, stage, goals[stage])
            entry = {"stage": stage + 1, "kept": goals[stage], "seconds": time.monotonic() - start, **report}
            state.history.append(entry)
            if folder is not None:
                tensors = {"weights": state.weights, "kept": state.kept.to(torch.uint8)}
                save_checkpoint(folder, stage + 1, tensors, {**settings, "history": state.history})
            line.update(stage + 1, kept=goals[stage])
    return state.result()


def _stage(
    state: _State, choose: Choice, data: DeviceSplit, spec: SecondOrderSpec, stage: int, keep: int
) -> dict[str, Any]:
    """Make one cut; what it draws depends on the seed and the stage alone, so that a resumed run is the same."""
    generator = torch.Generator().manual_seed(part_seed(spec.seed, stage))
    state.write()
    sample = data.tensors(spec.examples, generator)
    before = state.kept.clone()
    cut = Cut(state.weights[before], keep, spec, generator, state.model, sample, state.split(before))
    kept, weights, report = choose(cut)
    if not bool(torch.isfinite(weights).all()):
        raise PruneLimitError(f"damping={spec.damping!r} leaves weights that are not finite: use a larger one.")
    state.kept[before] = kept
    state.weights = torch.zeros_like(state.weights)
    state.weights[state.kept] = weights[kept]
    return {"examples": len(sample[1]), **report}


def _load(state: _State, folder: Path, settings: dict[str, Any]) -> None:
    found = load_checkpoint(folder)
    if found is None:
        return
    tensors, metadata = found
    check_settings(folder, metadata, settings)
    device = state.weights.device
    state.weights, state.kept = tensors["weights"].to(device), tensors["kept"].to(device, torch.bool)
    state.history = metadata["history"]
