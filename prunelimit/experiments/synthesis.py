"""The limits of the dense parents of a grid, computed before anything is retrained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.errors import unknown_name
from prunelimit.experiments.frames import fine_distance
from prunelimit.experiments.prepare import Prepared, curvature_sample, prepare
from prunelimit.experiments.regime_grids import GridSettings
from prunelimit.experiments.regime_specs import RegimeSpec
from prunelimit.experiments.runner import along_path, as_plain, probe_spectrum, recorded_distance
from prunelimit.experiments.specs import TrainedSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.landscape.children import prune_parent, regime_parameters
from prunelimit.limit import default_epsilon, formula_limit
from prunelimit.precision import full_float32
from prunelimit.pruning.magnitude import MagnitudePath, effective_sparsity, prunable_parameters
from prunelimit.pruning.paths import MaskPath, PruningPath
from prunelimit.refit import CONTROLS, refit_limit
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime, evaluate_both
from prunelimit.training_prefix import begin_from_shorter

EXPERIMENT = "synthesis"

#: Recorded distances R, at equally spaced sparsities; so many sparse points are also looked at for a path by layers.
DISTANCES = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesisSpec(TrainedSpec):
    """The limits of one dense parent, along the path on which its children are pruned.

    Attributes:
        distribution: How the density is spread over layers, see :func:`~prunelimit.landscape.children.prune_parent`.
        examples: Training images behind the curvature, drawn at random; ``None`` for all.
        steps: Hessian products per probe, for the formula.
        probes: Random probes.
        refits: Controls of the refitted limits, see :func:`~prunelimit.refit.refit_limit`; none leaves them out.
        refit_examples: Images behind loss, gradient and curvature while refitting; ``None`` for all.
        refit_tolerance: Width of the bracket in sparsity at which their bisection stops.
    """

    distribution: str = "uniform"
    examples: int | None = None
    steps: int = 96
    probes: int = 1
    refits: tuple[str, ...] = ("stationary", "none")
    refit_examples: int | None = None
    refit_tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Refuse controls that do not exist before hours have gone into the rest."""
        super().__post_init__()
        for control in self.refits:
            if control not in CONTROLS:
                raise unknown_name("refits", control, CONTROLS)

    def about(self) -> str:
        """Say which parent it is, in a few words."""
        train = self.train
        rho = f", rho {train.sam_rho:g}" if train.sam_rho else ""
        return f"{train.epochs} epochs, batch {train.batch_size}, rate {train.lr:g}{rho}, seed {train.seed}"


#: What differs from profile to profile: a small network can afford all of its images.
SETTINGS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 128, "refit_tolerance": 0.005},
    "laptop": {"examples": 1000, "steps": 64, "refit_examples": 500},
    "paper": {"examples": 2000, "steps": 128, "refit_examples": 1000},
}


def parent_spec(cell: RegimeSpec, profile: str) -> SynthesisSpec:
    """Return the spec of the limits of a cell's dense parent, the same for every density.

    Args:
        cell: Spec of a cell of a grid.
        profile: Its profile.

    Returns:
        The spec.

    Raises:
        PruneLimitError: If the profile is unknown.
    """
    if profile not in SETTINGS:
        raise unknown_name("profile", profile, SETTINGS)
    return SynthesisSpec(train=cell.train, distribution=cell.distribution, **SETTINGS[profile])


def parent_specs(settings: GridSettings, profile: str) -> list[SynthesisSpec]:
    """List the specs of all dense parents of a grid, each once, in the order of their worth.

    Args:
        settings: The grid in one profile.
        profile: That profile.

    Returns:
        The specs, without the density.
    """
    cells = [settings.spec(*cell) for cell in settings.by_worth()]
    return list(dict.fromkeys(parent_spec(cell, profile) for cell in cells))


def pruning_path(model: nn.Module, distribution: str) -> PruningPath:
    """Return the sparse points on which a grid's children begin.

    Args:
        model: The dense parent; its weights are read now, and again for every mask of a path by layers.
        distribution: ``"uniform"`` or ``"global"``.

    Returns:
        The path, over the weights that the grid prunes.
    """
    names = regime_parameters(model)
    if distribution == "global":
        return MagnitudePath(model, names)
    parameters = prunable_parameters(model, names)
    masks = partial(_masks, model, distribution)
    return MaskPath(list(parameters), list(parameters.values()), masks, points=DISTANCES)


def _masks(model: nn.Module, distribution: str, sparsity: float) -> dict[str, torch.Tensor]:
    return prune_parent(model, 1 - sparsity, distribution)


def run_synthesis(
    spec: SynthesisSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of one dense parent's limits, or return the one there is.

    The parent is loaded if the grid has trained it on this machine. Finished limits and the Lanczos process are kept, so a run
    that was stopped goes on from there.

    Args:
        spec: What to run.
        label: Grid and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` before which everything is saved.
        progress: Whether to show progress.

    Returns:
        The record, or ``None`` if the deadline passed.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    ready = prepare(spec, device, deadline, progress)
    if ready is None:
        return None
    folder = cache_folder() / "synthesis" / spec.hash
    steps = Steps(folder / "steps.json", deadline)
    with suited_threads(ready.model), full_float32(ready.data.device):
        try:
            body = _measure(spec, ready, device, steps, folder / "lanczos", progress)
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads())
    record = {
        "label": label or {},
        "data": ready.dataset.digests,
        "provenance": source,
        "seconds": steps.seconds,
        **body,
    }
    return save_record(EXPERIMENT, spec, record)


def run_parents(
    specs: Sequence[SynthesisSpec], **options: Any
) -> Iterator[tuple[SynthesisSpec, dict[str, Any] | None]]:
    """Make the records of several parents, or find those that there are.

    A parent that is not trained yet goes on from an earlier stop of the same training, if one is.

    Args:
        specs: The parents.
        **options: As for :func:`run_synthesis`.

    Yields:
        Each spec with its record; nothing follows the first ``None``, which means that the deadline passed.
    """
    trainings = [spec.train for spec in specs]
    for spec in specs:
        if load_record(EXPERIMENT, spec) is None:
            begin_from_shorter(spec.train, trainings)
        record = run_synthesis(spec, **options)
        yield spec, record
        if record is None:
            return


def _measure(
    spec: SynthesisSpec, ready: Prepared, device: str, steps: Steps, folder: Path, progress: bool | None
) -> dict[str, Any]:
    """Fill the record's body, one remembered step after the other."""
    model, data = ready.model, ready.data
    path = pruning_path(model, spec.distribution)
    names = regime_parameters(model)
    whole = list(data.batches(2000))
    epsilon = steps("epsilon", lambda: default_epsilon(model, cross_entropy, list(data.batches(128))))
    radius = recorded_distance(path, DISTANCES, digits=7)

    def formula() -> dict[str, Any]:
        options = {"steps": spec.steps, "probes": spec.probes, "seed": spec.train.seed}
        found, operator = probe_spectrum(model, ready.sample, names, options, steps, folder, progress)
        fine = fine_distance({"radius": radius})
        limit = formula_limit(found, fine, epsilon, examples=operator.examples)
        limit.cost = {"products": sum(len(probe.alpha) for probe in found.probes)}
        return limit.to_dict() | {"spectrum": found.to_dict()}

    def refit(control: str) -> dict[str, Any]:
        sample = curvature_sample(data, spec.refit_examples, spec.train.seed)
        operator = HessianOperator(model, cross_entropy, sample, prunable=names)
        return as_plain(refit_limit(operator, path, epsilon, control=control, tolerance=spec.refit_tolerance))

    return {
        "dense": steps("dense", lambda: evaluate_both(model, data, ready.dataset.on_device("test", device))),
        "epsilon": epsilon,
        "total": path.total,
        "prunable": names,
        "radius": radius,
        "emp": effective_sparsity(MagnitudePath(model, names).distance, path.total),
        "measured": along_path("measured", model, whole, ready.sample, path, epsilon, steps, names),
        "directional": along_path("directional", model, whole, ready.sample, path, epsilon, steps, names),
        "formula": steps("formula", formula),
        "refit": {control: steps(f"refit-{control}", partial(refit, control)) for control in spec.refits},
    }
